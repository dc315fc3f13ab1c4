"""Averages that are None where there is nothing to average."""

from collections.abc import Iterable, Mapping, Sequence


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else None


def percent(scores: Iterable[float]) -> float | None:
    """100 × the mean of scores in 0…1; None for no scores."""
    values = list(scores)
    return 100 * sum(values) / len(values) if values else None


def percent_by(
    scores: Mapping[str, float], groups: Mapping[str, Sequence[str]], prefix: str
) -> dict[str, float | None]:
    """`percent` of each group. `groups` names the groups of each id; a result is called prefix + group."""
    members: dict[str, list[float]] = {}
    for key, score in scores.items():
        for group in groups.get(key, ()):
            members.setdefault(group, []).append(score)
    return {f"{prefix}{group}": percent(values) for group, values in sorted(members.items())}
