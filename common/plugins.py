"""Plug-ins: external modules that register something with this package on import."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from .errors import UserError, first_line, one_line
from .paths import user_path


def load_plugins(group: str, folders: Sequence[Path] = ()) -> None:
    """Import the entry points of `group`, then every `*.py` of `folders`.

    Files whose names begin with an underscore are skipped. The folders are appended to `sys.path`, so that
    the modules can import each other, and worker processes can unpickle their classes. Loading a plug-in
    again changes nothing.

    Errors:
        UserError naming the file or entry point that cannot be imported, something that is not a folder, or a
        file with the name of another module.
    """
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            raise _broken(f"the plug-in {point.name} ({point.value})", error) from error
    for folder in map(user_path, folders):
        if not folder.is_dir():
            raise UserError(f"--include-path {folder} is not a folder")
        _import_folder(folder.resolve())


@contextmanager
def calling_plugin(what: str, owner: type) -> Iterator[None]:
    """Turn what a method of the plug-in's class `owner` raises into a UserError that begins with `what`.

    It names the error and the plug-in's line. Classes of this package keep their tracebacks.

    Errors:
        UserError for any Exception; one that is a UserError passes through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if owner.__module__.partition(".")[0] == __package__.partition(".")[0]:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        file = getattr(sys.modules.get(owner.__module__), "__file__", None)
        frame = next((one for one in reversed(frames) if one.filename == file), frames[-1])
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        reason = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        raise UserError(f"{what} raised {reason} ({place})") from error


def _import_folder(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    for file in sorted(folder.glob("*.py")):
        if file.name.startswith("_"):
            continue
        try:
            module = importlib.import_module(file.stem)
        except Exception as error:
            raise _broken(f"the plug-in {file}", error) from error
        if Path(module.__file__ or "").resolve() != file.resolve():
            raise UserError(f"the plug-in {file} has the name of another Python module: rename the file")


def _broken(what: str, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    return UserError(f"{what} cannot be imported: {reason}")
