"""From what single items scored to the table of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..scorers.averages import percent, percent_by
from .task import Score

# name of a division (such as "subject") -> item id -> the groups the item belongs to
Divisions = Mapping[str, Mapping[str, Sequence[str]]]


def accuracy_table(
    correct: Mapping[str, float],
    divisions: Divisions | None = None,
    unparsed: int = 0,
    notes: tuple[str, ...] = (),
) -> Score:
    """The headline "accuracy" in per cent over all items, and of each group ("subject/Art")."""
    metrics = {"accuracy": percent(correct.values())}
    for division, groups in (divisions or {}).items():
        metrics.update(percent_by(correct, groups, division))
    return Score("accuracy", metrics, unparsed, notes, correct)


def choice_table(
    picked: Mapping[str, str | None],
    keys: Mapping[str, str],
    divisions: Divisions | None = None,
    notes: tuple[str, ...] = (),
) -> Score:
    """`accuracy_table` of picked options; an answer that picks none (None) is wrong and unparsed."""
    correct = {key: float(letter == keys[key]) for key, letter in picked.items()}
    return accuracy_table(correct, divisions, sum(letter is None for letter in picked.values()), notes)


def no_keys(split: str, where: str) -> Score:
    """The score of a split whose answers are not public."""
    reason = f"the answers of {split} are not public; send the predictions to {where}"
    return Score("accuracy", {"accuracy": None}, notes=(reason,))
