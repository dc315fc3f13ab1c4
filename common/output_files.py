"""Files that a command writes into a folder or under a name: never over what this package did not make.

The files of a folder are known by its mark (`outputs`), a picture by the software that it names, any other
file by what it holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import UserError, shown
from .files import atomic_file, make_readable
from .json_files import read_json_object
from .outputs import Inputs, examining, made_entries, mark_output, require_writable

#: What our PNG files say of themselves, as matplotlib takes it too.
PNG_TEXT = {"Software": "dualtoken"}


def check_files(folder: Path, names: Iterable[str], option: str = "--output") -> None:
    """Raise UserError unless a command can write files of these names into `folder`, which may exist.

    Refused are a file in the folder's place, a folder that cannot be written to, and a name that lies there
    already and that no command made.
    """
    with examining(folder, option):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{option} {folder} is a file; name a folder")
        require_writable(folder / "name" if folder.is_dir() else folder, option)
        made = made_entries(folder)
        theirs = next((name for name in names if name not in made and os.path.lexists(folder / name)), None)
    if theirs is not None:
        raise UserError(
            f"{option} {folder} holds {shown(theirs)}, which dualtoken did not make, so it is not replaced: "
            "move that away, or give another folder"
        )


@contextmanager
def staged_files(
    folder: Path, command: str, outdated: Callable[[str], object] = lambda name: False
) -> Iterator[Path]:
    """Yield an empty folder whose files move into `folder` together at the end, on an error none of them.

    Nothing is left of the folder on an error, nor is `folder` made then. Afterwards `folder` carries the mark
    that `command` made the files; earlier files of the mark whose name is `outdated` are removed.

    Errors:
        OSError where nothing can be written, at the start.
    """
    above = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=above))
    try:
        yield staging
        new = {path.name for path in staging.iterdir()}
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name for name in made_entries(folder) if os.path.lexists(folder / name)}
        stale = {name for name in kept - new if outdated(name)}
        # The mark comes first: after a crash it names too much, and no file of ours is taken for the user's.
        mark_output(folder, command, kept | new)
        for name in sorted(new):
            make_readable(staging / name)
            os.replace(staging / name, folder / name)
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        if stale:
            mark_output(folder, command, (kept | new) - stale)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_file(path: Path, inputs: Inputs, is_ours: Callable[[Path], bool], option: str = "--output") -> Path:
    """`path`, if a command can write a file there. UserError for one of the inputs and for a folder, where it
    cannot be written, and for a file of which `is_ours` is false.
    """
    with examining(path, option):
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file")
        for name, given in inputs.items():
            for source in [given] if isinstance(given, Path) else given or []:
                both = path.exists() and source.exists()
                if source.resolve() == path.resolve() or (both and source.samefile(path)):
                    raise UserError(f"{option} {path} is also {name}: give another name, it would be lost")
        require_writable(path, option)
        if os.path.lexists(path) and not (path.is_file() and is_ours(path)):
            raise UserError(
                f"{option} {path} exists and was not made by dualtoken, so it is not replaced: "
                "remove it yourself, or give another name"
            )
    return path


def is_our_image(path: Path) -> bool:
    """Whether `write_image`, or a plot with PNG_TEXT, made this file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == PNG_TEXT["Software"]
    except Exception:  # Pillow raises many types for files that are not PNG
        return False


def json_with(*keys: str) -> Callable[[Path], bool]:
    """Whether a file is a JSON object with all these keys, for `check_file`."""

    def is_ours(path: Path) -> bool:
        try:
            return set(keys) <= read_json_object(path).keys()
        except UserError:
            return False

    return is_ours


def write_image(image: Image.Image, path: Path) -> None:
    """Save a picture as PNG, all of it or nothing; it says that this package made it."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=_png_info())


def write_plot(figure: Any, path: Path, dpi: int) -> None:
    """Save a figure of matplotlib as PNG, likewise."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata=PNG_TEXT)


def _png_info() -> PngInfo:
    info = PngInfo()
    for name, text in PNG_TEXT.items():
        info.add_text(name, text)
    return info
