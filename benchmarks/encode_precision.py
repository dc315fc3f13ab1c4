"""How many codes change if images are not encoded in full fp32, on nano's held-out photographs and pictures.

TF32 is emulated on a CPU: the operands of products are rounded to its 10 bits of mantissa, and sums stay in
fp32, as on the tensor cores. "TF32 convolution" is what torch does on NVIDIA GPUs unless told otherwise. bf16
is `encode_precision: bf16` as it is.

Example:
  python benchmarks/encode_precision.py
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from measure import report
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dualtoken.common.arguments import integer
from dualtoken.common.images.reading import load_image
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.eval.data.held_out import HELD_OUT
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor, VisualCodes

IMAGES = {"small": 200, "full": 800}
SETS = ("caltech", "clothing", "easyvqa", "emoji")
CONVOLUTIONS = (torch.conv2d, torch.nn.functional.conv2d)
PRODUCTS = (*CONVOLUTIONS, torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention)


def tf32(value: Any) -> Any:
    """A tensor rounded to TF32: 10 bits of mantissa, to the nearest, ties to even."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.view(torch.int32)
    bits = bits + 0xFFF + ((bits >> 13) & 1)
    return (bits & ~0x1FFF).view(torch.float32)


class EmulatedTF32(TorchFunctionMode):
    """Round the operands of these functions to TF32; a bias is added in fp32."""

    def __init__(self, functions: tuple[Any, ...]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.functions:
            operands = 3 if func is torch.nn.functional.scaled_dot_product_attention else 2
            args = (*map(tf32, args[:operands]), *args[operands:])
        return func(*args, **(kwargs or {}))


@contextmanager
def in_bf16(tokenizer: DualTokenizer) -> Iterator[None]:
    """`encode_precision: bf16` for a while."""
    tokenizer.config.encode_precision = "bf16"
    try:
        yield
    finally:
        tokenizer.config.encode_precision = "fp32"


def held_out_images(count: int) -> list[Any]:
    """`count` images, the same number of every set."""
    found: list[Any] = []
    for name in SETS:
        records = ShardDataset(HELD_OUT / name, "all")
        parts = (part for record in records for part in record.image_parts())
        found += [load_image(part["image"]) for part in itertools.islice(parts, -(-count // len(SETS)))]
    return found[:count]


def changed(codes: VisualCodes, exact: VisualCodes, branch: str) -> dict[str, Any]:
    """Percent of codes that differ, by depth, and of images with such a code."""
    differ = getattr(codes, branch) != getattr(exact, branch)
    depths = [round(100 * float(share), 3) for share in differ.float().mean(dim=(0, 1, 2))]
    return {"by depth": depths, "images": round(100 * float(differ.flatten(1).any(dim=1).float().mean()), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=list(IMAGES), default="small", help="how many images")
    parser.add_argument("--images", type=integer(1, 10_000), help="instead of the size's")
    parser.add_argument("--tokenizer", default="nano", help="folder of a tokenizer (default: %(default)s)")
    args = parser.parse_args()
    tokenizer = DualTokenizer.from_pretrained(args.tokenizer)
    images = held_out_images(args.images or IMAGES[args.size])
    pixels = DualTokenizerImageProcessor.from_pretrained(args.tokenizer)(images)["pixel_values"]
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "fp32, other batches": nullcontext,
        "TF32 convolution": partial(EmulatedTF32, CONVOLUTIONS),
        "TF32": partial(EmulatedTF32, PRODUCTS),
        "bf16": partial(in_bf16, tokenizer),
    }
    exact, percent = tokenizer.encode(pixels), {}
    for name, way in ways.items():
        with way():
            parts = [tokenizer.encode(part) for part in pixels.split(50)]
        for branch in ("pixel", "semantic"):
            codes = VisualCodes(
                *(torch.cat([getattr(one, b) for one in parts]) for b in ("pixel", "semantic"))
            )
            percent[f"{name}, {branch}"] = changed(codes, exact, branch)
            print(f"{name}, {branch}: {percent[f'{name}, {branch}']}", flush=True)
    report("encode_precision", [], images=len(images), percent_changed=percent)


if __name__ == "__main__":
    main()
