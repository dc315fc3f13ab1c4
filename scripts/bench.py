"""Speed and memory of the package against plain references, measured in turns on this machine.

Without a name the benchmarks are listed. Each of the named ones (or "all") runs in a process of its own; the
table shows how many times as fast as its reference each case is, and which share of the reference's memory it
takes beyond the weights. On two CPU cores each takes a minute or two.

Examples:
  dualtoken bench
  dualtoken bench losses train_step --output results.json
  dualtoken bench all --size full
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.errors import UserError
from ..common.files import atomic_file
from .cli import unknown_name

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
ALL = "all"
COLUMNS = ("benchmark", "case", "against", "speed", "memory", "seconds")
ERROR_LINES = 12  # of a benchmark that ends with an error


@dataclass(frozen=True)
class Benchmark:
    """A file of `benchmarks/`, and the first line of its docstring."""

    path: Path
    summary: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command to `parser`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run, or all")
    parser.add_argument(
        "--size",
        choices=("small", "full"),
        default="small",
        help="small for two CPU cores, full for a GPU (default: small)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the results as a JSON list")


def run(args: argparse.Namespace) -> int:
    """List, or run and print a table. 1 when a benchmark ended with an error; the others still count."""
    known = find_benchmarks(FOLDER)
    if not args.names:
        print("\n".join(f"  {name:<14} {benchmark.summary}" for name, benchmark in known.items()))
        return 0
    names = chosen(args.names, list(known))
    check_output(args.output)
    results: list[dict[str, Any]] = []
    for result in measured({name: known[name] for name in names}, args.size):
        results.append(result)
        if args.output is not None:  # after each, as all together take long
            with atomic_file(args.output) as temporary:
                temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(report(results))
    return int(any("error" in result for result in results))


def find_benchmarks(folder: Path) -> dict[str, Benchmark]:
    """Every benchmark of a folder by name: the files that have a `main`; none of them is imported."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = Benchmark(path, (ast.get_docstring(module) or "").split("\n")[0])
    return found


def chosen(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The benchmarks that are meant, each once. UserError for a name that there is not."""
    for name in names:
        if name != ALL and name not in known:
            raise UserError(unknown_name("benchmark", name, [*known, ALL]))
    return list(known) if ALL in names else list(dict.fromkeys(names))


def check_output(path: Path | None) -> None:
    """UserError for a place that cannot be written to, before minutes of measuring."""
    if path is not None and (path.suffix != ".json" or path.is_dir()):
        raise UserError(f"--output {path}: the results are JSON, so name a file that ends in .json")


def measured(benchmarks: Mapping[str, Benchmark], size: str) -> Iterator[dict[str, Any]]:
    """The result of each, one after the other; {"benchmark", "error"} of one that fails."""
    with tqdm(benchmarks.items(), unit="benchmark", disable=not sys.stderr.isatty()) as bar:
        for name, benchmark in bar:
            bar.set_description(name)
            yield run_benchmark(name, benchmark, size)


def run_benchmark(name: str, benchmark: Benchmark, size: str) -> dict[str, Any]:
    """The JSON object on the last line that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(benchmark.path), "--size", size],
        capture_output=True,
        text=True,
        # The benchmark finds the package where this process has found it.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    tqdm.write("\n".join(lines[-ERROR_LINES:]), file=sys.stderr)
    return {"benchmark": name, "error": lines[-1]}


def report(results: Iterable[Mapping[str, Any]]) -> str:
    """All cases as a table, what else was measured under it, and the machine."""
    rows, notes = [], []
    for result in results:
        if "error" in result:
            notes.append(f"{result['benchmark']} failed: {result['error']}")
            continue
        for case in result["cases"]:
            cells = [_cell(case.get(column)) for column in COLUMNS[2:]]
            rows.append([result["benchmark"], str(case.get("name", "")), *cells])
        further = {
            key: value for key, value in result.items() if key not in ("benchmark", "machine", "cases")
        }
        notes += [f"{result['benchmark']}, {key}: {_cell(value)}" for key, value in further.items()]
        notes.append(f"{result['benchmark']} on {result['machine']}")
    return "\n".join([*(_table([list(COLUMNS), *rows]) if rows else []), *notes])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    from .cli import run_command

    sys.exit(run_command("bench", sys.argv[1:]))
