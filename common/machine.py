"""The machine's name, and the number and waiting policy of torch's CPU threads.

Torch splits every operation over all cores and waits until each has finished. For the short operations of a
small model the overhead exceeds the gain, and next to other busy processes a core returns only after a full
time slice: a step of a thousand operations then takes seconds.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Models with at least this many weights always get all threads.
LARGE_MODEL = 2**26
#: Multiplications (weights x rows) of a forward pass from which several threads pay off in a small model, if
#: they sleep while they wait.
LARGE_BATCH = 2**28
# How threads of OpenMP (GNU; LLVM and Intel) wait; read once, when torch is imported.
WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
_CHOSEN_BY_USER = (*WAITING, "GOMP_SPINCOUNT")

_lock = threading.Lock()
_inside = 0  # active calls that limit torch to one thread
_usual = 0  # the number of threads before the first of them
_own = threading.local()


def processor_name(device: str) -> str:
    """The name of the GPU for "cuda", else torch's number of CPU threads: "2 CPU threads (x86_64)"."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''} ({platform.machine()})"


def describe_machine(device: str) -> str:
    """Processor and torch version in one line: "2 CPU threads (x86_64), torch 2.15.0"."""
    import torch

    return f"{processor_name(device)}, torch {torch.__version__}"


def has_fast_bf16() -> bool:
    """Whether the GPU, or without one the processor (AVX512-BF16, AMX), multiplies matrices in bf16."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = (getattr(torch.cpu, name, None) for name in names)
    return any(check() for check in checks if check is not None)


def wait_passively() -> None:
    """Make waiting threads sleep, not spin, unless the environment sets a policy.

    Has no effect once torch is imported.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ.update(WAITING)


def worth_threads(weights: int, rows: int) -> bool:
    """Whether a forward pass of `rows` through a model of so many weights should use several threads."""
    passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return weights >= LARGE_MODEL or (passive and weights * rows >= LARGE_BATCH)


@contextmanager
def suitable_threads(model: Any, rows: int) -> Iterator[None]:
    """Run torch on one thread where `rows` through a torch module are not `worth_threads`.

    The number of threads is never raised. Other threads of the program keep theirs.
    """
    import torch

    parameters = list(model.parameters())
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    weights = sum(parameter.numel() for parameter in parameters)
    if not on_cpu or torch.compiler.is_compiling() or worth_threads(weights, rows):
        yield
        return
    before = _enter(torch.get_num_threads())
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        _leave()
        if before > 1:
            torch.set_num_threads(before)


def _enter(present: int) -> int:
    """The number of threads to restore.

    A thread that is new to torch inherits the number set last by any thread, which is not the program's own
    number while another thread is in this context.
    """
    global _inside, _usual
    with _lock:
        if _inside == 0:
            _usual = present
        known = getattr(_own, "known", False)
        _own.known = True
        _inside += 1
        return present if known or _inside == 1 else max(present, _usual)


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
