"""`generate` of the unified model: text, images, or both in turn."""

from collections.abc import Callable, Mapping
from typing import Any

from ...common.errors import UserError, shown
from ...common.machine import suitable_threads
from ...common.values import whole_number
from .image_generation import generate_image
from .interleaved import generate_interleaved
from .protocol import UnifiedModel
from .text import IMAGE_INPUTS, generate_text

GENERATORS: dict[str, Callable[..., Any]] = {
    "text": generate_text,
    "image": generate_image,
    "interleaved": generate_interleaved,
}


def generate(model: UnifiedModel, generation_mode: str | None, options: dict[str, Any]) -> Any:
    """Call the generator of a mode with the prompts' images as codes, on a suitable number of threads.

    generation_mode: None is "text", but raises UserError where the model wants to answer with an image.
    """
    mode = generation_mode or "text"
    if mode not in GENERATORS:
        raise UserError(f"generation_mode is {shown(mode)}; allowed: {', '.join(GENERATORS)}")
    with suitable_threads(model, _rows(options)):
        # Images are encoded once, before prompts are repeated or run in steps.
        codes = model.given_codes(*(options.pop(name, None) for name in IMAGE_INPUTS))
        if generation_mode is None:
            options["refuse_images"] = True
        return GENERATORS[mode](model, codes=codes, **options)


def _rows(options: Mapping[str, Any]) -> int:
    """Sequences that are generated side by side in one call. UserError for an invalid number of copies."""
    given = (options.get(name) for name in ("input_ids", "inputs_embeds"))
    prompts = next((len(one) for one in given if one is not None), 0)
    counts = {name: options.get(name) for name in ("num_return_sequences", "num_beams")}
    copies = max(1 if one is None else whole_number(one, name, 1) for name, one in counts.items())
    return 2 * prompts * copies  # guidance has two rows for each
