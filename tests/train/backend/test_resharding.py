"""A run resumes with another number of processes, or at another ZeRO stage, as if it had always been so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from deepspeed.utils.tensor_fragment import fragment_address

from dualtoken.common.errors import UserError
from dualtoken.train.backend.deepspeed import MASTER
from dualtoken.train.backend.resharding import load_resharded
from dualtoken.train.backend.saved_state import OptimizerState, saved_weights
from dualtoken.train.config.reading import parse_recipe

from ..conftest import Chain, run_training
from ..test_training import assert_same_losses, losses

# Two records per step for any number of processes, nothing random within a micro-batch; several groups of
# parameters with rates and weight decays of their own.
EXACT = [
    *("--mllm.model.visual_target_fraction", "1.0", "--data.sort_window", "1"),
    *("--optimizer.lr_scale", '{"language_model": 0.5}', "--optimizer.weight_decay", "0.3"),
]


def options(stage: int, processes: int) -> list[str]:
    steps = str(2 // processes)
    return [*EXACT, "--run.zero_stage", str(stage), "--run.gradient_accumulation_steps", steps]


def train(chain: Chain, output: Path, stage: int, processes: int, *more: str) -> None:
    try:
        run_training([*chain.recipe("mllm", output), *options(stage, processes), *more], processes)
    except AssertionError as error:
        # At stage 3 an interpreter sometimes aborts at its exit, when everything is done and written.
        if stage != 3 or "terminate called without an active exception" not in str(error):
            raise


SETTINGS = [
    ((1, 2), (1, 1)),
    ((1, 1), (2, 2)),
    ((2, 2), (2, 1)),
    ((2, 1), (2, 2)),
    ((0, 2), (0, 1)),
    ((3, 2), (3, 1)),
    ((3, 1), (3, 2)),
    ((2, 2), (3, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    SETTINGS,
    ids=lambda value: f"stage{value[0]}-{value[1]}p",
)
def test_resumed_by_other_processes_the_losses_are_those_of_the_uninterrupted_run(
    before: tuple[int, int], after: tuple[int, int], chain: Chain, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    if 3 in (before[0], after[0]) and not allows_stage_3(chain.recipe("mllm", whole)):
        pytest.skip("run.zero_stage 3 is not for training yet")
    train(chain, whole, *before)
    train(chain, resumed, *before, "--run.stop_after", "3")
    train(chain, resumed, *after)
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
                    other.complete(parameter, key), one.complete(parameter, key), rtol=1e-3, atol=1e-6
                )


def allows_stage_3(recipe: list[str]) -> bool:
    try:
        parse_recipe([*recipe, "--run.zero_stage", "3"])
    except UserError:
        return False
    return True


def save_files(folder: Path, stage: int, momentum: bool = False) -> dict[str, torch.Tensor]:
    """Files as two ranks write them: one group of the parameters a (2 x 3) and b (5), numbered from 0.

    Stage 1 and 2 cut the group's vector in halves (6, and 5 with 1 of padding), stage 3 each parameter.
    """
    shapes = {"a": torch.Size((2, 3)), "b": torch.Size((5,))}
    module = {"param_shapes": [shapes], "module": {"n": torch.ones(1)}, "buffer_names": ["n"]}
    module |= {"shared_params": {"tied": "a"}, "frozen_param_shapes": {"frozen": torch.Size((3,))}}
    for rank in range(2):  # with a padding of 1
        fragment = {"frozen": torch.tensor([2.0 * rank, 2.0 * rank + 1])}
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        torch.save(
            {**module, "frozen_param_fragments": fragment}, folder / f"{prefix}mp_rank_00_model_states.pt"
        )
    numbers = torch.arange(12.0)
    if stage == 3:
        parts = [torch.cat([numbers[3 * r : 3 * r + 3], numbers[6 + 3 * r : 9 + 3 * r]]) for r in range(2)]
    else:
        parts = [numbers[:6], numbers[6:]]
    for rank, part in enumerate(parts):
        state = {0: {"exp_avg": part + 100, "exp_avg_sq": part + 200, "step": torch.tensor(7.0)}}
        if momentum:
            state[0]["momentum_buffer"] = torch.zeros(3)
        place = fragment_address(start=0, numel=6 - rank)
        saved = (
            {"fp32_flat_groups": [part], "optimizer_state_dict": {"state": state}}
            if stage == 3
            else {
                "single_partition_of_fp32_groups": [part],
                "base_optimizer_state": {"state": state},
                "param_slice_mappings": [{"ab"[rank]: place}],
            }
        )
        torch.save(
            {"optimizer_state_dict": saved}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        )
    return {"a": numbers[:6], "b": numbers[6:11]}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_complete_tensors_are_assembled_from_the_files_of_all_ranks(stage: int, tmp_path: Path) -> None:
    expected = save_files(tmp_path, stage)
    saved = OptimizerState(tmp_path, stage)
    for name, numbers in expected.items():
        assert saved.complete(name, MASTER).equal(numbers)
        assert saved.complete(name, "exp_avg").equal(numbers + 100)
        assert saved.complete(name, "exp_avg_sq").equal(numbers + 200)
        assert saved.common[name] == {"step": 7.0}
    if stage == 3:
        weights = saved_weights(tmp_path, 3)
        assert set(weights) == {"a", "b", "n", "frozen", "tied"}
        assert weights["a"].equal(expected["a"].view(2, 3))
        assert weights["tied"].equal(weights["a"])
        assert weights["frozen"].tolist() == [0, 1, 2]
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match=r"of the ranks \[1\] only"):
        OptimizerState(tmp_path, stage)


class Stage2:
    def zero_optimization_stage(self) -> int:
        return 2


def test_momentum_of_muon_is_refused(tmp_path: Path) -> None:
    save_files(tmp_path, 2, momentum=True)
    with pytest.raises(
        UserError, match=r"momentum_buffer cannot be partitioned again.*the same number of processes"
    ):
        load_resharded(Stage2(), tmp_path, 2)


def test_files_that_hold_code_are_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="cannot be read as a file of a checkpoint"):
        saved_weights(tmp_path, 2)
    assert not (tmp_path / "ran").exists()


def test_stage_0_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"zero_stage 0, this run has 2; .* set it back"):
        load_resharded(Stage2(), tmp_path, 0)


def test_a_part_of_a_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    expected = save_files(tmp_path, 3)
    saved = OptimizerState(tmp_path, 3)
    for name, numbers in expected.items():
        for first in range(len(numbers)):
            for count in range(len(numbers) - first + 1):
                part = saved.part(name, MASTER, first, count)
                assert part.equal(numbers[first : first + count])
    second = saved._pieces["a"][MASTER][1]
    saved._pieces["a"][MASTER][1] = cast(Any, Untouchable(len(second)))
    assert saved.part("a", MASTER, 0, 3).equal(expected["a"][:3])


class Untouchable:
    """A piece in a file that must not be read."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_only_the_weights_that_are_taken_are_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_files(tmp_path, 3)
    made: list[str] = []
    complete = OptimizerState.complete

    def noted(state: OptimizerState, name: str, key: str) -> torch.Tensor:
        made.append(name)
        return complete(state, name, key)

    monkeypatch.setattr(OptimizerState, "complete", noted)
    weights = saved_weights(tmp_path, 3)
    assert len(weights) == 5
    assert made == []
    assert weights["b"].numel() == 5
    assert made == ["b"]
