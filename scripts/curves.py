"""Plot the losses of one run or several, over a healthy run in grey, and compare the last ones.

A run is its folder, its log.jsonl, or a CSV that --csv wrote. Reference curves of nano's recipes are in
docs/curves. A run need not have ended.

Examples:
  dualtoken curves runs/own --reference docs/curves/nano_sft.csv --output curves.png
  dualtoken curves runs/a runs/b --smooth 20 --output a-and-b.png
  dualtoken curves runs/nano/mllm --csv docs/curves/nano_mllm.csv --output docs/curves/nano_mllm.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError, one_line
from ..common.files import atomic_file
from ..common.output_files import check_file, is_our_image, write_plot
from ..common.packages import require_package
from . import cli, options
from .options import integer

if TYPE_CHECKING:
    from ..train.loss_curves import LossCurves

COLUMNS = 4
MOST_RUNS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=options.path, metavar="RUN", help="folder, log.jsonl or CSV of a run")
    add("--reference", type=options.path, help="the same of a run to compare with, plotted in grey")
    add("--smooth", type=integer(1, 1000), default=1, help="mean of so many log lines (default %(default)s)")
    add("--output", type=options.path, default="curves.png", help="image to write (default %(default)s)")
    add("--csv", type=options.path, help="also write the run's losses there, in 200 rows at most")


def run(args: argparse.Namespace) -> int:
    from ..train.loss_curves import LOG, LossCurves

    if args.csv and len(args.runs) > 1:
        raise UserError(f"--csv writes the losses of one run; {len(args.runs)} are given")
    if len(args.runs) > MOST_RUNS:
        raise UserError(f"{len(args.runs)} runs are given; at most {MOST_RUNS} can be plotted")
    output = options.png_path(args.output, "--output")
    given = [*args.runs, *([args.reference] if args.reference else [])]
    inputs = {"a run to read": [path / LOG if path.is_dir() else path for path in given]}
    check_file(output, inputs, is_our_image)
    if args.csv:
        check_file(args.csv, inputs, is_our_csv, "--csv")
    require_package("matplotlib")
    runs = {str(path): LossCurves.read(path) for path in args.runs}
    reference = LossCurves.read(args.reference).smoothed(args.smooth) if args.reference else None
    if args.csv:
        with atomic_file(args.csv) as partial:
            next(iter(runs.values())).thinned().write_csv(partial)
    runs = {name: curves.smoothed(args.smooth) for name, curves in runs.items()}
    for name, curves in runs.items():
        print(comparison(name, curves, reference))
    write_plot(chart(runs, reference), output, dpi=80)
    print(f"curves: {output}")
    return 0


def is_our_csv(path: Path) -> bool:
    """Whether a file is a table of losses, as --csv writes it."""
    with path.open("rb") as file:
        return file.read(5) == b"step,"


def comparison(name: str, curves: LossCurves, reference: LossCurves | None) -> str:
    """The last losses of a run, and the reference's at the same step where it has them."""
    step = curves.steps[-1]
    lines = [f"{name}, step {step}:"]
    for loss, values in curves.losses.items():
        line = f"  {loss:<22} {values[-1]:>10.4g}"
        if reference is not None and not math.isnan(other := reference.at(loss, step)):
            line += f"   reference {other:>10.4g}"
        lines.append(line)
    if reference is not None and step > reference.steps[-1]:
        lines.append(f"  (the reference ends at step {reference.steps[-1]})")
    return "\n".join(lines)


def chart(runs: dict[str, LossCurves], reference: LossCurves | None) -> Any:
    """A matplotlib Figure with a plot for each loss, logarithmic where all values are above zero."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    names = list(dict.fromkeys(name for curves in runs.values() for name in curves.losses))
    columns = min(len(names), COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, number)
        plotted: list[tuple[LossCurves, dict[str, Any]]] = [
            (curves, {"linewidth": 1.2, "label": label}) for label, curves in runs.items()
        ]
        if reference is not None:
            plotted.insert(0, (reference, {"color": "0.7", "linewidth": 4, "label": "reference"}))
        plotted = [(curves, style) for curves, style in plotted if name in curves.losses]
        for curves, style in plotted:
            axes.plot(curves.steps, curves.losses[name], **style)
        values = [value for curves, _ in plotted for value in curves.losses[name] if not math.isnan(value)]
        if min(values, default=0) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5)))
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(one_line(name, 60), fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        if number == 1 and (reference is not None or len(runs) > 1):
            for text in axes.legend(frameon=False, fontsize=7).get_texts():
                text.set_parse_math(False)  # names of folders are not formulas
    figure.supxlabel("step", fontsize=8)
    return figure


if __name__ == "__main__":
    cli.run_main(__spec__)
