"""MM-Vet: a judge gives each answer 0 to 1; figures are means over items, and over items of each capability.

Source: yuweihao/MM-Vet, mm-vet_evaluator.py (export_result); Yu et al., arXiv 2308.02490.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .averages import percent, percent_by


def mmvet_scores(
    grades: Mapping[str, Sequence[float]], capabilities: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """The figures of graded answers, in per cent: "total", its spread "std" over runs, and each capability.

    `grades` are the judge's grades of each item, one for each run (the paper has five), as many for every
    item; `capabilities` are those each item needs. An item counts in full for each of its capabilities.
    """
    runs = min(len(given) for given in grades.values()) if grades else 0
    if not runs:
        return {"total": None, "std": None}
    totals = [percent(given[run] for given in grades.values()) or 0.0 for run in range(runs)]
    mean = sum(totals) / runs
    item_means = {item: sum(given[:runs]) / runs for item, given in grades.items()}
    return {
        "total": mean,
        "std": (sum((total - mean) ** 2 for total in totals) / runs) ** 0.5,
        **percent_by(item_means, capabilities, "capability"),
    }
