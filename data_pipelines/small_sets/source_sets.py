"""Makes the zips of the public data sets and keeps a record of where each came from, `sources.json`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import UserError
from ...common.files import atomic_file, file_checksum
from ...common.json_files import read_json_object
from ...common.output_files import check_files
from ..partial_output import holding
from .git_files import GitFiles, downloaded_files, local_files
from .image_list import META, ImageList
from .public_sets import SETS, PublicSet, Taken

SOURCES = "sources.json"
_DOWNLOADS = "sources.partial"
_COMMAND = "dualtoken prepare sources"
_HOST = "https://github.com"
# Zips of the same content are the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class SourceOptions:
    """Where sets are put and what their repositories are read from.

    clones: path of a clone by the repository's name; the others are downloaded from `host`. revisions: a
    commit or branch by the repository's name, instead of the newest.
    """

    folder: Path
    clones: Mapping[str, Path] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    progress: bool = True
    host: str = _HOST

    def check(self, sets: Iterable[PublicSet]) -> None:
        """Raise UserError for a clone or a revision of a repository that none of `sets` uses."""
        known = list(dict.fromkeys(taken.name for one in sets for taken in one.taken))
        for option, names in (("--clone", self.clones), ("--revision", self.revisions)):
            for name in names:
                if name not in known:
                    raise UserError(f"{option} {name}=…: the repositories are {', '.join(known)}.")


def chosen_sets(names: Iterable[str] | None) -> list[PublicSet]:
    """The sets called `names` ("emoji" or "emoji_128"; None: all). Raises UserError for an unknown name."""
    if names is None:
        return list(SETS.values())
    by_name = SETS | {Path(one.file).stem: one for one in SETS.values()}
    chosen = []
    for name in names:
        if name not in by_name:
            raise UserError(f"--only {name}: unknown set; allowed are {', '.join(SETS)}.")
        chosen.append(by_name[name])
    return list(dict.fromkeys(chosen))


def make_sets(sets: Iterable[PublicSet], options: SourceOptions) -> Iterator[tuple[PublicSet, int, bool]]:
    """Make each set that is not there, and yield it, its number of images, and whether it was made just now.

    What a stopped run has finished or downloaded is used again. Raises UserError when a set cannot be made,
    when another process makes sets in the same folder, and for a zip that may not be replaced.
    """
    sets = list(sets)
    options.check(sets)
    folder = options.folder
    check_files(folder, [])
    _check_replaced(sets, options)
    with holding(folder / _DOWNLOADS, f"--output {folder}", _COMMAND):
        for one in sets:
            target = folder / one.file
            if target.exists() and not options.overwrite:
                yield one, _count(target), False
            else:
                yield one, _make(one, target, options), True


def _check_replaced(sets: Iterable[PublicSet], options: SourceOptions) -> None:
    """Raise UserError where a zip would be replaced that is not noted as made here."""
    notes = _notes(options.folder / SOURCES)
    for one in sets:
        if options.overwrite and (options.folder / one.file).exists() and one.name not in notes:
            raise UserError(
                f"{options.folder / one.file} is not named in {SOURCES} next to it, so it is not replaced: "
                "move it away, or give another folder"
            )


def _make(one: PublicSet, target: Path, options: SourceOptions) -> int:
    taken = [_at(options, part) for part in one.taken]
    files = {part.part: _files(part, options) for part in taken}
    try:
        with atomic_file(target) as partial:
            count = _write_zip(one, files, partial, options.progress)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        names = " or ".join(dict.fromkeys(part.name for part in taken))
        raise UserError(
            f"{one.name}: a file of {names} has an unknown form ({type(error).__name__}: {error}); "
            "give an older commit with --revision."
        ) from error
    entry = {
        "file": one.file,
        "images": count,
        "sha256": file_checksum(target),
        "taken": [{**asdict(part), "commit": files[part.part].commit} for part in taken],
    }
    _note(options.folder / SOURCES, one.name, entry)
    for part in taken:
        shutil.rmtree(_download(part, options), ignore_errors=True)
    return count


def _at(options: SourceOptions, part: Taken) -> Taken:
    """`part` at the revision that was asked for; one that is fixed stays."""
    if part.revision == "HEAD" and part.name in options.revisions:
        return replace(part, revision=options.revisions[part.name])
    return part


def _files(part: Taken, options: SourceOptions) -> GitFiles:
    if part.name in options.clones:
        return local_files(options.clones[part.name], part.revision)
    if options.progress:
        print(f"fetching {part.repository} at {part.revision}", file=sys.stderr, flush=True)
    return downloaded_files(f"{options.host}/{part.repository}", part.revision, _download(part, options))


def _download(part: Taken, options: SourceOptions) -> Path:
    return options.folder / _DOWNLOADS / part.name


def _write_zip(one: PublicSet, files: Mapping[str, GitFiles], path: Path, progress: bool) -> int:
    """Images as they are, then the list; the number of images. Raises UserError when there is none."""
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for row, data in tqdm(
            one.entries(files), total=one.images, desc=one.name, unit="images", disable=not progress
        ):
            archive.writestr(_member(row["file"]), data)
            lines.append(json.dumps(row, ensure_ascii=False))
        if not lines:
            raise UserError(f"{one.name}: no image was found; are these the right repositories?")
        text = "".join(f"{line}\n" for line in lines)
        archive.writestr(_member(META), text, compress_type=zipfile.ZIP_DEFLATED)
    return len(lines)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _DATE)
    member.external_attr = 0o644 << 16
    return member


def _note(path: Path, name: str, entry: dict[str, Any]) -> None:
    entries = {**_notes(path), name: entry}
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _notes(path: Path) -> dict[str, Any]:
    """Where each set came from. UserError for a file that holds something else."""
    notes = read_json_object(path) if os.path.lexists(path) else {}
    if not all(isinstance(entry, dict) and "file" in entry for entry in notes.values()):
        raise UserError(f"{path} does not describe sets: move it away, or give another folder")
    return notes


def _count(path: Path) -> int:
    """Images of a zip that is there. Raises UserError when it is not an intact zip."""
    try:
        return len(ImageList(path).rows)
    except UserError as error:
        raise UserError(f"{path} is not a zip with {META}: delete it or give --overwrite.") from error
