"""Cross-entropy of a linear classifier, loss and backward: in chunks of rows against all logits at once.

Cases: a depth transformer's classifier on images of 27 x 27 positions with 8 codes each (width 1024, 16,384
classes, the depths weighted), and the text head of a vocabulary of 131,072. `plain` is what one writes first:
the logits, `F.cross_entropy`, backward.

Examples:
  python benchmarks/losses.py
  python benchmarks/losses.py --size full      # more rows, in bf16, for a GPU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from measure import argument_parser, compare, costs, default_device, report
from torch import Tensor
from torch.nn import functional

from dualtoken.mllm.linear_cross_entropy import linear_cross_entropy

DEPTH = 8


@dataclass(frozen=True)
class Case:
    """T rows of a width, and what they are classified into; `depths` rows of a position weigh differently."""

    name: str
    rows: int
    width: int
    classes: int
    depths: int = 1


CASES = {
    "small": (
        Case("depth classifier, one image", 27 * 27 * DEPTH, 1024, 16384, DEPTH),
        Case("text head, 512 tokens", 512, 256, 131072),
    ),
    "full": (
        Case("depth classifier, 8 images", 8 * 27 * 27 * DEPTH, 1024, 16384, DEPTH),
        Case("text head, 16384 tokens", 16384, 4096, 131072),
    ),
}


def plain(states: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor) -> Tensor:
    """The loss with every logit held, in fp32 as language models do."""
    logits = functional.linear(states, weight).float()
    return functional.cross_entropy(logits, targets, reduction="none").mul(row_weights).sum()


def chunked(states: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor) -> Tensor:
    return linear_cross_entropy(states, weight, targets, row_weights=row_weights)[0]


LOSSES = {"dualtoken": chunked, "plain": plain}


def build(kind: str, case: Case, dtype: torch.dtype) -> Callable[[], None]:
    """Loss and backward of one kind on the same numbers."""
    torch.manual_seed(0)
    with torch.device(default_device()):
        states = torch.randn(case.rows, case.width, dtype=dtype).requires_grad_()
        weight = torch.randn(case.classes, case.width, dtype=dtype).div_(case.width**0.5).requires_grad_()
        targets = torch.randint(case.classes, (case.rows,))
        row_weights = torch.linspace(1.0, 0.3, case.depths).repeat(case.rows // case.depths)

    def step() -> None:
        (LOSSES[kind](states, weight, targets, row_weights) / case.rows).backward()
        states.grad = weight.grad = None  # so that the gradients count as memory of the next step

    return step


def main() -> None:
    args = argument_parser(__doc__, CASES, "steps", repeats=2).parse_args()
    dtype = torch.bfloat16 if args.size == "full" else torch.float32
    entries = []
    for case in CASES[args.size]:
        measured = costs({kind: partial(build, kind, case, dtype) for kind in LOSSES}, args.repeats)
        entries += compare(
            f"{case.name}: {case.rows} x {case.width} to {case.classes}", "dualtoken", measured
        )
    report("losses", entries)


if __name__ == "__main__":
    main()
