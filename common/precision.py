"""The precision inside fp32 products and convolutions: exact, or with TF32, whatever the program allows.

Torch has two sets of switches for it. The old ones (`allow_tf32`, `set_float32_matmul_precision`) raise an
error where the new ones (`fp32_precision`, since torch 2.9) contradict them, so both are set here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Products = Literal["ieee", "tf32"]

_HAS_NEW_SWITCHES = hasattr(torch._C, "_get_fp32_precision_getter")
#: The new switches: CUDA's, and those of oneDNN, which can compute in bf16 on a CPU.
SWITCHES = tuple((backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn"))

_lock = threading.RLock()
_inside: dict[Products, int] = {"ieee": 0, "tf32": 0}  # active `fp32_products`, of all threads


@dataclass(frozen=True)
class Switches:
    """Every switch as it was set: both old ones, and the new ones (none before torch 2.9)."""

    matmul: str
    cudnn: bool
    new: Mapping[tuple[str, str], str]


_before: Switches | None = None


@contextmanager
def fp32_products(products: Products = "ieee", device: torch.device | None = None) -> Iterator[None]:
    """Compute fp32 products and convolutions exactly ("ieee") or with CUDA's TF32, on all devices.

    With `device` a CPU that is exact already no switch is touched: other threads that compile meanwhile would
    find their guards broken.

    The switches are the process's: while any thread is inside with "ieee", all threads compute exactly, also
    those inside with "tf32"; the last one to leave restores what was set before the first.
    """
    if products == "ieee" and device is not None and device.type == "cpu" and _is_exact_on_cpu():
        yield
        return
    _enter(products)
    try:
        yield
    finally:
        _leave(products)


@torch.compiler.disable
def _is_exact_on_cpu() -> bool:
    """Whether neither a switch of the CPU nor one that the program has set allows less than fp32 products."""
    if not _HAS_NEW_SWITCHES:
        return torch.get_float32_matmul_precision() == "highest"
    switches = [("cuda", "matmul"), *(switch for switch in SWITCHES if switch[0] == "mkldnn")]
    return all(_get(*switch) in ("none", "ieee") for switch in switches)


# Not traced, as a compiled function would run without the switches: `with` then leaves the graph of
# torch.compile, and what is called inside is compiled on its own, with them.
@torch.compiler.disable
def _enter(products: Products) -> None:
    global _before
    with _lock:
        if _before is None:
            _before = read_switches()
            _apply(exact=products == "ieee")
        elif products == "ieee" and not _inside["ieee"]:
            _apply(exact=True)
        _inside[products] += 1


@torch.compiler.disable
def _leave(products: Products) -> None:
    global _before
    with _lock:
        _inside[products] -= 1
        if _before is not None and not any(_inside.values()):
            _restore(_before)
            _before = None
        elif products == "ieee" and not _inside["ieee"]:
            _apply(exact=False)


def _apply(exact: bool) -> None:
    tf32 = not exact
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if _HAS_NEW_SWITCHES:
        for backend, op in SWITCHES:
            _set(backend, op, "tf32" if tf32 and backend == "cuda" else "ieee")


def read_switches() -> Switches:
    """The switches as they were set, also where the old and the new ones contradict each other."""
    if not _HAS_NEW_SWITCHES:
        return Switches(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, {})
    new = {switch: _own_value(*switch) for switch in SWITCHES}
    try:
        # The old getters raise on a contradiction. These values never contradict the first one, and the
        # second one only where it is False.
        for backend, op in SWITCHES:
            _set(backend, op, "ieee" if op == "matmul" or backend == "mkldnn" else "tf32")
        matmul = torch.get_float32_matmul_precision()
        try:
            cudnn = torch.backends.cudnn.allow_tf32
        except RuntimeError:
            cudnn = False
    finally:
        for (backend, op), value in new.items():
            _set(backend, op, value)
    return Switches(matmul, cudnn, new)


def _restore(switches: Switches) -> None:
    torch.set_float32_matmul_precision(switches.matmul)  # the old ones first: they also set new ones
    torch.backends.cudnn.allow_tf32 = switches.cudnn
    for (backend, op), value in switches.new.items():
        _set(backend, op, value)


def _own_value(backend: str, op: str) -> str:
    """What a new switch itself is set to; torch's getter gives the inherited value where that is "none"."""
    value = _get(backend, op)
    if backend == "generic":
        return value
    parent = ("generic", "all") if op == "all" else (backend, "all")
    if value == "none" or value != _get(*parent):
        return value
    kept = _own_value(*parent)
    other = "ieee" if value != "ieee" else "tf32" if backend == "cuda" else "bf16"
    _set(*parent, other)
    inherited = _get(backend, op) == other
    _set(*parent, kept)
    return "none" if inherited else value


def _get(backend: str, op: str) -> str:
    return torch._C._get_fp32_precision_getter(backend, op)


def _set(backend: str, op: str, value: str) -> None:
    # The switches of `torch.backends`, where that of mkldnn's parent sets another one.
    torch._C._set_fp32_precision_setter(backend, op, value)
