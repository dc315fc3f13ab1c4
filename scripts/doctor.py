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

from ..common.errors import UserError
from ..common.outputs import require_writable
from . import cli, options
from .diagnosis.finding import Check, Finding, as_json, findings, in_lines, summary
from .diagnosis.proof import PROOFS, SUMMARY, prove


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", action="store_true", help="print the findings as a JSON list")
    add("--gpu-proof", action="store_true", help="prove the installation on GPUs; takes an hour or two")
    add("--gpus", type=options.integer(1, 1024), help="of this machine, for the proof (default: all)")
    add("--only", nargs="+", choices=PROOFS, metavar="PROOF", help=f"of the proof: {', '.join(PROOFS)}")
    add(
        "--rehearse",
        action="store_true",
        help="run the proof on the CPU with two processes, without what only a GPU has",
    )
    add(
        "--output",
        type=options.path,
        default="gpu-proof",
        help="folder of the proof's report (default: ./gpu-proof)",
    )


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
    if args.gpu_proof or args.rehearse:
        return run_proof(args)
    found: list[Finding] = []
    for finding in findings(checks()):
        found.append(finding)
        if not args.json:
            print(in_lines(finding), flush=True)
    print(json.dumps(as_json(found), indent=2) if args.json else f"\n{summary(found)}")
    return int(any(finding.level == "failure" for finding in found))


def run_proof(args: argparse.Namespace) -> int:
    """The proof on GPUs. UserError where there are none, or fewer than asked for."""
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not args.rehearse and available < (args.gpus or 1):
        raise UserError(
            f"--gpu-proof needs {args.gpus or 1} GPU{'s' if (args.gpus or 1) > 1 else ''}, and torch sees "
            f"{available}; dualtoken doctor says why, and --rehearse runs the proof on the CPU"
        )
    device, gpus = ("cpu", args.gpus or 2) if args.rehearse else ("cuda", args.gpus or available)
    require_writable(args.output, "--output")
    results = prove(args.only or list(PROOFS), device, gpus, args.output)
    print(f"report: {args.output / SUMMARY}")
    return int(not all(result["holds"] for result in results))


if __name__ == "__main__":
    cli.run_main(__spec__)
