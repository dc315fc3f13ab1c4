"""The image loop: codes of whole images, position by position and depth by depth.

Shapes: B prompts, R = B x images per prompt, P positions, D depths, N codes, C code dimension, H hidden size.
    With
guidance every tensor of the model has 2R rows: the R conditional ones, then the R unconditional ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..tokenizer import VisualCodes
from . import sampling
from .depth_transformer import DepthCache, DepthTransformer
from .kv_cache import PreallocatedCache
from .sampling import ImageSamplingOptions
from .visual_embedding import FrozenCodebook

if TYPE_CHECKING:
    from .modeling import DualTokenForConditionalGeneration

FOUR_DIMENSIONAL_MASKS = ("sdpa", "eager")


@dataclass
class ImagePrompt:
    """Left-padded sequences (B, L) that end with `<|image_start|>`, their mask, and images inside them."""

    input_ids: Tensor
    attention_mask: Tensor
    codes: VisualCodes | None = None


class Branch(NamedTuple):
    """What draws the codes of one branch; the cache serves one position after the other."""

    head: DepthTransformer
    codebook: FrozenCodebook
    cache: DepthCache


class ImageGenerator:
    """Draws images for a batch of prompts. One object serves one call."""

    def __init__(self, model: "DualTokenForConditionalGeneration", options: ImageSamplingOptions) -> None:
        self.model, self.options = model, options
        self.config = model.config

    @torch.no_grad()
    def generate(
        self, prompt: ImagePrompt, images_per_prompt: int, seeds: Sequence[int], first_image_index: int = 0
    ) -> VisualCodes:
        """Codes (R, P, D) of both branches, the images of each prompt in a row.

        Image j of prompt b is drawn from the stream (seeds[b], first_image_index + j).
        """
        positions = self.config.num_positions
        uniforms = self._uniforms(seeds, images_per_prompt, first_image_index).to(prompt.input_ids.device)
        states = self._prefill(prompt, images_per_prompt)
        rows = uniforms.shape[0]
        pixels = self._branch(self.model.pixel_head, self.model.pixel_codebook, states)
        semantics = self._branch(self.model.semantic_head, self.model.semantic_codebook, states)
        pixel_depth, semantic_depth = pixels.head.depth, semantics.head.depth
        codes = VisualCodes(
            pixel=torch.zeros(rows, positions, pixel_depth, dtype=torch.long, device=states.device),
            semantic=torch.zeros(rows, positions, semantic_depth, dtype=torch.long, device=states.device),
        )
        for position in range(positions):
            # The numbers of each branch are its own, whichever is drawn first.
            pixel_noise, semantic_noise = uniforms[:, position].split([pixel_depth, semantic_depth], dim=-1)
            if self.config.semantic_condition == "pixel":
                pixel = self._draw(pixels, states, None, pixel_noise)
                semantic = self._draw(semantics, states, self.model.semantic_condition(pixel), semantic_noise)
            else:
                semantic = self._draw(semantics, states, None, semantic_noise)
                pixel = self._draw(pixels, states, self.model.pixel_condition(semantic), pixel_noise)
            codes.pixel[:, position], codes.semantic[:, position] = pixel, semantic
            if position + 1 < positions:
                states = self._advance(pixel, semantic, position)
        return codes

    def _uniforms(self, seeds: Sequence[int], images_per_prompt: int, first: int) -> Tensor:
        """(R, P, pixel depth + semantic depth) random numbers, drawn before the loop."""
        per_position = self.model.pixel_head.depth + self.model.semantic_head.depth
        return torch.stack(
            [
                sampling.image_uniforms(seed, first + index, self.config.num_positions, per_position)
                for seed in seeds
                for index in range(images_per_prompt)
            ]
        )

    def _prefill(self, prompt: ImagePrompt, images_per_prompt: int) -> Tensor:
        """Run every prompt once, then copy its cache to each of its images: states (R | 2R, H)."""
        count = prompt.input_ids.shape[0]
        if self.options.guided:
            prompt = self._with_unconditional(prompt)
        mask = prompt.attention_mask
        self.cache = PreallocatedCache(
            self.config.text_config.num_hidden_layers, mask.shape[1] + self.config.num_positions
        )
        embeds = self.model.embed_sequence(prompt.input_ids, prompt.codes)
        states = self._run(embeds, mask, (mask.cumsum(dim=-1) - 1).clamp(min=0))[:, -1]
        rows = torch.arange(count, device=mask.device).repeat_interleave(images_per_prompt)
        if self.options.guided:
            rows = torch.cat([rows, torch.full_like(rows, count)])
        self.cache.select_rows(rows)
        self.next_position_ids = mask.sum(dim=-1)[rows].unsqueeze(1)
        self._prepare_step_masks(mask[rows])
        return states[rows]

    def _with_unconditional(self, prompt: ImagePrompt) -> ImagePrompt:
        """The prompts with the unconditional one as last row, all left-padded to one length."""
        row = self.model.unconditional_ids().to(prompt.input_ids.device)
        length = max(prompt.input_ids.shape[1], row.shape[0])
        count = prompt.input_ids.shape[0]
        ids = prompt.input_ids.new_zeros(count + 1, length)
        mask = prompt.attention_mask.new_zeros(count + 1, length)
        ids[:count, length - prompt.input_ids.shape[1] :] = prompt.input_ids
        mask[:count, length - prompt.input_ids.shape[1] :] = prompt.attention_mask
        ids[count, length - row.shape[0] :] = row
        mask[count, length - row.shape[0] :] = 1
        return ImagePrompt(ids, mask, prompt.codes)

    def _prepare_step_masks(self, mask: Tensor) -> None:
        """One mask for the whole image, sliced at each step: building it anew asks the host about padding."""
        self.mask = torch.nn.functional.pad(mask, (0, self.config.num_positions), value=1)
        self.has_padding = not bool(mask.all())
        text_config = self.config.text_config
        implementation = self.model.language_model.config._attn_implementation
        kinds = getattr(text_config, "layer_types", None)
        full_attention = (
            set(kinds) == {"full_attention"}
            if kinds
            else getattr(text_config, "sliding_window", None) is None
        )
        self.bias: Tensor | None = None
        if implementation in FOUR_DIMENSIONAL_MASKS and full_attention:
            lowest = torch.finfo(self.model.dtype).min
            bias = torch.zeros(self.mask.shape, dtype=self.model.dtype, device=mask.device)
            self.bias = bias.masked_fill(self.mask == 0, lowest)[:, None, None, :]

    def _step_mask(self, length: int) -> Tensor | None:
        if not self.has_padding:
            return None
        return self.mask[:, :length] if self.bias is None else self.bias[..., :length]

    def _advance(self, pixel: Tensor, semantic: Tensor, position: int) -> Tensor:
        """Feed the codes (R, D) of `position` to the LLM: its next states (R | 2R, H)."""
        index = torch.full(pixel.shape[:1], position, dtype=torch.long, device=pixel.device)
        embeds = self._for_all_rows(self.model.embed_codes(pixel, semantic, index)).unsqueeze(1)
        length = self.cache.get_seq_length() + 1
        states = self._run(embeds.to(self.model.dtype), self._step_mask(length), self.next_position_ids)
        self.next_position_ids = self.next_position_ids + 1
        return states[:, -1]

    def _run(self, embeds: Tensor, mask: Tensor | None, position_ids: Tensor) -> Tensor:
        return self.model.language_model.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    @staticmethod
    def _branch(head: DepthTransformer, codebook: FrozenCodebook, states: Tensor) -> Branch:
        return Branch(head, codebook, head.new_cache(states.shape[0]))

    def _draw(self, branch: Branch, states: Tensor, condition: Tensor | None, uniforms: Tensor) -> Tensor:
        """The codes (R, D) of one branch at one position.

        From states (R | 2R, H), uniforms (R, D) and the other branch's features (R, C), where the head sees
        them.
        """
        head, codebook, cache = branch
        condition = None if condition is None else self._for_all_rows(condition)
        logits = head.first_step(states, condition, cache)
        codes: list[Tensor] = []
        code_sum: Tensor | float = 0.0
        for level in range(head.depth):
            if self.options.guided:
                logits = sampling.guide(logits.float(), self.options.guidance_scale)
            codes.append(sampling.draw_codes(logits, uniforms[:, level], self.options, level))
            if level + 1 < head.depth:
                code_sum = code_sum + codebook.embed_depth(codes[-1], level)
                logits = head.next_step(self._for_all_rows(code_sum), level + 1, cache)
        return torch.stack(codes, dim=1)

    def _for_all_rows(self, x: Tensor) -> Tensor:
        """Both branches continue with the same sampled code."""
        return torch.cat([x, x]) if self.options.guided else x
