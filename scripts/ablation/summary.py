"""Means, sample deviations and verdicts over the seeds of an ablation, from its result files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .metrics import metric_of
from .plan import Claim, Group, Plan
from .recipes import Folders
from .runs import RESULT, read_result


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation (n − 1) of n numbers; no deviation of one."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        return cls(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )

    def text(self, digits: int, sign: bool = False) -> str:
        """ "28.41 ± 0.12", or "28.41" for one value."""
        plus = "+" if sign else ""
        mean = f"{self.mean:{plus}.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim: "holds", "does not hold", "undecided" or "not measured"."""

    claim: Claim
    word: str
    facts: str


@dataclass(frozen=True)
class Results:
    """The result files of a plan's runs, by variant and seed."""

    plan: Plan
    found: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, plan: Plan, folders: Folders) -> Results:
        """All results, of any seed. UserError for a damaged file."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for variant in plan.variants:
            for path in sorted(folders.runs.glob(f"{variant}/seed-*/{RESULT}")):
                result = read_result(path)
                found.setdefault(variant, {})[result["seed"]] = result
        return cls(plan, {name: dict(sorted(seeds.items())) for name, seeds in found.items()})

    def values(self, variant: str, metric: str) -> dict[int, float]:
        """The metric by seed, where it was measured."""
        runs = self.found.get(variant, {})
        values = {seed: run["figures"].get(metric) for seed, run in runs.items()}
        return {seed: float(value) for seed, value in values.items() if value is not None}

    def spread(self, variant: str, metric: str) -> Spread | None:
        return Spread.of(list(self.values(variant, metric).values()))

    def reference(self, variants: Iterable[str], metric: str) -> float | None:
        """The teacher's own value; the same for all runs of one teacher."""
        for variant in variants:
            for run in self.found.get(variant, {}).values():
                value = run.get("reference", {}).get(metric)
                if value is not None:
                    return float(value)
        return None

    def metrics(self, group: Group) -> list[str]:
        """The columns of a group's table; "NAME/*" becomes all measured parts."""
        runs = [run for variant in group.variants for run in self.found.get(variant, {}).values()]
        present = {name for run in runs for name, value in run["figures"].items() if value is not None}
        columns: list[str] = []
        for metric in group.metrics:
            if metric.endswith("/*"):
                columns += sorted(name for name in present if name.startswith(metric[:-1]))
            else:
                columns.append(metric)
        return columns

    def facts(self, key: str) -> list[Any]:
        """The different values of a field over all runs, in order of appearance."""
        values = [run[key] for seeds in self.found.values() for run in seeds.values()]
        return [value for number, value in enumerate(values) if value not in values[:number]]

    def minutes(self, variant: str) -> Spread | None:
        """Minutes of a run."""
        return Spread.of([sum(run["minutes"].values()) for run in self.found.get(variant, {}).values()])


def judge(results: Results, claim: Claim) -> Verdict:
    """Compare two variants seed by seed.

    With two seeds or more a claim holds when the difference has the claimed sign for every seed, and does not
    hold when it has it for none; otherwise it is undecided.
    """
    better, than = (results.values(name, claim.metric) for name in (claim.better, claim.than))
    seeds = sorted(set(better) & set(than))
    metric = metric_of(claim.metric)
    if not seeds:
        return Verdict(claim, "not measured", "no seed has both")
    sign = -1 if metric.better < 0 else 1
    differences = [better[seed] - than[seed] for seed in seeds]
    spread = Spread.of(differences)
    assert spread is not None
    agreeing = sum(sign * difference > 0 for difference in differences)
    if len(seeds) == 1 or 0 < agreeing < len(seeds):
        word = "undecided"
    else:
        word = "holds" if agreeing else "does not hold"
    titles = results.plan.variants
    facts = (
        f"{metric.label}: “{titles[claim.better].title}” minus “{titles[claim.than].title}” is "
        f"{spread.text(metric.digits, sign=True)}{metric.unit}"
        f"{' (less is better)' if metric.better < 0 else ''}; the claimed sign in {agreeing} of {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''}"
    )
    return Verdict(claim, word, facts)
