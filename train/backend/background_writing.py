"""Writing a checkpoint's files in the background: a snapshot in host memory, and a thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import UserError
from .checkpoint_files import checksum, flush_to_disk, writing


class Snapshot:
    """Copies nested states to host memory, so that training may change them; saved, both give the same file.

    What is shared stays shared: tensors of one storage, and objects that occur twice. Copies from a GPU go
    to pinned memory without waiting for one another; `finish` waits for all.
    """

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._copies: dict[int, tuple[Any, Any]] = {}  # with the original, whose id must stay taken

    def of(self, value: Any) -> Any:
        """A copy of tensors and containers; other objects by `copy.deepcopy`."""
        if value is None or isinstance(value, str | bytes | int | float | torch.Size | torch.dtype):
            return value
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, self._copied(value))
        return self._copies[id(value)][1]

    def finish(self) -> None:
        """Wait for the copies and release the originals."""
        if any(pair[0].is_cuda for pair in self._copies.values() if isinstance(pair[0], Tensor)):
            torch.cuda.synchronize()
        self._copies.clear()
        self._storages.clear()

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            made = copy.copy(value)  # keeps the class and its attributes, as those of a module's state dict
            for key, item in value.items():
                made[key] = self.of(item)
            return made
        if type(value) in (list, tuple):
            return type(value)(self.of(item) for item in value)
        return copy.deepcopy(value)

    def _tensor(self, value: Tensor) -> Tensor:
        if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
            return copy.deepcopy(value)
        storage = self._storage(value.untyped_storage())
        made = torch.empty(0, dtype=value.dtype).set_(
            storage, value.storage_offset(), value.size(), value.stride()
        )
        if isinstance(value, nn.Parameter):
            made = nn.Parameter(made, requires_grad=value.requires_grad)
        for name, attribute in vars(value).items():  # ZeRO-3's marks, which are saved too
            setattr(made, name, self.of(attribute))
        return made.requires_grad_(value.requires_grad)

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if storage._cdata not in self._storages:
            on_gpu = storage.device.type == "cuda"
            made = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=on_gpu).untyped_storage()
            made.copy_(storage, non_blocking=on_gpu)
            self._storages[storage._cdata] = made
        return self._storages[storage._cdata]


@dataclass
class FilesToWrite:
    """One rank's files of a checkpoint; `write` and `result` may run in different threads.

    Args:
        folder: the checkpoint's, for the names in the result.
        written: files that are written already, but not yet flushed.
        waiting: what to write, by file.
    """

    folder: Path
    written: list[Path] = field(default_factory=list)
    waiting: dict[Path, Callable[[], Any]] = field(default_factory=dict)
    _checksums: dict[str, int] = field(default_factory=dict)
    _error: UserError | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Write in a thread. It does not keep the process alive: a torn folder never has its final name."""
        self._thread = threading.Thread(target=self.write, name="checkpoint", daemon=True)
        self._thread.start()

    def write(self) -> None:
        """Write and flush the files and this rank's view of their folder; errors wait for `result`."""
        try:
            with writing():
                for path in list(self.waiting):
                    self.waiting.pop(path)()  # a snapshot is freed once it is written
                    self.written.append(path)
                for path in self.written:
                    flush_to_disk(path)
                for folder in dict.fromkeys(path.parent for path in self.written):
                    flush_to_disk(folder)
                for path in self.written:
                    self._checksums[path.relative_to(self.folder).as_posix()] = checksum(path)
        except UserError as error:
            self._error = error
        except Exception as error:  # of a writer, in a thread where nobody would see it
            self._error = UserError(f"{type(error).__name__}: {error}")

    def is_done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> dict[str, int]:
        """Wait, then the checksums by name. UserError for what could not be written."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._checksums
