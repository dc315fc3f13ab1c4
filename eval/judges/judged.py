"""Tasks whose rule asks a language model, and how a local one is asked.

Its replies go to a file in the folder of the predictions, and scores are made from that file only: they can
be repeated without the model.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from ...common.errors import UserError
from ...common.files import atomic_file
from ..harness.task import Item, Task
from .protocols import Source, TextJudge
from .replay import Verdicts

_BATCH = 8


class JudgedTask(Task):
    """A task with a judge's part; `score` finds its replies in `context.verdicts`.

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


def judge_predictions(
    task: JudgedTask,
    items: Sequence[Item],
    predictions: Mapping[str, Any],
    folder: Path,
    judge: Source[TextJudge],
) -> Verdicts:
    """The recorded replies, after asking the judge, if one is given, for those that are not there.

    Raises:
        UserError: the judge's file in `folder` is of another judge, or of other predictions.
    """
    prompts = task.judge_prompts(items, predictions)
    verdicts = Verdicts.read(folder, task.name)
    rows = dict(verdicts.rows or {})
    stale = [key for key, row in rows.items() if key in prompts and not _belongs(row, prompts[key])]
    if stale:
        raise UserError(f"{verdicts.path}: the reply on {stale[0]} is on another answer; move the file away")
    asked = judge() if prompts else None
    if asked is None:
        return verdicts
    _ask(task, asked, prompts, verdicts.path, rows)
    return Verdicts.read(folder, task.name)


def _ask(
    task: JudgedTask, judge: TextJudge, prompts: Mapping[str, str], path: Path, rows: dict[str, Any]
) -> None:
    """Add to `rows` the replies on those prompts that have none; the file is written after every batch."""
    others = [key for key, row in rows.items() if row.get("model") != judge.name]
    if others:
        raise UserError(
            f"{path} holds verdicts of another judge ({rows[others[0]].get('model', 'not named')}); leave "
            "--judge away to score with them, or move the file away"
        )
    wanted = [key for key in prompts if key not in rows]
    for start in tqdm(range(0, len(wanted), _BATCH), desc="judge", unit="batch", disable=None):
        keys = wanted[start : start + _BATCH]
        replies = _replies(task, judge, [prompts[key] for key in keys])
        for key, reply in zip(keys, replies, strict=True):
            rows[key] = {
                **(task.read_reply(reply) or {}),
                "reply": reply,
                "model": judge.name,
                "prompt": _checksum(prompts[key]),
            }
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _replies(task: JudgedTask, judge: TextJudge, prompts: list[str]) -> list[str]:
    replies = judge.reply(prompts, task.judge_tokens)
    second = {
        index: again
        for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        if task.read_reply(reply) is None and (again := task.second_prompt(prompt)) is not None
    }
    if second:
        answers = judge.reply(list(second.values()), task.judge_tokens)
        for index, reply in zip(second, answers, strict=True):
            replies[index] = reply
    return replies


def _checksum(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _belongs(row: Mapping[str, Any], prompt: str) -> bool:
    """Whether a verdict is on this answer, as far as its row states; rows of other programs do not."""
    return row.get("prompt", _checksum(prompt)) == _checksum(prompt)
