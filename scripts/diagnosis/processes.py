"""Training in several processes: that they reach each other, and that DeepSpeed's engine makes a step."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ...common.packages import missing_package
from .finding import Finding

PROBE = "dualtoken.scripts.diagnosis.probe"
PATIENCE = 180  # seconds
FURTHER = "NCCL_DEBUG=INFO shows where NCCL stops; NCCL_SOCKET_IFNAME names the network interface"


def check_processes() -> Iterator[Finding]:
    """Two processes (on the CPU, or on up to two GPUs) with torchrun."""
    import torch

    if importlib.util.find_spec("deepspeed") is None:
        yield Finding("training", "note", "DeepSpeed is not installed", missing_package("deepspeed"))
        return
    count = min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2
    done = launch([PROBE], count, timeout=PATIENCE)
    if done is None:
        yield Finding("training", "failure", f"{count} processes did not finish in {PATIENCE} s", FURTHER)
        return
    result = last_object(done.stdout)
    if done.returncode or result is None:
        lines = [line for line in done.stderr.strip().splitlines() if "Error" in line]
        reason = lines[0] if lines else f"exit status {done.returncode}"
        yield Finding("training", "failure", f"{count} processes failed: {reason}", FURTHER)
        return
    works = result["sum"] == count and result["after"] < result["before"]
    named = f"{count} process{'es' if count > 1 else ''} over {result['backend']}"
    if works:
        yield Finding("training", "ok", f"{named}: an all-reduce, and a step of DeepSpeed's ZeRO 2")
    else:
        yield Finding("training", "failure", f"{named}: wrong result {result}", FURTHER)


def launch(
    words: Sequence[str], processes: int, timeout: float, gpus: bool = True
) -> subprocess.CompletedProcess[str] | None:
    """Run a module with its arguments under torchrun; None when it takes longer than `timeout` seconds."""
    process = start(words, processes, gpus)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        return None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(words: Sequence[str], processes: int, gpus: bool = True) -> subprocess.Popen[str]:
    """Start a module with its arguments under torchrun, in a session of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    path = os.pathsep.join(filter(None, sys.path))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(
        [sys.executable, *launcher, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process that `start` made, and its workers, without giving them time to save."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def last_object(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return None
