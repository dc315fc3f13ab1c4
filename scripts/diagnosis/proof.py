"""The proof on GPUs: each proof in a process of its own, one report of all.

A crash of a kernel ends its own proof only. The report is written after each, and a proof that is complete is
not run again in the same folder by the same versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.errors import one_line
from ...common.files import write_text
from ...common.machine import describe_machine
from .proofs.evidence import Setting

#: The proofs by name (a module of `proofs`) and what each shows.
PROOFS = {
    "codes": "images have the same codes on every device, also with TF32 allowed",
    "precision": "a run's precision reaches the products; gradients in bf16 are summed in fp32",
    "attention": "packed rows equal separate ones with every attention; depth attention at 70,000 positions",
    "generation": "compiled generation is the plain one in CUDA graphs; batch_invariant holds",
    "training": "precisions and ZeRO stages agree; a killed run resumes exactly",
    "memory": "the peak of a 0.5 B model in training, against the estimate",
    "benchmarks": "speed and memory at real sizes",
}
PATIENCE = 3 * 3600  # seconds, of one proof
SUMMARY = "report.md"

Result = dict[str, Any]


def prove(names: Sequence[str], device: str, gpus: int, folder: Path) -> list[Result]:
    """Run proofs and write `folder`/NAME.json for each and report.md for all; returns the results."""
    folder.mkdir(parents=True, exist_ok=True)
    setting = {"version": __version__, "machine": describe_machine(device), "gpus": gpus}
    results: list[Result] = []
    for name in names:
        result = _finished(folder / f"{name}.json", setting) or _run(name, device, gpus, folder, setting)
        results.append(result)
        write_text(folder / SUMMARY, "\n".join(report(setting, results)) + "\n")
        print(f"{'holds' if result['holds'] else 'FAILS':<6} {name}: {PROOFS[name]}", flush=True)
    return results


def _finished(path: Path, setting: Mapping[str, Any]) -> Result | None:
    """The result of an earlier run with the same setting, if it holds."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    matches = isinstance(result, dict) and result.get("holds") and result.get("setting") == setting
    return result if matches else None


def _run(name: str, device: str, gpus: int, folder: Path, setting: Mapping[str, Any]) -> Result:
    start = time.monotonic()
    result: Result = {"proof": name, "setting": dict(setting), "holds": False, "rows": []}
    with tempfile.TemporaryDirectory(prefix="proof-", dir=folder) as scratch:
        output = Path(scratch) / "evidence.json"
        words = [name, "--device", device, "--gpus", str(gpus), "--folder", scratch, "--output", str(output)]
        log = folder / f"{name}.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", __spec__.name, *words]
            try:
                done = subprocess.run(command, stdout=file, stderr=file, timeout=PATIENCE)
                status = f"exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                status = f"not finished after {PATIENCE} s"
        if output.is_file():
            result.update(json.loads(output.read_text(encoding="utf-8")))
        else:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            result["error"] = one_line(lines[-1] if lines else status)
    result["seconds"] = round(time.monotonic() - start, 1)
    write_text(folder / f"{name}.json", json.dumps(result, indent=2) + "\n")
    return result


def report(setting: Mapping[str, Any], results: Sequence[Result]) -> Iterator[str]:
    """All results in Markdown."""
    yield f"# Proof of DualToken {setting['version']}"
    yield f"\n{setting['machine']}; {setting['gpus']} process{'es' if setting['gpus'] > 1 else ''}"
    for result in results:
        verdict = "holds" if result["holds"] else "fails"
        yield f"\n## {result['proof']}: {verdict} ({result['seconds']} s)\n\n{PROOFS[result['proof']]}\n"
        if "error" in result:
            yield f"It ended with an error: `{result['error']}`"
            continue
        yield "| measured | value | allowed | holds |\n| --- | --- | --- | --- |"
        for row in result["rows"]:
            mark = {True: "yes", False: "**no**", None: "–"}[row["holds"]]
            yield f"| {row['name']} | {_cell(row['value'])} | {row['allowed']} | {mark} |"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """One proof, in this process: its evidence goes to `--output` as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PROOFS)
    parser.add_argument("--device", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    module = importlib.import_module(f".proofs.{args.name}", __package__)
    found = module.prove(Setting(args.device, args.gpus, args.folder))
    rows = [asdict(row) for row in found.rows]
    write_text(args.output, json.dumps({"holds": found.holds, "rows": rows}))


if __name__ == "__main__":
    main()
