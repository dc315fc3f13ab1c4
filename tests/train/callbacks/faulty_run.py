"""Runs a recipe with a fault put in: `python faulty_run.py FAULT RANK STEPS RECIPE …`.

FAULT (nan: a non-finite loss; spike: a gradient a thousand times too large; kill: SIGKILL) strikes on
this rank at these steps (a list with commas, from 1; one micro-batch a step).
"""

import os
import signal
import sys
from typing import Any

from dualtoken.scripts.cli import run_command
from dualtoken.train.objectives.base import LossTerm
from dualtoken.train.objectives.mllm import MllmObjective

FACTORS = {"nan": float("nan"), "spike": 1000.0}


def put_in(fault: str, steps: set[int]) -> None:
    forward_of_class, calls = MllmObjective.forward, 0

    def forward(self: MllmObjective, **batch: Any) -> dict[str, LossTerm]:
        nonlocal calls
        calls += 1
        terms = forward_of_class(self, **batch)
        if calls not in steps:
            return terms
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return {name: LossTerm(term.total * FACTORS[fault], term.weight) for name, term in terms.items()}

    MllmObjective.forward = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    faults, rank, steps, *arguments = sys.argv[1:]
    for one, where in zip(faults.split("+"), steps.split("+"), strict=True):
        if os.environ.get("RANK", "0") == rank:
            put_in(one, {int(one) for one in where.split(",")})
    sys.exit(run_command("train", arguments))
