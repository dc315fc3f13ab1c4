"""CLIPScore (arXiv 2104.08718) with a CLIP from a local folder: 100 · max(0, cos(image, text)).

The factor is 100, as in torchmetrics and most papers on image generation; the paper's own w = 2.5 gives 1/40
of that. The score depends on the CLIP, which has to be reported with it. torchmetrics' CLIPScore takes only
hub ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError, first_line
from ...common.packages import optional_package
from ..judges.protocols import Clip

#: PIL images (B), texts (B) -> embeddings (B, E)
ImageEncoder = Callable[[Sequence[Image.Image]], Tensor]
TextEncoder = Callable[[Sequence[str]], Tensor]


class LocalClip:
    """Normalised embeddings of images and texts by a CLIP from disk.

    Args:
        folder: a folder that transformers' CLIPModel and CLIPProcessor load, or one with open_clip's
            `open_clip_config.json` and its weights.

    Raises:
        UserError: no such folder, or no CLIP in it.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        self.name = folder.name
        self._device = torch.device(device)
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder; give a CLIP of transformers or open_clip")
        load = self._open_clip if (folder / "open_clip_config.json").is_file() else self._transformers
        try:
            self._images, self._texts = load(folder)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise UserError(f"{str(folder)!r} holds no CLIP that can be read: {first_line(error)}") from error

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, E) fp32 on the CPU, normalised."""
        return F.normalize(self._images([image.convert("RGB") for image in images]).float(), dim=-1).cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts, cut to the model's length -> (B, E) fp32 on the CPU, normalised."""
        return F.normalize(self._texts(list(texts)).float(), dim=-1).cpu()

    def _transformers(self, folder: Path) -> tuple[ImageEncoder, TextEncoder]:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        model = CLIPModel.from_pretrained(folder, trust_remote_code=False).eval()
        torch.nn.Module.to(model, self._device)  # PreTrainedModel's own `to` has no usable types
        kinds = (AutoImageProcessor, AutoTokenizer)
        processor, tokenizer = (kind.from_pretrained(folder, trust_remote_code=False) for kind in kinds)
        length = model.config.text_config.max_position_embeddings

        def images(batch: Sequence[Image.Image]) -> Tensor:
            pixels = processor(images=list(batch), return_tensors="pt")["pixel_values"]
            return model.visual_projection(model.vision_model(pixels.to(self._device)).pooler_output)

        def texts(batch: Sequence[str]) -> Tensor:
            given = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
            encoded = tokenizer(list(batch), **given).to(self._device)
            output = model.text_model(encoded["input_ids"], attention_mask=encoded["attention_mask"])
            return model.text_projection(output.pooler_output)

        return images, texts

    def _open_clip(self, folder: Path) -> tuple[ImageEncoder, TextEncoder]:
        open_clip = optional_package("open_clip")
        name = f"local-dir:{folder}"
        model, _, preprocess = open_clip.create_model_and_transforms(name, device=self._device)
        tokenizer = open_clip.get_tokenizer(name)
        model.eval()

        def images(batch: Sequence[Image.Image]) -> Tensor:
            return model.encode_image(torch.stack([preprocess(i) for i in batch]).to(self._device))

        def texts(batch: Sequence[str]) -> Tensor:
            return model.encode_text(tokenizer(list(batch)).to(self._device))

        return images, texts


def clip_scores(clip: Clip, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
    """100 · max(0, cos) of each image with its own text."""
    cosine = (clip.encode_images(images) * clip.encode_texts(texts)).sum(dim=-1)
    return (100 * cosine.clamp_min(0)).tolist()
