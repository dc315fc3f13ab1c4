"""A rejected step of the tokenizer leaves its codebooks, and the checkpoints after it, as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dualtoken.train.backend.saved_state import saved_weights
from dualtoken.train.objectives.tokenizer.objective import TokenizerObjective

from ..conftest import Chain, train_here

BROKEN_STEP = 3  # counted from 0; quantized since step 2, and the second with restarts


def test_a_batch_that_is_not_finite_leaves_the_codebooks_of_the_checkpoint_before(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, passes = TokenizerObjective.forward, []

    def breaking(self: TokenizerObjective, **batch: Any) -> Any:
        passes.append(self._step)
        if self._step == BROKEN_STEP and passes.count(BROKEN_STEP) == 2:  # its second micro-batch
            batch["pixel_values"] = torch.full_like(batch["pixel_values"], math.nan)
        return forward(self, **batch)

    monkeypatch.setattr(TokenizerObjective, "forward", breaking)
    options = [
        "--run.save_every",
        "1",
        "--run.keep_checkpoints",
        "9",
        "--run.gradient_accumulation_steps",
        "2",
    ]
    assert train_here([*chain.recipe("tokenizer", tmp_path / "run"), *options]) == 0
    skipped = [json.loads(line) for line in (tmp_path / "run/skipped-steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in skipped] == [BROKEN_STEP + 1]
    steps = [tmp_path / f"run/checkpoints/step-{step:08d}" for step in (3, 4, 5)]
    before, after, later = (saved_weights(step, 0) for step in steps)
    assert all(torch.equal(before[name], after[name]) for name in before)
    codebooks = [name for name in before if "codebooks" in name]
    assert all(later[name].isfinite().all() for name in codebooks)
    updates = [int(state["model.pixel_quantizer.codebooks.num_updates"]) for state in (before, after, later)]
    assert updates == [1, 1, 2]  # one for each accepted step, of two micro-batches
