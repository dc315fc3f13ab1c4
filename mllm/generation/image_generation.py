"""Images for prompts: checks arguments, completes prompts, and runs the image loop, compiled or not."""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from ...common.errors import UserError, shown
from ...common.values import whole_number
from ...tokenizer import VisualCodes
from ..configuration import DualTokenConfig
from ..protocol import UnifiedModel
from .fixed_batches import alone, generate_in_fixed_batches
from .image_loop import ImageLoop, ImagePrompt
from .outputs import image_tokens
from .progress import Progress, shown_progress
from .sampling import ImageSamplingConfig, prompt_seeds
from .step_decoder import rounded_capacity
from .text import refuse_right_padding

# Transformers' pipelines pass them with every call; they do not matter for images.
TEXT_ONLY_ARGUMENTS = (
    "generation_config",
    "max_new_tokens",
    "tokenizer",
    "assistant_model",
    "assistant_tokenizer",
)
#: Each model's compiled loop and what it was compiled for, kept for the next such call.
_compiled_loops: WeakKeyDictionary[Any, tuple[Any, ImageLoop]] = WeakKeyDictionary()
#: A compiled loop works in place, and torch's compiler has one setting for all threads.
_compiled_lock = threading.RLock()


def generate_image(
    model: UnifiedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    codes: VisualCodes | None = None,
    *,
    num_return_sequences: int = 1,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    first_image_index: int = 0,
    do_sample: bool | None = None,
    compile: bool | str = False,
    progress: Progress | bool | None = None,
    **options: Any,
) -> Tensor:
    """Tokens (B x num_return_sequences, P x 2D) of images for left-padded prompts (B, L).

    Arguments as in the model's `generate`; `codes` are those of the prompts' images.
    """
    if "pixel" not in model.config.branches:
        raise UserError(
            "this model has no pixel codes (visual_branches: semantic): it cannot generate images"
        )
    options = {name: value for name, value in options.items() if name not in TEXT_ONLY_ARGUMENTS}
    if do_sample is False:
        options["temperature"] = 0.0
    check_compile(compile)
    sampling = ImageSamplingConfig.of(model.config.image_sampling, options)
    copies = whole_number(num_return_sequences, "num_return_sequences", 1)
    first_image_index = whole_number(first_image_index, "first_image_index")
    prompt = image_prompt(model.config, input_ids, attention_mask, codes)
    seeds = prompt_seeds(seed, len(input_ids), generator)
    one_batch = partial(_one_batch, model, sampling, compile)
    with shown_progress(progress) as report, _compiled_lock if compile else nullcontext():
        if sampling.batch_invariant:
            prompts = alone(prompt, model.config)
            size = sampling.batch_invariant
            generated = generate_in_fixed_batches(
                one_batch, prompts, copies, seeds, first=first_image_index, size=size, progress=report
            )
        else:
            generated = one_batch(prompt, copies, seeds, first_image_index, report)
    return image_tokens(generated)


def _one_batch(
    model: UnifiedModel,
    sampling: ImageSamplingConfig,
    compile: bool | str,
    prompt: ImagePrompt,
    copies: int,
    seeds: Sequence[int],
    first_image_index: int,
    report: Progress | None,
) -> VisualCodes:
    """Codes (B x copies, P, D) of all prompts' images, generated side by side."""
    count, length = prompt.input_ids.shape
    unconditional = unconditional_ids(model.config)
    capacity = max(length, len(unconditional)) + model.config.num_positions
    loop = _loop(model, sampling, (count * copies, capacity), compile)
    if sampling.guided:
        prompt = prompt.with_unconditional(unconditional)
    return loop.generate(model, prompt, copies, seeds, first_image_index, report)


def check_compile(choice: Any) -> None:
    """Raise UserError unless `choice` is True, False, or the name of a backend that `torch.compile` knows."""
    if isinstance(choice, bool):
        return
    backends = torch.compiler.list_backends(exclude_tags=()) if isinstance(choice, str) else []
    if choice not in backends:
        raise UserError(f"compile is {shown(choice)}; give True, False, or a backend of torch.compile")


def unconditional_ids(config: DualTokenConfig) -> Tensor:
    """The sequence (L,) that guidance's unconditional branch starts from, as in training."""
    ids = config.unconditional_prompt_ids or [
        config.bos_token_id,
        config.user_token_id,
        config.unconditional_token_id,
        config.eos_token_id,
        config.assistant_token_id,
    ]
    return torch.tensor([*ids, config.image_start_token_id], dtype=torch.long, device="cpu")


def image_prompt(
    config: DualTokenConfig, input_ids: Tensor, attention_mask: Tensor | None, codes: VisualCodes | None
) -> ImagePrompt:
    """Left-padded prompts (B, L), with `<|image_start|>` at the end. UserError for right-padded ones."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    refuse_right_padding(mask)
    start = config.image_start_token_id
    if not bool(input_ids[:, -1].eq(start).all()):
        input_ids = functional.pad(input_ids, (0, 1), value=start)
        mask = functional.pad(mask, (0, 1), value=1)
    return ImagePrompt(input_ids, mask, codes)


def _loop(
    model: UnifiedModel, sampling: ImageSamplingConfig, shape: tuple[int, int], compile: bool | str
) -> ImageLoop:
    """A new loop for this many (rows, positions), or the kept one whose compiled steps fit."""
    rows, capacity = shape
    if not compile:
        return ImageLoop(model, sampling, rows, capacity)
    # Where shapes decide about codes, a larger capacity than the prompt needs is another one.
    exact = rounded_capacity(capacity) if sampling.batch_invariant else None
    made_for = sampling, rows, compile, model.dtype, model.device, exact
    known, kept = _compiled_loops.get(model, (None, None))
    if kept is None or known != made_for or capacity > kept.decoder.capacity:
        kept = ImageLoop(model, sampling, rows, capacity, compile)
        _compiled_loops[model] = made_for, kept
    return kept
