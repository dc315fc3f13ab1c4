"""Between two updates the host never waits for the device, so that a GPU always has work queued."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dualtoken.tokenizer.quantizer import codebook
from dualtoken.train.trainer import Trainer

from .conftest import Chain, train_here
from .sync_spy import SyncSpy


@pytest.mark.parametrize("name", ["contrastive", "tokenizer", "mllm"])
def test_no_micro_batch_waits_for_the_device(
    name: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the loaded batch to the complete gradient; the first step may fill caches."""
    spies: dict[int, SyncSpy] = {}
    call = Trainer.call

    def watched(trainer: Trainer, hook: str, *given: Any) -> None:
        if hook == "after_loading":
            spies[trainer.step] = SyncSpy()
            spies[trainer.step].__enter__()
        if hook == "before_update":
            spies[trainer.step].__exit__(None, None, None)
        call(trainer, hook, *given)

    monkeypatch.setattr(Trainer, "call", watched)
    # numpy's, on a CPU only.
    monkeypatch.setattr(codebook, "_argmin", lambda distances: distances.argmin(dim=1))
    options = ["--run.gradient_accumulation_steps", "2", "--run.zero_stage", "2", "--run.log_every", "3"]
    assert train_here([*chain.recipe(name, tmp_path / "run"), *options]) == 0
    assert len(spies) == 6
    found = [place for step in range(1, 6) for place in spies[step].found]
    # transformers looks into the mask once in each pass, before the first layer.
    foreign = [place for place in found if "masking_utils" in place]
    assert len(foreign) <= 10
    assert sorted(set(found) - set(foreign)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["contrastive", "tokenizer", "mllm"])
def test_torch_reports_no_wait_within_a_step_on_a_gpu(
    name: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Trainer.call

    def watched(trainer: Trainer, hook: str, *given: Any) -> None:
        if hook == "after_loading" and trainer.step:
            torch.cuda.set_sync_debug_mode("warn")
        if hook == "before_update":
            torch.cuda.set_sync_debug_mode("default")
        call(trainer, hook, *given)

    monkeypatch.setattr(Trainer, "call", watched)
    options = ["--run.gradient_accumulation_steps", "2", "--run.zero_stage", "2", "--run.log_every", "3"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train_here([*chain.recipe(name, tmp_path / "run"), *options]) == 0
    waits = [one for one in caught if "synchronizing CUDA operation" in str(one.message)]
    places = {f"{one.filename}:{one.lineno}" for one in waits}
    assert [place for place in sorted(places) if "/transformers/" not in place] == []
