"""Questions about small images, few enough for a CPU: toy scenes, easy-VQA, NLVR, clothing.

The held-out images come with the package; scenes are rendered from reserved seeds. An answer is correct if it
equals the reference, except for case, surrounding spaces and full stops.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import Graded, Item, Score, ScoringContext, Task, register
from ..data.held_out import HELD_OUT, Asked, HeldOut, normalise, single_questions
from ..scorers.averages import percent_by


class HeldOutQuestions(Task):
    """Exact match of greedy answers, overall and by kind of question (per cent).

    By default on all questions of the held-out set `records`, at most `most` on one record.
    """

    generation = {"max_new_tokens": 12}
    records = ""
    most: int | None = None

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        """Ids and questions, in order."""
        for record in data.records(self.records):
            for number, asked in enumerate(islice(single_questions(record), self.most)):
                yield f"{record.id}-{number}", asked

    def load(self, root: Path | None, split: str) -> list[Item]:
        return [
            Item(key, one.question, tuple(one.images), {"answer": one.answer, "kind": one.kind})
            for key, one in self.asked(HeldOut(root or HELD_OUT))
        ]

    def grade(self, item: Item, prediction: Any) -> Graded:
        answer = normalise(prediction)
        return Graded(answer or None, float(answer == normalise(item.target["answer"])))

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """Accuracy, also by kind of question if there are several."""
        table = super().score(items, predictions, context)
        kinds = {item.id: [item.target["kind"]] for item in items}
        parts = percent_by(table.scores, kinds, "accuracy, ")
        return replace(table, metrics={**table.metrics, **(parts if len(parts) > 1 else {})})


class SceneQuestions(HeldOutQuestions):
    """The first question on each of `count` scenes, by default as many as the split has."""

    reworded = False

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        count = self.count or next(iter(self.splits.values())) or 0
        for record in data.scenes(count, self.reworded):
            yield record.id, next(single_questions(record))


@register
class Scenes(SceneQuestions):
    name = "scenes"
    summary = "questions about rendered scenes of reserved seeds"
    splits = {"test": 600}


@register
class RewordedScenes(SceneQuestions):
    name = "scenes-reworded"
    summary = "the first third of the questions of scenes, in words that are in no training data"
    splits = {"test": 200}
    reworded = True


@register
class EasyVqa(HeldOutQuestions):
    name = "easyvqa"
    summary = "easy-VQA, three questions each about images held out of its training split"
    splits = {"heldout": 1198}
    records = "easyvqa"
    most = 3


@register
class Nlvr(HeldOutQuestions):
    name = "nlvr"
    summary = "NLVR, sentences about three boxes of shapes, true or false (a part of dev)"
    splits = {"dev-150": 150}
    records = "nlvr"


@register
class Clothing(HeldOutQuestions):
    name = "clothing"
    summary = "photos of clothing, which of ten labels (clothing-dataset-small, a part of test)"
    splits = {"test-150": 150}
    records = "clothing"

    def asked(self, data: HeldOut) -> Iterable[tuple[str, Asked]]:
        for key, one in super().asked(data):
            yield key, replace(one, kind=one.answer)
