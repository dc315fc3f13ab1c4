"""The document of an ablation: tables, verdicts and plots from result files alone.

Text between the marks of remarks is written by hand and kept; everything else is regenerated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...common.files import atomic_file, write_text
from ...common.json_files import read_text
from ...common.output_files import check_file
from .metrics import metric_of
from .plan import Group, Plan
from .summary import Results, Spread, judge

BEGIN, END = "<!-- remarks: begin ({name}); written by hand, kept -->", "<!-- remarks: end ({name}) -->"
TITLE = "# Ablations: "
NOTHING = "–"
TEACHER = "the teacher itself"


def check_document(path: Path) -> None:
    """Raise UserError unless a document can be written: the path is free, or an earlier document."""
    check_file(path, {}, lambda file: read_text(file).startswith(TITLE), "--document")


def write_document(results: Results, path: Path, command: str) -> list[Path]:
    """Write the document, and next to it a plot for every group that has results; returns their paths."""
    plan = results.plan
    check_document(path)
    before = read_text(path) if path.is_file() else ""
    written = [path]
    plots: dict[str, str] = {}
    for name, group in plan.groups.items():
        figure = plot(results, group)
        if figure is not None:
            target = path.with_name(f"{path.stem}_{name}.png")
            with atomic_file(target) as partial:
                figure.savefig(partial, dpi=110, metadata={"Software": None})
            plots[name] = target.name
            written.append(target)
    text = document(results, command, plots, before)
    write_text(path, text)
    return written


def document(results: Results, command: str, plots: dict[str, str], before: str = "") -> str:
    """The complete text; remarks are taken from `before`, the first of which is a summary."""
    plan = results.plan
    parts = [f"{TITLE}{plan.name}", _remarks("summary", before), plan.about.strip()]
    parts += [_remarks("all", before), _how(results, command)]
    if any(group.claims for group in plan.groups.values()):
        parts += ["## All claims", _verdicts_of_all(results)]
    for name, group in plan.groups.items():
        parts += [f"## {group.title}", group.about.strip(), table(results, group), _verdicts(results, group)]
        if name in plots:
            parts.append(f"![{group.title}: mean, deviation, and every run as a dot]({plots[name]})")
        parts.append(_remarks(name, before))
    parts += ["## The variants", _variants(plan, results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(results: Results, group: Group) -> str:
    """Variants as rows, metrics as columns: mean ± sample deviation over the seeds."""
    columns = results.metrics(group)
    rows = [["variant", "seeds", *(metric_of(name).label for name in columns)]]
    best = {name: _best(results, group, name) for name in columns}
    for variant in group.variants:
        cells = []
        for name in columns:
            spread = results.spread(variant, name)
            text = NOTHING if spread is None else spread.text(metric_of(name).digits)
            cells.append(f"**{text}**" if variant == best[name] else text)
        seeds = len(results.found.get(variant, {}))
        rows.append([results.plan.variants[variant].title, str(seeds) if seeds else "not run", *cells])
    reference = [results.reference(group.variants, name) for name in columns]
    if any(value is not None for value in reference):
        cells = [
            NOTHING if value is None else f"{value:.{metric_of(name).digits}f}"
            for name, value in zip(columns, reference, strict=True)
        ]
        rows.append([TEACHER, "", *cells])
    return _markdown(rows)


def plot(results: Results, group: Group) -> Any:
    """A matplotlib Figure with a chart for every column that has values; None without any."""
    columns = [n for n in results.metrics(group) if any(results.values(v, n) for v in group.variants)]
    if not columns:
        return None
    from matplotlib.figure import Figure

    across = min(3, len(columns))
    down = -(-len(columns) // across)
    height = 0.9 + 0.32 * len(group.variants)
    figure = Figure(figsize=(4.6 * across, height * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    titles = [_short(results.plan.variants[name].title) for name in group.variants]
    for axes, name in zip(panels, columns, strict=False):
        for row, variant in enumerate(group.variants):
            values = list(results.values(variant, name).values())
            spread = Spread.of(values)
            if spread is None:
                continue
            # Not bars, whose axes would have to begin at 0.
            mark = {"fmt": "o", "markersize": 8, "capsize": 4, "color": f"C{row % 10}"}
            axes.errorbar(spread.mean, row, xerr=spread.deviation, **mark)
            axes.plot(values, [row] * len(values), "k.", markersize=4, zorder=3)
        reference = results.reference(group.variants, name)
        if reference is not None:
            axes.axvline(reference, color="black", linestyle=":", linewidth=1)
        axes.set_title(metric_of(name).label, fontsize=9)
        axes.set_yticks(range(len(titles)), titles, fontsize=8)
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    return figure


def _best(results: Results, group: Group, name: str) -> str | None:
    """The variant with the best mean, if means differ and the metric has a direction."""
    spreads = {variant: results.spread(variant, name) for variant in group.variants}
    means = {variant: spread.mean for variant, spread in spreads.items() if spread is not None}
    sign = metric_of(name).better
    if not sign or len(set(means.values())) < 2:
        return None
    return max(means, key=lambda variant: sign * means[variant])


def _verdicts(results: Results, group: Group) -> str:
    verdicts = [judge(results, claim) for claim in group.claims]
    return "\n".join(f"- {one.claim.text}: **{one.word}**. {one.facts}." for one in verdicts)


def _verdicts_of_all(results: Results) -> str:
    rows = [["claim", "at this scale"]]
    for group in results.plan.groups.values():
        rows += [[one.claim.text, one.word] for one in (judge(results, claim) for claim in group.claims)]
    rule = (
        "Differences are taken seed by seed. A claim *holds* when the difference has its sign with every "
        "seed, *does not hold* when it has it with none, and is *undecided* otherwise, or with one seed only."
    )
    return _markdown(rows) + "\n\n" + rule


def _how(results: Results, command: str) -> str:
    machines = "; ".join(map(str, results.facts("machine"))) or "nothing was run yet"
    seeds = sorted({seed for runs in results.found.values() for seed in runs})
    lines = [
        f"- command: `{command}`",
        f"- machine: {machines}",
        f"- seeds: {', '.join(map(str, seeds)) or 'none yet'}; all variants of a group have the same seeds, "
        "steps and data",
        "- numbers are mean ± sample deviation (n − 1) over the seeds; the best mean of a column is bold",
    ]
    evaluation = results.facts("evaluation")
    if evaluation:
        settings = ", ".join(f"{key}: {_value(value)}" for key, value in evaluation[0].items() if value)
        lines.append(f"- measured on {settings}")
    return "\n".join(lines)


def _variants(plan: Plan, results: Results) -> str:
    bases = [["base", "recipe", "what differs from it"]]
    for name, base in plan.bases.items():
        bases.append([f"`{name}`", f"`{Path(base.recipe).name}`", _overrides(base.overrides)])
    rows = [["variant", "base", "what differs from it", "steps", "minutes a run"]]
    for name, variant in plan.variants.items():
        tokenizer = f"tokenizer and codes of `{variant.tokenizer}`" if variant.tokenizer else ""
        steps = sorted({run["steps"] for run in results.found.get(name, {}).values()})
        minutes = results.minutes(name)
        rows.append(
            [
                f"{variant.title} (`{name}`)",
                f"`{variant.base}`",
                "; ".join(filter(None, (_overrides(variant.overrides), tokenizer))) or NOTHING,
                ", ".join(map(str, steps)) or NOTHING,
                NOTHING if minutes is None else f"{minutes.mean:.1f}",
            ]
        )
    return _markdown(bases) + "\n\n" + _markdown(rows)


def _overrides(overrides: dict[str, Any]) -> str:
    return "; ".join(f"`{key}: {_value(value)}`" for key, value in overrides.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(title: str) -> str:
    return title if len(title) <= 34 else title[:33] + "…"


def _remarks(name: str, before: str) -> str:
    """The marked block of hand-written text, with its previous content."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    found = re.search(re.escape(begin) + r"\n(.*?)" + re.escape(end), before, re.DOTALL)
    return f"{begin}\n{found.group(1) if found else ''}{end}"


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
