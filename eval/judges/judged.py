"""Benchmarks whose rule asks a language model, and how a local one is asked.

Its replies go to the judge's file beside the predictions, and scores are made from that file only: they can
be repeated without the model.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

from ...common.errors import UserError
from ...common.files import atomic_file
from ..harness.task import Benchmark, Item
from .local_models import local_text_judge
from .replay import judge_facts, read_replay, replay_path

_BATCH = 8


class JudgedBenchmark(Benchmark):
    """A benchmark with a judge's part.

    Class attributes:
        judge_tokens: how long a reply may be.
    """

    judge_tokens: ClassVar[int]

    @abstractmethod
    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """What the judge is asked, word for word, by the ids of those items for which the rule asks it."""

    @abstractmethod
    def read_reply(self, reply: str) -> dict[str, Any] | None:
        """The verdict in a reply, as fields of the judge's file; None if it holds none."""

    def second_prompt(self, prompt: str) -> str | None:
        """What the judge is asked once more after a reply without a verdict; None where the rule does not."""
        return None


class Judge(Protocol):
    """A language model that replies to questions; `name` says which, with its checksum."""

    @property
    def name(self) -> str: ...

    def reply(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """A reply to each prompt."""


def judge_predictions(
    benchmark: JudgedBenchmark, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path
) -> dict[str, Any] | None:
    """Ask the local judge, if one is named, for the verdicts that are not there; what judged, for the result.

    Raises:
        UserError: the judge's file in `folder` is of another judge, or of other predictions.
    """
    prompts = benchmark.judge_prompts(items, predictions)
    rows = read_replay(folder, benchmark.name)
    path = replay_path(folder, benchmark.name)
    stale = [key for key, row in rows.items() if key in prompts and not _belongs(row, prompts[key])]
    if stale:
        raise UserError(f"{path}: the reply on {stale[0]} is on another answer; move the file away")
    judge = local_text_judge() if prompts else None
    if judge is not None:
        ask(benchmark, judge, prompts, path, rows)
    return judge_facts(folder, benchmark.name)


def ask(
    benchmark: JudgedBenchmark,
    judge: Judge,
    prompts: Mapping[str, str],
    path: Path,
    rows: Mapping[str, Mapping[str, Any]],
) -> None:
    """Add to `rows` the replies on those prompts that have none; the file is written after every batch."""
    others = [key for key, row in rows.items() if row.get("model") != judge.name]
    if others:
        raise UserError(
            f"{path} holds verdicts of another judge ({rows[others[0]].get('model', 'not named')}); leave "
            "--judge away to score with them, or move the file away"
        )
    said = dict(rows)
    wanted = [key for key in prompts if key not in said]
    for start in tqdm(range(0, len(wanted), _BATCH), desc="judge", unit="batch", disable=None):
        keys = wanted[start : start + _BATCH]
        replies = _replies(benchmark, judge, [prompts[key] for key in keys])
        for key, reply in zip(keys, replies, strict=True):
            said[key] = {
                **(benchmark.read_reply(reply) or {}),
                "reply": reply,
                "model": judge.name,
                "prompt": _checksum(prompts[key]),
            }
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _replies(benchmark: JudgedBenchmark, judge: Judge, prompts: list[str]) -> list[str]:
    replies = judge.reply(prompts, benchmark.judge_tokens)
    second = {
        place: again
        for place, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        if benchmark.read_reply(reply) is None and (again := benchmark.second_prompt(prompt)) is not None
    }
    if second:
        for place, reply in zip(
            second, judge.reply(list(second.values()), benchmark.judge_tokens), strict=True
        ):
            replies[place] = reply
    return replies


def _checksum(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _belongs(row: Mapping[str, Any], prompt: str) -> bool:
    """Whether a verdict is on this answer, as far as its row says; other programs' rows say nothing."""
    return row.get("prompt", _checksum(prompt)) == _checksum(prompt)
