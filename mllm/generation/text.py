"""Text by transformers' `generate`, without image tokens, from prompts with images."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor

from ...common.errors import UserError
from ...tokenizer import VisualCodes
from ..configuration import DualTokenConfig
from ..language_model import context_length
from ..protocol import UnifiedModel
from .own_random import OwnRandom
from .sampling import prompt_seeds

IMAGE_INPUTS = ("pixel_values", "pixel_codes", "semantic_codes")


def generate_text(
    model: UnifiedModel,
    input_ids: Tensor | None = None,
    codes: VisualCodes | None = None,
    *,
    refuse_images: bool = False,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Any:
    """Transformers' `generate` for left-padded prompts (B, L), without any token of an image.

    Args:
        codes: of the prompts' images, in order of appearance.
        refuse_images: raise UserError where the model would answer with an image, because text alone would
            be nonsense there.
        seed: of sampled text; None: sampled from `generator`, or, without one, torch's global generator
            samples the text itself.
        **options: of transformers' `generate`.
    """
    if "guidance_scale" in options:
        raise UserError("guidance_scale is for images; leave it out, or set generation_mode='image'")
    refuse_right_padding(options.get("attention_mask"))
    if refuse_images and input_ids is not None and has_room_for_image(model.config, input_ids.shape[1]):
        settings = options.get("generation_config") or model.generation_config
        beams = options.get("num_beams") or getattr(settings, "num_beams", None) or 1
        detector = ImageAnswerDetector(model.config, input_ids.shape[1], beams)
        options["logits_processor"] = [*(options.get("logits_processor") or ()), detector]
    options["suppress_tokens"] = [*(options.get("suppress_tokens") or ()), *never_in_text(model.config)]
    options |= {"input_ids": input_ids, **code_inputs(codes)}
    if seed is None and generator is None:
        return transformers_generate(model, **options)
    (seed,) = prompt_seeds(seed, 1, generator)
    with OwnRandom(seed, model.device):
        return transformers_generate(model, **options)


def transformers_generate(model: Any, **options: Any) -> Any:
    """Transformers' `generate`, which the unified model's overrides."""
    return GenerationMixin.generate(model, **options)


def code_inputs(codes: VisualCodes | None) -> dict[str, Tensor]:
    """Codes (I, P, D) as arguments of the model's `forward`."""
    return {} if codes is None else {"pixel_codes": codes.pixel, "semantic_codes": codes.semantic}


def never_in_text(config: DualTokenConfig, allow_image_start: bool = False) -> list[int]:
    """Special tokens that are suppressed in every answer."""
    ids = [config.bos_token_id, config.pad_token_id, config.user_token_id, config.assistant_token_id]
    # Some language models lack one of them, or pad with the token that ends a turn.
    ids = [one for one in ids if one not in (None, config.eos_token_id)]
    ids += [config.image_token_id, config.image_end_token_id, config.unconditional_token_id]
    return ids if allow_image_start else [*ids, config.image_start_token_id]


def has_room_for_image(config: DualTokenConfig, length: int) -> bool:
    """Whether the model can generate an image after `length` tokens of its context."""
    longest = context_length(config.text_config)
    fits = longest is None or length + config.num_positions + 2 <= longest
    return fits and "pixel" in config.branches


def refuse_right_padding(mask: Any) -> None:
    """Raise UserError for prompts whose mask (B, L) ends in padding: their continuation would be nonsense."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, -1].all()):
        raise UserError(
            "prompts for generation are padded on the left; collate them with padding_side='left'"
        )


def repeat_codes(codes: dict[str, Tensor], input_ids: Tensor, copies: int, config: DualTokenConfig) -> dict:
    """The image inputs of prompts (B, L) that are each repeated `copies` times with all of their images."""
    counts = (input_ids.eq(config.image_token_id).sum(dim=1) // config.num_positions).tolist()
    return {
        key: torch.cat([part.repeat(copies, 1, 1) for part in value.split(counts)])
        for key, value in codes.items()
    }


class ImageAnswerDetector(LogitsProcessor):
    """Raises UserError where an answer would continue with an image; scores stay as they are.

    The token that opens an image is suppressed in text, and any other one is almost impossible there.

    Args:
        prompt_length: tokens of a prompt, padding included.
        beams: rows of each prompt; the first is the best so far.
    """

    def __init__(self, config: DualTokenConfig, prompt_length: int, beams: int) -> None:
        self.image_start, self.prompt_length, self.beams = config.image_start_token_id, prompt_length, beams
        ends = [one for one in (config.eos_token_id, config.pad_token_id) if one is not None]
        self.ends = torch.tensor(ends)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new, best = input_ids[:: self.beams, self.prompt_length :], scores[:: self.beams]
        is_done = torch.isin(new, self.ends.to(new.device)).any(dim=1)
        wants_image = best.float().softmax(dim=-1)[:, self.image_start] > 0.5
        found = (wants_image & ~is_done).nonzero()
        if found.numel():
            raise UserError(
                f"the model answers prompt {int(found[0]) + 1} of {len(best)} with an image: pass "
                "generation_mode='image' to generate it, 'interleaved' for text and images in turn, or "
                "'text' for text only"
            )
        return scores
