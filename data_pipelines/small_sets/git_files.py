"""Read the files of one commit of a git repository: of a local clone, or downloaded without the history.

Files are read from git's object store by the `git` program: nothing is checked out, no clone is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...common.errors import UserError

_BATCH = 256  # files read by one call of git
_FULL = re.compile(r"[0-9a-f]{40}")
_COMMANDS = ("init", "config", "fetch", "ls-remote", "ls-tree")
_QUIET = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_ONLINE = {"fetch", "ls-remote"}
# The settings of a clone are not trusted: they must not run a program to fetch missing files.
_OFFLINE = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": ""}


class GitFiles:
    """The files of one commit.

    folder: a clone, bare or with a working tree. commit: the full hash. remote: whether `folder` is a
    download without file contents, which are then fetched together before they are read.
    """

    def __init__(self, folder: Path, commit: str, remote: bool = False) -> None:
        self.folder, self.commit, self.remote = folder, commit, remote
        # Lines of "mode type object\tpath"; submodules have no content.
        lines = filter(None, _git(folder, "ls-tree", "-r", "-z", commit).split("\0"))
        entries = [line.split("\t", 1) for line in lines]
        self._objects = {path: facts.split()[2] for facts, path in entries if facts.split()[1] == "blob"}

    def paths(self, folder: str = "") -> list[str]:
        """Every path below `folder`, sorted by code point."""
        start = f"{folder.strip('/')}/" if folder else ""
        return sorted(path for path in self._objects if path.startswith(start))

    def first_folder(self, *candidates: str) -> str:
        """The first of `candidates` that the commit has. UserError without any."""
        found = next((folder for folder in candidates if self.paths(folder)), None)
        if found is None:
            raise UserError(
                f"{self.folder} at {self.commit[:9]} has no folder {' or '.join(candidates)}: it is another "
                "repository or its layout has changed; give an older commit with --revision."
            )
        return found

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(path, content) in the given order. UserError for a path that the commit does not have."""
        wanted = list(paths)
        for path in wanted:
            if path not in self._objects:
                raise UserError(f"{self.folder} at {self.commit[:9]} has no file {path}.")
        if self.remote and wanted:
            # Together, as git itself does it: separate fetches would each be a request.
            objects = "\n".join(sorted({self._objects[path] for path in wanted}))
            options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin")
            command = ("-c", "fetch.negotiationAlgorithm=noop", "fetch", *options, "origin")
            _git(self.folder, *command, stdin=f"{objects}\n")
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


def local_files(clone: Path, revision: str) -> GitFiles:
    """The files at `revision` of a local clone. UserError where it is not a clone or lacks the revision."""
    # With a prefix, the folder is not a clone itself but lies in one.
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
    """The files at `revision` of the repository at `url`, downloaded to `folder`.

    The folder of an interrupted download is reused. For a revision that is neither a branch, a tag nor a full
    hash, such as `69b0092a7^`, the commits without files are fetched first, to find its full hash.

    Errors:
        UserError where `url` cannot be reached or does not have the revision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _git(folder, "init", "--quiet", "--bare")
    # With a promisor remote, git does not take missing contents for damage.
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


def _git(folder: Path, *arguments: str, stdin: str = "") -> str:
    """The output of a git command. UserError with git's reason where it fails."""
    done = _run(folder, arguments, stdin.encode())
    if done.returncode:
        lines = os.fsdecode(done.stderr).strip().splitlines() or [f"status {done.returncode}"]
        fatal = next((line for line in lines if line.startswith("fatal:")), lines[-1])
        command = next(word for word in arguments if word in _COMMANDS)
        raise UserError(f"'git {command}' in {folder} failed: {fatal.removeprefix('fatal: ')}")
    return os.fsdecode(done.stdout)


def _try_git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, or None where it fails."""
    done = _run(folder, arguments, b"")
    return None if done.returncode else os.fsdecode(done.stdout)


def _run(folder: Path, arguments: tuple[str, ...], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | _QUIET | ({} if _ONLINE & {*arguments} else _OFFLINE)
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, input=stdin, capture_output=True, env=environment)
    except FileNotFoundError:
        raise UserError("The program 'git' is needed to read public repositories: install it.") from None
