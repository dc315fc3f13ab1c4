"""Make the zips of the public data sets, and record the source of each in `sources.json`."""

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
from ...common.files import atomic_file, file_checksum, write_text
from ...common.json_files import read_json_object
from ...common.output_files import check_files
from ..partial_output import locked_folder
from .git_files import GitFiles, downloaded_files, local_files
from .image_list import META, ImageList
from .public_sets import SETS, PublicSet, Source

SOURCES = "sources.json"
_DOWNLOADS = "sources.partial"
_COMMAND = "dualtoken prepare sources"
_HOST = "https://github.com"
# A fixed date, so that zips of the same content are the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class SourceOptions:
    """The output folder of sets, and where their repositories are read.

    clones: paths of local clones by the repository's name; other repositories are downloaded from `host`.
    revisions: a commit or branch by the repository's name, instead of the newest.
    """

    folder: Path
    clones: Mapping[str, Path] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    progress: bool = True
    host: str = _HOST

    def check(self, sets: Iterable[PublicSet]) -> None:
        """Raise UserError for a clone or a revision of a repository that `sets` do not use."""
        known = list(dict.fromkeys(source.name for one in sets for source in one.sources))
        for option, names in (("--clone", self.clones), ("--revision", self.revisions)):
            for name in names:
                if name not in known:
                    raise UserError(f"{option} {name}=…: the repositories are {', '.join(known)}.")


def chosen_sets(names: Iterable[str] | None) -> list[PublicSet]:
    """The sets called `names` ("emoji" or "emoji_128"; None: all). UserError for an unknown name."""
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
    """Make each missing set, and yield every set, its number of images, and whether it was made now.

    The sets and downloads of a stopped run are reused.

    Errors:
        UserError where a set cannot be made, where another process makes sets in the same folder, and for a
        zip that may not be replaced.
    """
    sets = list(sets)
    options.check(sets)
    folder = options.folder
    check_files(folder, [])
    made_here = _recorded(folder / SOURCES)
    for one in sets:
        if options.overwrite and (folder / one.file).exists() and one.name not in made_here:
            raise UserError(
                f"{folder / one.file} is not named in {SOURCES} next to it, so it is not replaced: "
                "move it away, or give another folder"
            )
    with locked_folder(folder / _DOWNLOADS, f"--output {folder}", _COMMAND):
        for one in sets:
            target = folder / one.file
            if target.exists() and not options.overwrite:
                yield one, _count(target), False
            else:
                yield one, _make(one, target, options), True


def _make(one: PublicSet, target: Path, options: SourceOptions) -> int:
    sources = [
        replace(source, revision=options.revisions.get(source.name, "HEAD"))
        if source.revision == "HEAD"
        else source
        for source in one.sources
    ]
    files = {source.part: _files(source, options) for source in sources}
    try:
        with atomic_file(target) as partial:
            count = _write_zip(one, files, partial, options.progress)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        names = " or ".join(dict.fromkeys(source.name for source in sources))
        raise UserError(
            f"{one.name}: a file of {names} has an unknown format ({type(error).__name__}: {error}); "
            "give an older commit with --revision."
        ) from error
    entry = {
        "file": one.file,
        "images": count,
        "sha256": file_checksum(target),
        "taken": [{**asdict(source), "commit": files[source.part].commit} for source in sources],
    }
    entries = {**_recorded(options.folder / SOURCES), one.name: entry}
    write_text(options.folder / SOURCES, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    for source in sources:
        shutil.rmtree(_download(source, options), ignore_errors=True)
    return count


def _files(source: Source, options: SourceOptions) -> GitFiles:
    if source.name in options.clones:
        return local_files(options.clones[source.name], source.revision)
    if options.progress:
        print(f"fetching {source.repository} at {source.revision}", file=sys.stderr, flush=True)
    url = f"{options.host}/{source.repository}"
    return downloaded_files(url, source.revision, _download(source, options))


def _download(source: Source, options: SourceOptions) -> Path:
    return options.folder / _DOWNLOADS / source.name


def _write_zip(one: PublicSet, files: Mapping[str, GitFiles], path: Path, progress: bool) -> int:
    """Write the images, then the list; return the number of images. UserError without any."""
    lines = []
    entries = tqdm(one.entries(files), one.name, one.images, unit="images", disable=not progress)
    with zipfile.ZipFile(path, "w") as archive:
        for row, data in entries:
            archive.writestr(_member(row["file"]), data)
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if not lines:
            raise UserError(f"{one.name}: no image was found; are these the right repositories?")
        archive.writestr(_member(META), "".join(lines), compress_type=zipfile.ZIP_DEFLATED)
    return len(lines)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _DATE)
    member.external_attr = 0o644 << 16
    return member


def _recorded(path: Path) -> dict[str, Any]:
    """The entries of a `sources.json`, by set. UserError for a file that holds something else."""
    entries = read_json_object(path) if os.path.lexists(path) else {}
    if not all(isinstance(entry, dict) and "file" in entry for entry in entries.values()):
        raise UserError(f"{path} does not describe sets: move it away, or give another folder")
    return entries


def _count(path: Path) -> int:
    """The number of images in an existing zip. UserError where it is not an intact zip."""
    try:
        return len(ImageList(path).rows)
    except UserError as error:
        raise UserError(f"{path} is not a zip with {META}: delete it or give --overwrite.") from error
