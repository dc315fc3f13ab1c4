"""Answers of text and images in turn."""

from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError
from ...common.values import whole_number
from ...tokenizer import VisualCodes
from ..protocol import UnifiedModel
from .image_generation import check_compile, generate_image
from .outputs import InterleavedOutput, split_image_tokens
from .own_random import OwnRandom
from .progress import Progress
from .sampling import ImageSamplingConfig, prompt_seeds
from .text import code_inputs, has_room_for_image, never_in_text, transformers_generate


def generate_interleaved(
    model: UnifiedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    codes: VisualCodes | None = None,
    *,
    max_images: int = 4,
    max_new_tokens: int = 256,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    streamer: Any = None,
    compile: bool | str = False,
    progress: Progress | bool | None = None,
    **options: Any,
) -> InterleavedOutput:
    """Text and images in turn, until the model ends its turn; for one prompt (1, L).

    Args:
        codes: of the prompt's images.
        streamer: of the text; its method `put_image`, if it has one, gets the tokens of each finished image.
        compile, progress: of each image, as in `generate_image`.
        **options: fields of `ImageSamplingConfig` for the images, all others, as `do_sample`, for the text.
    """
    if input_ids.shape[0] != 1 or (attention_mask is not None and not bool(attention_mask.all())):
        raise UserError("interleaved generation takes one prompt at a time, without padding")
    max_images = whole_number(max_images, "max_images")
    left = whole_number(max_new_tokens, "max_new_tokens", 1)
    # Wrong options of images are refused before any text is generated, also where no image follows.
    chosen = {name: options.pop(name) for name in ImageSamplingConfig.names() if name in options}
    sampling = ImageSamplingConfig.of(model.config.image_sampling, chosen)
    check_compile(compile)
    (seed,) = prompt_seeds(seed, 1, generator)
    image_options = {**vars(sampling), "seed": seed, "compile": compile, "progress": progress}
    own_random = OwnRandom(seed, model.device)
    answer = _Answer(model, input_ids, codes)
    for index in range(max_images + 1):
        with own_random:
            left -= answer.add_text(index < max_images, max_new_tokens=left, streamer=streamer, **options)
        if answer.ids[0, -1] != model.config.image_start_token_id:
            break
        tokens = answer.add_image(first_image_index=index, **image_options)
        if hasattr(streamer, "put_image"):
            streamer.put_image(tokens)
        if left <= 0:
            break
    return answer.output()


class _Answer:
    """A prompt and its continuation: ids (1, L), and the codes (I, P, D) of all images in them."""

    def __init__(self, model: UnifiedModel, input_ids: Tensor, codes: VisualCodes | None) -> None:
        self.model, self.ids, self.prompt_length = model, input_ids, input_ids.shape[1]
        self.codes = codes or split_image_tokens(
            model.config, input_ids.new_zeros(0, model.config.codes_per_image)
        )
        self.given = len(self.codes.pixel)

    def add_text(self, allow_image: bool, **options: Any) -> int:
        """Add text up to the end of the turn or the start of an image; returns the number of tokens."""
        config, length = self.model.config, self.ids.shape[1]
        allow_image = allow_image and has_room_for_image(config, length)
        self.ids = transformers_generate(
            self.model,
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            suppress_tokens=never_in_text(config, allow_image),
            eos_token_id=[config.eos_token_id, config.image_start_token_id],
            **code_inputs(self.codes),
            **options,
        )
        return self.ids.shape[1] - length

    def add_image(self, **options: Any) -> Tensor:
        """Add the image that was opened; returns its tokens (1, P x 2D)."""
        config = self.model.config
        tokens = generate_image(self.model, self.ids, codes=self.codes, **options)
        new = split_image_tokens(config, tokens)
        self.codes = VisualCodes(
            pixel=torch.cat([self.codes.pixel, new.pixel]),
            semantic=torch.cat([self.codes.semantic, new.semantic]),
        )
        slots = [config.image_token_id] * config.num_positions + [config.image_end_token_id]
        self.ids = torch.cat([self.ids, self.ids.new_tensor([slots])], dim=1)
        return tokens

    def output(self) -> InterleavedOutput:
        """The answer without the images of the prompt."""
        pixel, semantic = self.codes.pixel[self.given :], self.codes.semantic[self.given :]
        has_pixels = self.model.visual_tokenizer is not None and len(pixel) > 0
        images = self.model.codec.decode(pixel) if has_pixels else None
        return InterleavedOutput(self.ids, pixel, semantic, self.prompt_length, images)
