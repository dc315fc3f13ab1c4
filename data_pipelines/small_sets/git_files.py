"""Files of one commit of a git repository: of a clone on the disk, or downloaded without all the history.

Everything is read from git's object store, so a commit need not be checked out and nothing in a user's clone
is changed. The `git` program does the work.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...common.errors import UserError

# Files read by one call of git.
_BATCH = 256
_FULL = re.compile(r"[0-9a-f]{40}")
_COMMANDS = ("init", "config", "fetch", "ls-remote", "ls-tree")
_QUIET = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_ONLINE = {"fetch", "ls-remote"}
# A clone's settings may come from anybody: what is missing in it is not fetched by a program that they name.
_OFFLINE = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": ""}


class GitFiles:
    """The files of one commit.

    folder: a clone, bare or with a working tree. commit: its full name. remote: True for a download that
    holds no file contents yet; they are then fetched together before they are read.
    """

    def __init__(self, folder: Path, commit: str, remote: bool = False) -> None:
        self.folder, self.commit, self.remote = folder, commit, remote
        listing = _git(folder, "ls-tree", "-r", "-z", commit)
        self._objects: dict[str, str] = {}
        for line in filter(None, listing.split("\0")):
            properties, path = line.split("\t", 1)
            kind, name = properties.split()[1:3]
            if kind == "blob":
                self._objects[path] = name

    def paths(self, folder: str = "") -> list[str]:
        """Every path below `folder`, sorted by code point."""
        start = f"{folder.strip('/')}/" if folder else ""
        return sorted(path for path in self._objects if path.startswith(start))

    def first_folder(self, *candidates: str) -> str:
        """The first of `candidates` that the commit has. Raises UserError when it has none of them."""
        for folder in candidates:
            if self.paths(folder):
                return folder
        raise UserError(
            f"{self.folder} at {self.commit[:9]} has no folder {' or '.join(candidates)}: it is another "
            "repository or its layout has changed; give an older commit with --revision."
        )

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(path, content) in the given order. Raises UserError for a path that the commit does not have."""
        wanted = list(paths)
        for path in wanted:
            if path not in self._objects:
                raise UserError(f"{self.folder} at {self.commit[:9]} has no file {path}.")
        if self.remote and wanted:
            self._fetch(sorted({self._objects[path] for path in wanted}))
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            yield from zip(batch, self._contents([self._objects[path] for path in batch]), strict=True)

    def _contents(self, objects: list[str]) -> Iterator[bytes]:
        names = "".join(f"{name}\n" for name in objects)
        output = _run(self.folder, ("cat-file", "--batch"), names.encode()).stdout
        position = 0
        for name in objects:
            end = output.find(b"\n", position)
            header = output[position:end].split()
            if len(header) != 3:
                raise UserError(f"{self.folder}: the object {name} cannot be read; is the clone complete?")
            position = end + 1 + int(header[2])
            yield output[end + 1 : position]
            position += 1

    def read_one(self, path: str) -> bytes:
        """The content of one file."""
        return next(iter(self.read([path])))[1]

    def _fetch(self, objects: list[str]) -> None:
        """All at once, as git itself does it: one by one would be a request each."""
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin")
        command = ("-c", "fetch.negotiationAlgorithm=noop", "fetch", *options, "origin")
        _git(self.folder, *command, stdin="\n".join(objects) + "\n")


def local_files(clone: Path, revision: str) -> GitFiles:
    """The files at `revision` of a clone on the disk.

    Raises UserError when `clone` is not a repository or does not have the revision.
    """
    _require_git()
    # A prefix: the folder is not a clone itself but lies in one.
    if not clone.is_dir() or _try_git(clone, "rev-parse", "--show-prefix") != "\n":
        raise UserError(f"--clone {clone} is not a clone of a git repository.")
    commit = _try_git(clone, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        raise UserError(
            f"--clone {clone} has no commit {revision}: a shallow clone is completed by "
            f"'git -C {clone} fetch --unshallow', or leave out --clone and it is downloaded."
        )
    return GitFiles(clone, commit.strip())


def downloaded_files(url: str, revision: str, folder: Path) -> GitFiles:
    """The files at `revision` of the repository at `url`, with `folder` for what is downloaded.

    A folder that an interrupted download left is used again. Of a revision that is neither a branch nor a
    full name, such as `69b0092a7^`, the commits alone are fetched first, to find out its full name.
    Raises UserError when `url` cannot be reached or has no such revision.
    """
    _require_git()
    folder.mkdir(parents=True, exist_ok=True)
    _git(folder, "init", "--quiet", "--bare")
    # A promisor remote: git then knows that missing contents are not damage.
    settings = {"url": url, "promisor": "true", "partialclonefilter": "blob:none"}
    for key, value in settings.items():
        _git(folder, "config", f"remote.origin.{key}", value)
    commit = _remote_commit(folder, url, revision)
    fetch = ("fetch", "--quiet", "--no-tags", "--depth=1", "--filter=blob:none")
    _git(folder, *fetch, "origin", commit)
    return GitFiles(folder, commit, remote=True)


def _remote_commit(folder: Path, url: str, revision: str) -> str:
    if _FULL.fullmatch(revision):
        return revision
    listed = _git(folder, "ls-remote", "--quiet", "origin")
    names = {name: commit for commit, name in (line.split("\t") for line in listed.splitlines())}
    for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}"):
        if name in names:
            return names[name]
    commits = folder / "commits"
    commits.mkdir(exist_ok=True)
    _git(commits, "init", "--quiet", "--bare")
    fetch = ("fetch", "--quiet", "--no-tags", "--filter=tree:0")
    _git(commits, *fetch, url, "HEAD:refs/heads/head")
    commit = _try_git(commits, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    shutil.rmtree(commits)
    if commit is None:
        raise UserError(f"{url} has no commit {revision}.")
    return commit.strip()


def _require_git() -> None:
    if shutil.which("git") is None:
        raise UserError("The program 'git' is needed to read public repositories: install it.")


def _git(folder: Path, *arguments: str, stdin: str = "") -> str:
    """The output of a git command. Raises UserError with git's own reason."""
    done = _run(folder, arguments, stdin.encode())
    if done.returncode:
        lines = os.fsdecode(done.stderr).strip().splitlines() or [f"status {done.returncode}"]
        fatal = next((line for line in lines if line.startswith("fatal:")), lines[-1])
        command = next(word for word in arguments if word in _COMMANDS)
        raise UserError(f"'git {command}' in {folder} failed: {fatal.removeprefix('fatal: ')}")
    return os.fsdecode(done.stdout)


def _try_git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, or None when it failed."""
    done = _run(folder, arguments, b"")
    return None if done.returncode else os.fsdecode(done.stdout)


def _run(folder: Path, arguments: tuple[str, ...], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | _QUIET | ({} if _ONLINE & {*arguments} else _OFFLINE)
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], input=stdin, capture_output=True, env=environment
    )
