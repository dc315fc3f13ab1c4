"""A run goes on with another number of processes, or at another ZeRO stage, as if it had always been so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dualtoken.tokenizer.errors import UserError
from dualtoken.train.resharding import load_resharded
from dualtoken.train.saved_state import MASTER, OptimizerState, saved_weights

from .conftest import Chain, run_training
from .test_training import assert_same_losses, losses

# Two records per step whatever the processes, nothing drawn at random within a micro-batch; several groups of
# parameters with rates and weight decays of their own.
EXACT = [
    *("--mllm.model.visual_target_fraction", "1.0", "--data.sort_window", "1"),
    *("--optimizer.lr_scale", '{"language_model": 0.5}', "--optimizer.weight_decay", "0.3"),
]


def options(stage: int, processes: int) -> list[str]:
    steps = str(2 // processes)
    return [*EXACT, "--run.zero_stage", str(stage), "--run.gradient_accumulation_steps", steps]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (2, 1)), ((2, 1), (2, 2)), ((0, 2), (0, 1))],
    ids=lambda value: f"stage{value[0]}-{value[1]}p",
)
def test_resumed_by_other_processes_the_losses_are_those_of_the_uninterrupted_run(
    before: tuple[int, int], after: tuple[int, int], chain: Chain, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_training([*chain.recipe("mllm", whole), *options(*before)], before[1])
    first = [*options(*before), "--run.stop_after", "3"]
    run_training([*chain.recipe("mllm", resumed), *first], before[1])
    run_training([*chain.recipe("mllm", resumed), *options(*after)], after[1])
    assert [line["step"] for line in losses(resumed)] == [1, 2, 3, 4, 5, 6]
    assert_same_losses(losses(whole), losses(resumed), 1e-5)
    # Moments and step counters too: the last checkpoints hold the same numbers.
    name = "checkpoints/step-00000006"
    weights = [saved_weights(run / name, stage) for run, stage in ((whole, before[0]), (resumed, after[0]))]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)
    if before[0]:
        one, other = (OptimizerState(r / name, s) for r, s in ((whole, before[0]), (resumed, after[0])))
        assert one.shapes == other.shapes
        assert one.common == other.common
        for parameter in one.shapes:
            assert set(one.divided_keys(parameter)) == {MASTER, "exp_avg", "exp_avg_sq"}
            for key in one.divided_keys(parameter):
                torch.testing.assert_close(
                    other.whole(parameter, key), one.whole(parameter, key), rtol=1e-3, atol=1e-6
                )


def test_stage_0_cannot_be_changed(tmp_path: Path) -> None:
    class Engine:
        def zero_optimization_stage(self) -> int:
            return 2

    with pytest.raises(UserError, match=r"zero_stage 0, this run has 2; .* set it as it was"):
        load_resharded(Engine(), tmp_path, 0)
