"""SigLIP with access to every layer of its vision encoder."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import SiglipModel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings


def cut_patches(images: Tensor, side: int) -> Tensor:
    """(B, C, S, S) -> (B, N, C side²): the pixels of each token; incomplete patches are dropped."""
    patches = images.unfold(2, side, side).unfold(3, side, side)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class TappedSiglip(SiglipModel):
    """SiglipModel (same weights, same names) whose vision encoder runs layer by layer.

    Works with every `attn_implementation` of transformers and with its gradient checkpointing, which
    recomputes encoder layers only, never a quantizer.
    """

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> patch embeddings with positions (B, N, hidden)."""
        return self.vision_model.embeddings(pixel_values)

    def run_layers(self, hidden: Tensor, start: int, stop: int) -> list[Tensor]:
        """Apply encoder layers start+1 ... stop to (B, N, hidden); return the output of each, in order."""
        outputs = [hidden]
        for layer in self.vision_model.encoder.layers[start:stop]:
            outputs.append(layer(outputs[-1], attention_mask=None))
        return outputs[1:]

    def pool(self, hidden: Tensor) -> Tensor:
        """Last hidden states (B, N, hidden) -> pooled image embedding (B, hidden), not normalised."""
        return self.vision_model.head(self.vision_model.post_layernorm(hidden))

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> text embedding (B, E), not normalised.

        SigLIP reads the last position and attends to padding: pad to the full text length, with no mask.
        """
        return self.text_model(input_ids=input_ids).pooler_output


class ShallowEncoder(nn.Module):
    """A separate copy of the patch embeddings and first layers of a SigLIP vision encoder.

    Shares the backbone's configuration object, so that a change of attention reaches both.
    """

    def __init__(self, backbone: TappedSiglip, num_layers: int) -> None:
        super().__init__()
        config = backbone.vision_model.config
        self.embeddings = SiglipVisionEmbeddings(config)
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(num_layers))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> patch embeddings and the output of every layer, (B, N, hidden) each."""
        states = [self.embeddings(pixel_values)]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask=None))
        return states

    def copy_from(self, backbone: TappedSiglip) -> None:
        """Copy the backbone's weights."""
        vision = backbone.vision_model
        self.embeddings.load_state_dict(vision.embeddings.state_dict())
        for own, layer in zip(self.layers, vision.encoder.layers, strict=False):
            own.load_state_dict(layer.state_dict())
