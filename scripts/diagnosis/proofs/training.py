"""Every precision and ZeRO stage trains the same model, and a killed run resumes as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ..tiny_training import LOSSES, Log, kill_training, largest_difference, run_training, write_recipe
from .evidence import Evidence, Row, Setting, at_most, evidence

STEPS = 20
#: In fp32 the stages differ by the order of sums.
STAGE_TOLERANCE = 1e-3
#: Relative difference of the mean loss in bf16 from that in fp32.
BF16_TOLERANCE = 0.05


def prove(setting: Setting) -> Evidence:
    return evidence(_rows(setting))


def _rows(setting: Setting) -> Iterator[Row]:
    recipe = write_recipe(setting.folder, STEPS)

    def train(name: str, *options: str) -> Log:
        return run_training(recipe, setting.folder / name, setting.gpus, setting.on_gpu, options)

    reference = train("fp32-zero0", "--run.zero_stage", "0")
    yield Row("loss after the last step, fp32, ZeRO 0", round(_mean(reference[-1:]), 4))
    for stage in (1, 2, 3):
        log = train(f"fp32-zero{stage}", "--run.zero_stage", str(stage))
        yield at_most(
            f"largest difference of a loss, fp32, ZeRO {stage}",
            largest_difference(log, reference),
            STAGE_TOLERANCE,
        )
    for precision, stages in (("bf16_autocast", (0, 2)), ("bf16", (1, 2, 3))):
        for stage in stages:
            log = train(
                f"{precision}-zero{stage}", "--run.precision", precision, "--run.zero_stage", str(stage)
            )
            difference = abs(_mean(log) / _mean(reference) - 1.0)
            yield at_most(
                f"relative difference of the mean loss, {precision}, ZeRO {stage}",
                round(difference, 5),
                BF16_TOLERANCE,
            )
    yield from _resumed_rows(setting, recipe)


def _resumed_rows(setting: Setting, recipe: Path) -> Iterator[Row]:
    """A run that is killed in the middle and started again, against one that ran through."""
    for stage in (2, 3):
        # Few log lines are lost in a kill when every step is saved.
        options = ("--run.zero_stage", str(stage), "--run.save_every", "1")
        processes, on_gpu = setting.gpus, setting.on_gpu
        through = run_training(recipe, setting.folder / f"through{stage}", processes, on_gpu, options)
        output = setting.folder / f"killed{stage}"
        kill_training(recipe, output, processes, on_gpu, options, after=STEPS // 2)
        resumed = run_training(recipe, output, processes, on_gpu, options)
        difference = largest_difference(resumed, through)
        yield at_most(
            f"largest difference of a loss after a kill and a resume, ZeRO {stage}", difference, 1e-6
        )


def _mean(log: Log) -> float:
    values = [line[name] for line in log for name in LOSSES if line[name]]
    return sum(values) / len(values) if values else math.nan
