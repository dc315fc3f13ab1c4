"""Train the same tiny model at every ZeRO stage, with and without offloading, and compare the losses.

Two processes on the CPU, micro-batches of one record (an image to generate, a question or plain text), so
that every head sometimes has no target on one rank or both. Prints the table of
docs/howto/train_on_a_cluster.md.

Example:
  python -m dualtoken.scripts.compare_zero --steps 50
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from . import cli
from .diagnosis.tiny_training import LOSSES, Log, largest_difference, run_training, write_recipe
from .options import integer

#: (ZeRO stage, what is offloaded) of each run.
SETTINGS = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "all"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=integer(1, 100_000), default=50, help="of each run (default: 50)")


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, args.steps)
        logs = {
            (stage, offload): run_training(
                recipe, folder / f"zero{stage}-{offload}", 2, gpus=False, options=zero_options(stage, offload)
            )
            for stage, offload in SETTINGS
        }
    print(table(logs))
    return 0


def zero_options(stage: int, offload: str) -> list[str]:
    return ["--run.zero_stage", str(stage), "--run.offload", offload]


def table(logs: dict[tuple[int, str], Log]) -> str:
    """Markdown: losses of the last steps, and the largest difference from stage 0 over all steps."""
    reference = logs[0, "none"]
    lines = [
        "| setting | text, last 10 | pixel, last 10 | semantic, last 10 | largest difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (stage, offload), log in logs.items():
        means = []
        for name in LOSSES:
            values = [line[name] for line in log[-10:] if line[name]]  # 0: no target in that step
            means.append(f"{sum(values) / max(len(values), 1):.6f}")
        label = f"ZeRO {stage}" + ("" if offload == "none" else f", {offload} offloaded")
        lines.append(f"| {label} | {' | '.join(means)} | {largest_difference(log, reference):.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_main(__spec__)
