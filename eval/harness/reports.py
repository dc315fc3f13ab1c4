"""Tables and a chart that compare the results of models."""

from collections.abc import Sequence
from typing import Any

from ...common.errors import UserError
from .results import Result


def table(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Headline metrics: "benchmark (split): metric" -> model -> value, None where it has none."""
    rows: dict[str, dict[str, float | None]] = {}
    for result in results:
        label = f"{result['benchmark']} ({result['split']})"
        for metric, value in (result["headline"] or {"incomplete": None}).items():
            cells = rows.setdefault(f"{label}: {metric}", {})
            if result["model"] in cells:
                raise UserError(f"two results of {result['model']} on {label}; give one run of each model")
            cells[result["model"]] = value
    return rows


def markdown(results: Sequence[Result]) -> str:
    """The table in Markdown, with the notes on single metrics below it."""
    rows = table(results)
    models = sorted({result["model"] for result in results})
    lines = [f"| benchmark | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    for label, cells in rows.items():
        values = ["–" if (value := cells.get(model)) is None else f"{value:.2f}" for model in models]
        lines.append(f"| {label} | {' | '.join(values)} |")
    lines.append("")
    for result in results:
        remarks = list(result["notes"])
        if result["n_unparsed"]:
            unparsed = f"{result['n_unparsed']} of {result['n']}"
            remarks.append(f"the official rule finds no answer in {unparsed} predictions")
        lines += [f"- {result['model']}, {result['benchmark']}: {remark}" for remark in remarks]
    return "\n".join(lines).rstrip() + "\n"


def bar_chart(results: Sequence[Result]) -> Any:
    """The headline metrics as bars, a group for each task; a matplotlib Figure."""
    from matplotlib.figure import Figure

    rows = table(results)
    models = sorted({result["model"] for result in results})
    figure = Figure(figsize=(max(5.0, 1.2 + 0.5 * len(rows) * (1 + len(models))), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        positions = [row + (number - (len(models) - 1) / 2) * width for row in range(len(rows))]
        heights = [cells.get(model) or 0.0 for cells in rows.values()]
        bars = axes.bar(positions, heights, width, label=model)
        axes.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=7)
    axes.set_xticks(range(len(rows)), [label.replace(": ", "\n") for label in rows], fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if len(models) > 1:
        axes.legend(frameon=False)
    return figure
