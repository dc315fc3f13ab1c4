"""Examine this installation: versions, devices, numerics, processes, disk and memory, each with a remedy.

--gpu-proof goes further: it runs every precision, attention and ZeRO stage, a kill and a resume, the
benchmarks at real sizes and the memory estimate on GPUs, and writes one report to send along with an issue.

Examples:
  dualtoken doctor
  dualtoken doctor --json > doctor.json
  dualtoken doctor --gpu-proof --gpus 8 --output runs/gpu-proof
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from . import cli
from .diagnosis.finding import Check, Finding, as_json, findings, in_lines, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")


def checks() -> Mapping[str, Check]:
    """All checks by topic, those that take longest last."""
    from .diagnosis import computing, hardware, packages, processes

    return {
        "packages": packages.check_versions,
        "torchvision": packages.check_torchvision,
        "GPU": hardware.check_gpus,
        "processor": hardware.check_processor,
        "memory": hardware.check_memory,
        "shared memory": hardware.check_shared_memory,
        "disk": hardware.check_disk,
        "open files": hardware.check_open_files,
        "bf16": computing.check_bf16,
        "attention": computing.check_attention,
        "code search": computing.check_code_search,
        "compiled code": computing.check_compiled_code,
        "small model": computing.check_small_model,
        "training": processes.check_processes,
    }


def run(args: argparse.Namespace) -> int:
    """1 when something does not work, else 0."""
    found: list[Finding] = []
    for finding in findings(checks()):
        found.append(finding)
        if not args.json:
            print(in_lines(finding), flush=True)
    print(json.dumps(as_json(found), indent=2) if args.json else f"\n{summary(found)}")
    return int(any(finding.level == "failure" for finding in found))


if __name__ == "__main__":
    cli.run_main(__spec__)
