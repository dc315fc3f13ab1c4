"""Tables and a chart of results: several models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.json_files import read_json_object, take, take_count, take_list
from ...common.values import finite_number
from .runner import RESULT

Result = Mapping[str, Any]


def collect_results(folders: Iterable[Path]) -> list[Result]:
    """Every result below the folders. UserError where there is none."""
    folders = list(folders)
    paths = sorted(path for folder in folders for path in folder.rglob(RESULT))
    if not paths:
        names = ", ".join(map(str, folders))
        raise UserError(f"no {RESULT} below {names}; make one with `dualtoken eval run` or `eval score`")
    return [_result(path) for path in paths]


def _result(path: Path) -> Result:
    """One result, with what the tables take from it checked. UserError that names the file and the field."""
    result = read_json_object(path)
    for name in ("benchmark", "split", "model"):
        take(result, name, str, path)
    take_list(result, "notes", lambda note: isinstance(note, str), "texts", path)
    for name in ("n", "n_unparsed"):
        take_count(result, name, path)
    for metric, value in (take(result, "headline", dict, path, None) or {}).items():
        if value is not None:
            finite_number(value, f"{path}: {metric}")
    return result


def table(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Headline figures: row "benchmark (split): metric" -> model -> value; None where there is none."""
    rows: dict[str, dict[str, float | None]] = {}
    for result in results:
        label = f"{result['benchmark']} ({result['split']})"
        for metric, value in (result["headline"] or {"incomplete": None}).items():
            cells = rows.setdefault(f"{label}: {metric}", {})
            if result["model"] in cells:
                raise UserError(
                    f"two results of {result['model']} on {label}; give folders of one run for each model"
                )
            cells[result["model"]] = value
    return rows


def markdown(results: Sequence[Result]) -> str:
    """The table in Markdown, with what is worth knowing about single figures below it."""
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
            remarks.append(
                f"{result['n_unparsed']} of {result['n']} answers hold no answer by the official rule"
            )
        lines += [f"- {result['model']}, {result['benchmark']}: {remark}" for remark in remarks]
    return "\n".join(lines).rstrip() + "\n"


def bar_chart(results: Sequence[Result]) -> Any:
    """The headline figures as bars, a group for each benchmark; a matplotlib Figure."""
    from matplotlib.figure import Figure

    rows = table(results)
    models = sorted({result["model"] for result in results})
    figure = Figure(figsize=(max(5.0, 1.2 + 0.5 * len(rows) * (1 + len(models))), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        places = [row + (number - (len(models) - 1) / 2) * width for row in range(len(rows))]
        heights = [cells.get(model) or 0.0 for cells in rows.values()]
        bars = axes.bar(places, heights, width, label=model)
        axes.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=7)
    axes.set_xticks(range(len(rows)), [label.replace(": ", "\n") for label in rows], fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if len(models) > 1:
        axes.legend(frameon=False)
    return figure
