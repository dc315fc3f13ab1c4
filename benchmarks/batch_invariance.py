"""Batch-invariant image generation: what it costs, and how many codes differ without it.

Eight guided images of the shipped model, generated at once and, with `batch_invariant`, in batches of 8, 4
and 1; then one image alone. The share is that of the codes of eight images, each generated alone, that equal
those of the eight generated at once.

Examples:
  python benchmarks/batch_invariance.py
  python benchmarks/batch_invariance.py --dtype fp32
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import default_device
from torch import Tensor

from dualtoken.common.machine import describe_machine
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    images = generator(args.dtype)
    print(f"{IMAGES} images, seed {SEED}, {args.dtype}, {describe_machine(default_device())}")
    many, one = (seconds(partial(images, count), args.repeats) for count in (IMAGES, 1))
    print(f"{'batch_invariant':>15} {'time of ' + str(IMAGES):>10} {'time of 1':>10} {'equal codes':>12}")
    print(f"{0:>15} {1.0:>10.2f} {1.0:>10.2f} {equal_share(images, 0):>12.4f}")
    for size in SIZES:
        ratios = (
            seconds(partial(images, count, 0, size), args.repeats) / plain
            for count, plain in ((IMAGES, many), (1, one))
        )
        print(f"{size:>15} {next(ratios):>10.2f} {next(ratios):>10.2f} {equal_share(images, size):>12.4f}")


if __name__ == "__main__":
    main()
