"""Tasks whose rule asks a language model to judge answers.

Its replies are written to a file in the folder of the predictions. Scores depend on that file only, so they
can be computed again without the model.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from ...common.errors import UserError
from ...common.files import write_text
from ..harness.task import Item, Task
from .protocols import Source, TextJudge
from .replay import Verdicts

_BATCH = 8


class JudgedTask(Task):
    """A task with a judge of answers; `score` finds its replies in `context.verdicts`."""

    judge_tokens: ClassVar[int]  # maximal length of a reply

    @abstractmethod
    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """The exact prompts of the judge, by the ids of the items for which the rule asks it."""

    @abstractmethod
    def read_reply(self, reply: str) -> dict[str, Any] | None:
        """The verdict in a reply, as fields of the judge's file; None for a reply without one."""

    def second_prompt(self, prompt: str) -> str | None:
        """The prompt after a reply without a verdict; None if the rule does not ask again."""
        return None


def judge_predictions(
    task: JudgedTask,
    items: Sequence[Item],
    predictions: Mapping[str, Any],
    folder: Path,
    judge: Source[TextJudge],
) -> Verdicts:
    """The recorded replies; those that are missing are first requested from the judge, if one is given.

    UserError if the judge's file in `folder` is of another judge or of other predictions.
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
    """Add the missing replies to `rows`, and write the file after every batch."""
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
            record = {"reply": reply, "model": judge.name, "prompt": _checksum(prompts[key])}
            rows[key] = {**(task.read_reply(reply) or {}), **record}
        write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


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
    """Whether a verdict is on this prompt; rows of other programs, which do not record it, are accepted."""
    return row.get("prompt", _checksum(prompt)) == _checksum(prompt)
