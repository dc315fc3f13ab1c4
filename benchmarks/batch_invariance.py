"""Batch-invariant image generation: what it costs, and how many codes differ without it.

Eight guided images of the shipped model, generated at once and, with `batch_invariant`, in batches of 8, 4
and 1; then one image alone. The share is that of the codes of eight images, each generated alone, that equal
those of the eight generated at once.

Examples:
  python benchmarks/batch_invariance.py
  python benchmarks/batch_invariance.py --dtype fp32
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import argument_parser, default_device, report
from torch import Tensor

from dualtoken.mllm import DualTokenPipeline

IMAGES, SEED, PROMPT = 8, 0, "a red circle"
SIZES = (8, 4, 1)


def generator(dtype: str) -> Callable[..., Tensor]:
    """images(count, first_image_index, batch_invariant) -> codes, one row an image."""
    pipe = DualTokenPipeline.from_pretrained("nano", device=default_device(), dtype=dtype)
    turns = [[{"role": "user", "content": PROMPT}]]
    inputs = pipe.processor.apply_chat_template(turns, add_generation_prompt=True).to(pipe.device)

    def images(count: int, first: int = 0, size: int = 0) -> Tensor:
        return pipe.model.generate(
            **inputs,
            generation_mode="image",
            num_return_sequences=count,
            first_image_index=first,
            batch_invariant=size,
            seed=SEED,
        )

    return images


def seconds(step: Callable[[], Tensor], repeats: int) -> float:
    """The median of `repeats` runs, after one that is not counted; on a CPU its computing time."""
    clock = time.process_time if default_device() == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        start = clock()
        step().cpu()
        times.append(clock() - start)
    return statistics.median(times[1:])


def equal_share(images: Callable[..., Tensor], size: int) -> float:
    """The share of codes of images generated one by one that equal those of all at once."""
    together = images(IMAGES, 0, size)
    alone = torch.cat([images(1, index, size) for index in range(IMAGES)])
    return float((alone == together).float().mean())


def main() -> None:
    parser = argument_parser(__doc__, ("small", "full"), "runs", repeats=3)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    args = parser.parse_args()
    images = generator(args.dtype)
    many, one = (seconds(partial(images, count), args.repeats) for count in (IMAGES, 1))
    cases, shares = [], {"without": equal_share(images, 0)}
    for size in SIZES:
        for count, plain in ((IMAGES, many), (1, one)):
            taken = seconds(partial(images, count, 0, size), args.repeats)
            name = f"batch_invariant {size}, {count} image{'s' if count > 1 else ''}, {args.dtype}"
            cases.append(
                {"name": name, "against": "without", "speed": round(plain / taken, 3), "seconds": taken}
            )
        shares[f"batch_invariant {size}"] = equal_share(images, size)
    report("batch_invariance", cases, seed=SEED, equal_codes=shares)


if __name__ == "__main__":
    main()
