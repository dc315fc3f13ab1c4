"""Averages that are None where there is nothing to average."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


def mean(values: Iterable[float]) -> float | None:
    """The mean; None without values."""
    found = list(values)
    return sum(found) / len(found) if found else None


def percent(scores: Iterable[float]) -> float | None:
    """100 × the mean of scores in 0…1; None without scores."""
    values = list(scores)
    return 100 * sum(values) / len(values) if values else None


def percent_by(
    scores: Mapping[str, float], groups: Mapping[str, Sequence[str]], prefix: str
) -> dict[str, float | None]:
    """`percent` of each group, named prefix + group; `groups` holds the groups of each id."""
    members = defaultdict[str, list[float]](list)
    for key, score in scores.items():
        for group in groups.get(key, ()):
            members[group].append(score)
    return {f"{prefix}{group}": percent(values) for group, values in sorted(members.items())}
