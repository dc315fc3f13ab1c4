"""Speed and memory of the package against plain references, measured in turns on this machine.

Without a name the benchmarks are listed. Each named one runs in its own process; "all" skips those that need
a package that is not installed, and names them. The table shows each case's speed as a multiple of its
reference's, and its memory beyond the weights as a share of the reference's. On two CPU cores each takes a
minute or two.

Examples:
  dualtoken bench
  dualtoken bench losses train_step --output results.json
  dualtoken bench all --size full
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.errors import UserError, one_line
from ..common.files import write_text
from ..common.json_files import JsonError, parse_json, read_json
from ..common.output_files import check_file
from ..common.packages import OPTIONAL, missing_package
from . import cli, options
from .cli import unknown_name

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
ALL = "all"
COLUMNS = ("benchmark", "case", "against", "speed", "memory", "seconds")
ERROR_LINES = 12  # of a benchmark that ends with an error


@dataclass(frozen=True)
class Benchmark:
    """A file of `benchmarks/`, the first line of its docstring, and the optional packages it imports."""

    path: Path
    summary: str
    needs: tuple[str, ...] = ()

    @property
    def lacking(self) -> str | None:
        """How to install a package that is needed and missing, or None."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return missing_package(missing[0]) if missing else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="benchmarks to run, or all")
    add(
        "--size",
        choices=("small", "full"),
        default="small",
        help="small for two CPU cores, full for a GPU (default: small)",
    )
    add("--output", type=options.path, metavar="FILE.json", help="write the results as a JSON list")


def run(args: argparse.Namespace) -> int:
    """List, or run and print a table. 1 when a benchmark ended with an error; the others still run."""
    known = find_benchmarks(FOLDER)
    if not args.names:
        print("\n".join(f"  {name:<14} {benchmark.summary}" for name, benchmark in known.items()))
        return 0
    names = chosen(args.names, known)
    if args.output is not None:  # before minutes of measuring
        options.file_path(args.output, "--output", ".json", "the results are JSON")
        check_file(args.output, {}, is_our_result)
    results: list[dict[str, Any]] = []
    with tqdm(names, unit="benchmark", disable=not sys.stderr.isatty()) as bar:
        for name in bar:
            bar.set_description(name)
            results.append(run_benchmark(name, known[name], args.size))
            if args.output is not None:  # after each, as all together take long
                write_text(args.output, json.dumps(results, indent=2) + "\n")
    print(report(results))
    return int(any("error" in result for result in results))


def find_benchmarks(folder: Path) -> dict[str, Benchmark]:
    """The benchmarks of a folder by name: the files that define `main`, which are not imported."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            summary = (ast.get_docstring(module) or "").split("\n")[0]
            found[path.stem] = Benchmark(path, summary, tuple(sorted(OPTIONAL.keys() & imported(module))))
    return found


def imported(module: ast.Module) -> set[str]:
    """The packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def chosen(names: Sequence[str], known: Mapping[str, Benchmark]) -> list[str]:
    """The named benchmarks, each once; "all" are those that can run.

    Errors:
        UserError for an unknown name, and for a benchmark whose package is not installed.
    """
    for name in names:
        if name != ALL and name not in known:
            raise UserError(unknown_name("benchmark", name, [*known, ALL]))
        if name != ALL and (lacking := known[name].lacking):
            raise UserError(f"for the benchmark {name} {lacking}")
    if ALL not in names:
        return list(dict.fromkeys(names))
    for name, benchmark in known.items():
        if benchmark.lacking:
            print(one_line(f"skipped: for the benchmark {name} {benchmark.lacking}"), file=sys.stderr)
    return [name for name, benchmark in known.items() if not benchmark.lacking]


def is_our_result(path: Path) -> bool:
    """Whether a file is a list of results, as this command writes it."""
    try:
        results = read_json(path)
    except UserError:
        return False
    return isinstance(results, list) and all(isinstance(one, dict) and "benchmark" in one for one in results)


def run_benchmark(name: str, benchmark: Benchmark, size: str) -> dict[str, Any]:
    """The JSON object on the last line that a benchmark prints; {"benchmark", "error"} where it fails."""
    done = subprocess.run(
        [sys.executable, str(benchmark.path), "--size", size],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        # The benchmark finds the package where this process has found it.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode == 0:
        try:
            return parse_json((done.stdout.splitlines() or [""])[-1])
        except JsonError as error:
            return {"benchmark": name, "error": f"its last line is not a result: {error}"}
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    tqdm.write("\n".join(lines[-ERROR_LINES:]), file=sys.stderr)
    return {"benchmark": name, "error": one_line(lines[-1])}


def report(results: Iterable[Mapping[str, Any]]) -> str:
    """All cases as a table, then other values and the machine."""
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
    cli.run_main(__spec__)
