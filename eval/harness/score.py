"""Scores of a task: its metrics, and for each item the parsed prediction and its score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..scorers.averages import percent, percent_by

# name of a division (such as "subject") -> item id -> the groups the item belongs to
Divisions = Mapping[str, Mapping[str, Sequence[str]]]


class Graded(NamedTuple):
    """One item: the answer that the rule finds in its prediction, and its score.

    `parsed` is a JSON value, None where the rule finds no answer; `score` is mostly 0…1, None without one.
    """

    parsed: Any
    score: float | None


@dataclass(frozen=True)
class Score:
    """The metrics of one task.

    Args:
        headline: the name of the metric to quote.
        metrics: by name, in the unit of the official table; None for one that cannot be computed, with the
            reason in `notes`.
        unparsed: how many predictions hold no answer by the official rule.
        notes: remarks that the metrics cannot be understood without.
        items: by item id, for `samples.jsonl`.
    """

    headline: str
    metrics: Mapping[str, float | None]
    unparsed: int = 0
    notes: tuple[str, ...] = ()
    items: Mapping[str, Graded] = field(default_factory=dict, repr=False)

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the items that have one."""
        return {key: graded.score for key, graded in self.items.items() if graded.score is not None}


def accuracy_score(
    items: Mapping[str, Graded], divisions: Divisions | None = None, notes: tuple[str, ...] = ()
) -> Score:
    """The headline "accuracy" in per cent over all items, and that of each group ("subject/Art").

    An item whose `parsed` is None counts as unparsed.
    """
    unparsed = sum(graded.parsed is None for graded in items.values())
    score = Score("accuracy", {}, unparsed, notes, items)
    metrics = {"accuracy": percent(score.scores.values())}
    for division, groups in (divisions or {}).items():
        metrics.update(percent_by(score.scores, groups, f"{division}/"))
    return Score("accuracy", metrics, unparsed, notes, items)


def null_score(metric: str, reason: str) -> Score:
    """A score whose only metric cannot be computed, for the reason given."""
    return Score(metric, {metric: None}, notes=(f"{metric} is null: {reason}",))


def hidden_answers(server: str) -> Score:
    """The score of a split whose answers are not public; `server` is where its predictions are scored."""
    reason = f"the answers of this split are not public; send the predictions to {server}"
    return Score("accuracy", {"accuracy": None}, notes=(reason,))
