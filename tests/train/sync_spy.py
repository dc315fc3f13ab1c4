"""Finds what would make a GPU's host wait for it, in a run on a CPU."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that read values of a tensor on the host, or copy values from the host without pinned memory.
WAITING = (
    "aten._local_scalar_dense",  # item, bool, int, float
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "aten.bincount",
    "aten.equal",
    "aten.is_nonzero",
    "aten.lift_fresh",  # torch.tensor(values, device)
)
METHODS = ("tolist", "numpy", "cpu")


class SyncSpy(TorchDispatchMode):
    """Within the context, ``found`` collects the code that would wait, as "file:line operator"."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._methods: dict[str, Any] = {}

    def __enter__(self) -> SyncSpy:
        for name in METHODS:
            method = self._methods[name] = getattr(torch.Tensor, name)
            setattr(torch.Tensor, name, self._noting(name, method))
        return super().__enter__()

    def _noting(self, name: str, method: Any) -> Any:
        def noted(*args: Any, **options: Any) -> Any:
            self._note(name)
            return method(*args, **options)

        return noted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, method)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = str(func).startswith(("aten.index.", "aten.index_put")) and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in args[1]
        )
        counted = str(func).startswith("aten.repeat_interleave.") and not (kwargs or {}).get("output_size")
        if by_mask or counted or str(func).rpartition(".")[0] in WAITING:
            self._note(str(func))
        return func(*args, **(kwargs or {}))

    def _note(self, operation: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        frames = [frame for frame in frames if "sync_spy" not in frame.filename]
        places = [f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}" for frame in frames[-3:]]
        self.found.append(f"{' > '.join(places)} {operation}")
