"""Output files of commands, which never replace files that this package did not make.

Files in a folder are recognised by its mark (`outputs`), images by their Software tag, others by content.
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

#: Metadata of our PNG files, in the form that matplotlib takes.
PNG_TEXT = {"Software": "dualtoken"}


def check_files(folder: Path, names: Iterable[str], option: str = "--output") -> None:
    """Raise UserError unless a command can write files of these names into `folder`, which may exist.

    Refused are a file instead of the folder, a folder that is not writable, and existing files that no
    command made.
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
    """Yield an empty folder whose files move into `folder` together at the end, or on an error none of them.

    `folder` is not created on an error. Afterwards it carries the mark that `command` made the files; earlier
    files of the mark whose name is `outdated` are removed.

    Errors:
        OSError at the start where nothing can be written.
    """
    above = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=above))
    try:
        yield staging
        new = {path.name for path in staging.iterdir()}
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name for name in made_entries(folder) if os.path.lexists(folder / name)}
        stale = {name for name in kept - new if outdated(name)}
        # The mark comes first: after a crash it names too many files, and none of ours counts as the user's.
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
    """`path`, if a command can write a file there.

    Errors:
        UserError for one of the inputs, a folder, a path that is not writable, and a file that is not ours.
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
    """Whether `write_image` or `write_plot` made this file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == PNG_TEXT["Software"]
    except Exception:  # Pillow raises many types for files that are not PNG
        return False


def json_with(*keys: str) -> Callable[[Path], bool]:
    """A test for `check_file`: whether a file is a JSON object with all these keys."""

    def is_ours(path: Path) -> bool:
        try:
            return set(keys) <= read_json_object(path).keys()
        except UserError:
            return False

    return is_ours


def write_image(image: Image.Image, path: Path) -> None:
    """Save an image as PNG, atomically, with the Software tag of this package."""
    info = PngInfo()
    for name, text in PNG_TEXT.items():
        info.add_text(name, text)
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def write_plot(figure: Any, path: Path, dpi: int) -> None:
    """Save a figure of matplotlib in the same way."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata=PNG_TEXT)
