"""`generate` of the unified model: text, images, or both in turn."""

from collections.abc import Callable, Mapping
from typing import Any

from ...common.errors import UserError, shown
from ...common.machine import suitable_threads
from ...common.values import whole_number
from ..protocol import UnifiedModel
from .image_generation import generate_image
from .interleaved import generate_interleaved
from .sampling import ImageSamplingConfig
from .text import IMAGE_INPUTS, generate_text

GENERATORS: dict[str, Callable[..., Any]] = {
    "text": generate_text,
    "image": generate_image,
    "interleaved": generate_interleaved,
}


def generate(model: UnifiedModel, generation_mode: str | None, options: dict[str, Any]) -> Any:
    """Continue a batch of left-padded prompts (what the processor's `apply_chat_template` returns).

    `options` are `input_ids`, `attention_mask` (B, L), images as `pixel_values` or codes, and:

    Args:
        generation_mode: "text": ids (B x num_return_sequences, L + new), by transformers' `generate`,
            with all its options and streamers. None (default): the same, but UserError where the model would
            answer with an image: text alone would be nonsense there. "image": codes (B x
            num_return_sequences, P x (pixel depth + semantic depth)), position by position and pixel before
            semantic; `decode_image_tokens` turns them into pixels. "interleaved": an `InterleavedOutput` for
            one prompt; the processor's `post_process_multimodal_output` makes content parts of it.
        num_return_sequences: answers per prompt.
        guidance_scale, temperature, top_k, top_p, ...: for images, the fields of `ImageSamplingConfig`; their
            defaults are `config.image_sampling`.
        compile: for images; True compiles the steps of the image loop (`torch.compile`, with CUDA graphs on
            CUDA), a string names another backend. It takes a minute or more at the first image of a shape and
            is kept as long as the model.
        progress: for images; True shows a bar on stderr; a function is called with (positions done, total
            positions) after each, and returns False to end the call with `GenerationCancelled`.
        seed: of images, one number or one per prompt: the random numbers of image j of a prompt depend on its
            seed and j only. `batch_invariant` of `ImageSamplingConfig` makes the whole image so in every
            dtype. Of sampled text, one number. Random numbers of other threads change neither.
        generator: a torch.Generator from which a missing `seed` is sampled.
        first_image_index: index j of each prompt's first image, to generate many images in parts.
        max_images: most images of an interleaved answer.

    Raises:
        UserError: an unknown mode or option, an image where text was to be generated, a value outside its
            range, right-padded prompts.
    """
    mode = generation_mode or "text"
    if mode not in GENERATORS:
        raise UserError(f"generation_mode is {shown(mode)}; allowed: {', '.join(GENERATORS)}")
    with suitable_threads(model, _rows(model, mode, options)):
        # Images are encoded once, before prompts are repeated or run in steps.
        codes = model.codec.given(*(options.pop(name, None) for name in IMAGE_INPUTS))
        if generation_mode is None:
            options["refuse_images"] = True
        return GENERATORS[mode](model, codes=codes, **options)


def _rows(model: UnifiedModel, mode: str, options: Mapping[str, Any]) -> int:
    """Sequences that are generated in one batch. UserError for an invalid number of copies."""
    if mode != "text":
        chosen = {"batch_invariant": options.get("batch_invariant")}
        size = ImageSamplingConfig.of(model.config.image_sampling, chosen).batch_invariant
        if size:  # the number of threads, too, must not depend on how many images are asked for
            return 2 * size
    given = (options.get(name) for name in ("input_ids", "inputs_embeds"))
    prompts = next((len(one) for one in given if one is not None), 0)
    counts = {name: options.get(name) for name in ("num_return_sequences", "num_beams")}
    copies = max(1 if one is None else whole_number(one, name, 1) for name, one in counts.items())
    return 2 * prompts * copies  # guidance has two rows for each
