"""Questions about drawn pictures, small enough for a CPU: scenes, easy-VQA, NLVR.

The held-out images come with the package; scenes are drawn anew from reserved seeds. An answer is right when
it is the reference's words, but for capitals, surrounding space and a full stop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ..data.held_out import HELD_OUT, Asked, HeldOut, normalise, single_questions
from ..harness.registry import register
from ..harness.task import Benchmark, Item, Score
from ..scorers.averages import percent


class SmallQuestions(Benchmark):
    """Exact match of greedy answers, in all and by kind of question (percent)."""

    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 12}

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        """Ids and questions, in order."""
        raise NotImplementedError

    def load(self, root: Path | None, split: str) -> list[Item]:
        return [
            Item(
                id=key,
                prompt=asked.question,
                images=tuple(asked.images),
                target={"answer": asked.answer, "kind": asked.kind},
            )
            for key, asked in self.asked(HeldOut(root or HELD_OUT))
        ]

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        right = {
            item.id: float(normalise(predictions[item.id]) == normalise(item.target["answer"]))
            for item in items
        }
        kinds: dict[str, list[float]] = defaultdict(list)
        for item in items:
            kinds[item.target["kind"]].append(right[item.id])
        metrics = {"accuracy": percent(right.values())}
        if len(kinds) > 1:
            metrics |= {f"accuracy, {kind}": percent(values) for kind, values in sorted(kinds.items())}
        empty = sum(not normalise(predictions[item.id]) for item in items)
        return Score("accuracy", metrics, unparsed=empty, correct=right)


@register
class Scenes(SmallQuestions):
    name = "scenes"
    summary = "questions about drawn scenes of reserved seeds"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 600}

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        for record in data.scenes(600):
            yield record.id, next(single_questions(record))


@register
class EasyVqa(SmallQuestions):
    name = "easyvqa"
    summary = "easy-VQA, three questions each about images held out of its training split"
    splits: ClassVar[Mapping[str, int | None]] = {"heldout": 1198}

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        for record in data.records("easyvqa"):
            for number, asked in enumerate(islice(single_questions(record), 3)):
                yield f"{record.id}-{number}", asked


@register
class Nlvr(SmallQuestions):
    name = "nlvr"
    summary = "NLVR, sentences about three boxes of shapes, true or false (a part of dev)"
    splits: ClassVar[Mapping[str, int | None]] = {"dev-150": 150}

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        for record in data.records("nlvr"):
            for number, asked in enumerate(single_questions(record)):
                yield f"{record.id}-{number}", asked
