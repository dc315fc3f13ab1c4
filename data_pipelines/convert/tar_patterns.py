"""Find tars by what a user gives: files, folders, globs and brace expressions."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import braceexpand

from ...common.errors import UserError, shown
from ...common.paths import regular_file, user_path, walk_files

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
#: Most files that one pattern may name.
MOST_TARS = 1_000_000
_DEEPEST_BRACES = 16


def find_tars(patterns: Sequence[str]) -> list[Path]:
    """The tars that files, folders, globs and brace expressions name, in order and each once.

    `part/{00000..00009}.tar` names ten files; `part/*.tar` the existing ones; a folder all its tars. A name
    that exists as it is given is never taken for a pattern.

    Errors:
        UserError for a pattern without a match, and for one that names too many files.
    """
    tars: dict[Path, None] = {}
    for pattern in patterns:
        for name in _expanded(pattern if "://" in pattern else str(user_path(pattern))):
            if not (found := _matching(name)):
                raise UserError(f"--input {name} is not a tar, nor a folder or pattern of tars.")
            tars.update(dict.fromkeys(found))
    return list(tars)


def _matching(name: str) -> list[Path]:
    """The tars that a name without braces stands for."""
    path = Path(name)
    if os.path.isdir(path):
        return sorted(child for child in path.iterdir() if child.name.lower().endswith(TAR_SUFFIXES))
    if not os.path.lexists(path) and glob.has_magic(name):
        return _recursive_glob(path) if "**" in path.parts else sorted(map(Path, glob.glob(name)))
    if "://" in name:
        raise UserError(f"--input {shown(name)} is a URL: download the tars first, and give their folder")
    return [regular_file(path, "--input")]


def _recursive_glob(pattern: Path) -> list[Path]:
    """The files that a pattern with `**` matches, each once; unlike in `glob`, loops of links end."""
    literal = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    wanted = [part for part, _ in itertools.groupby(pattern.parts[len(literal) :])]
    root = Path(*literal)
    return [path for path in walk_files(root) if _matches(path.relative_to(root).parts, wanted)]


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` matches any folders that are not hidden."""
    if not parts or not wanted:
        return not parts and all(part == "**" for part in wanted)
    hidden = parts[0].startswith(".")
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or (not hidden and _matches(parts[1:], wanted))
    fits = fnmatch.fnmatchcase(parts[0], wanted[0]) and hidden <= wanted[0].startswith(".")
    return fits and _matches(parts[1:], wanted[1:])


def _expanded(pattern: str) -> Iterator[str]:
    """Expand the braces of a pattern. UserError where there are too many names, counted in advance."""
    if os.path.lexists(pattern) or "{" not in pattern:
        return iter([pattern])
    if _count(pattern) > MOST_TARS:
        raise UserError(f"--input {shown(pattern)} names more than {MOST_TARS} files; give fewer or a folder")
    try:
        return iter(braceexpand.braceexpand(pattern))
    except ValueError:
        raise UserError(f"--input {shown(pattern)}: its braces do not match") from None


_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


def _count(pattern: str) -> int:
    """Count the names that a pattern expands to without making them; steps of ranges are ignored."""
    # For every open brace: names of its finished alternatives, of the current one, and where that starts.
    levels = [(0, 1, 0)]
    escaped = False
    for position, character in enumerate(pattern):
        if escaped or character == "\\":
            escaped = not escaped
            continue
        alternatives, names, start = levels[-1]
        if character == "{":
            levels.append((0, 1, position + 1))
        elif character == "," and len(levels) > 1:
            levels[-1] = (alternatives + names, 1, start)
        elif character == "}" and len(levels) > 1:
            levels.pop()
            outer, before, first = levels[-1]
            here = _range_size(pattern[start:position]) or alternatives + names
            levels[-1] = (outer, before * here, first)
        if len(levels) > _DEEPEST_BRACES or levels[-1][1] > MOST_TARS or levels[-1][0] > MOST_TARS:
            return MOST_TARS + 1
    return levels[0][1]


def _range_size(inner: str) -> int | None:
    """The number of items of a range, ignoring its step; None for what is not a range."""
    if _LETTERS.fullmatch(inner):
        return 52
    if (found := _NUMBERS.fullmatch(inner)) is None:
        return None
    if len(inner) > 40:  # int() refuses numbers of thousands of digits
        return MOST_TARS + 1
    return abs(int(found[2]) - int(found[1])) + 1
