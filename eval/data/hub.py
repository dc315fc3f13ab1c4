"""Download of the data of tasks from the Hugging Face hub; loaders read the files in its cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...common.errors import UserError, first_line

PREFIX = "hub"


@dataclass(frozen=True)
class HubData:
    """A task's dataset repository, and the patterns of the files to download for each of its splits."""

    repo: str
    files: Mapping[str, tuple[str, ...]]


class Fetched(NamedTuple):
    """The folder to load from, and its source as in the manifest: "hub:ORG/NAME@COMMIT"."""

    root: Path
    source: str


def is_hub(data: str | Path | None) -> bool:
    """Whether `--data` asks for the hub: "hub" or "hub:…"."""
    return isinstance(data, str) and data.partition(":")[0].partition("@")[0] == PREFIX


def fetch(data: str, task: str, hub: HubData | None, split: str) -> Fetched:
    """Download the files of a split, unless they are in the cache (HF_HUB_OFFLINE=1: the cache only).

    Args:
        data: "hub", "hub@REVISION", or "hub:ORG/NAME[@REVISION]" for another dataset of the same layout.
        task: its name, for messages.

    Raises:
        UserError: the task or the split is not on the hub, or its files are neither there nor in the cache.
    """
    if hub is None:
        raise UserError(f"{task} is not taken from the hub; give --data DIR, the folder of its files")
    if (patterns := hub.files.get(split)) is None:
        known = ", ".join(hub.files)
        raise UserError(f"{task}: the split {split} is not on the hub, {known} are; give --data DIR")
    repo, revision = _parse(data, hub)
    root = snapshot(repo, "dataset", patterns, f"{task} also takes --data DIR", revision)
    if not any(next(root.glob(pattern), None) for pattern in patterns):
        raise UserError(
            f"{task}: {repo} holds no {' or '.join(patterns)}; give a dataset laid out like {hub.repo}"
        )
    return Fetched(root, f"{PREFIX}:{repo}@{root.name}")  # the cache names a snapshot after its commit


def snapshot(repo: str, kind: str, patterns: Sequence[str], advice: str, revision: str | None = None) -> Path:
    """The folder of a "dataset" or "model" in the hub's cache, downloaded first where it is not there.

    UserError, which ends with `advice`, where it can be neither downloaded nor found.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo, repo_type=kind, revision=revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # the hub, the network and the disk have no common exception
        raise UserError(
            f"{repo} is not in the cache and cannot be fetched from the hub ({first_line(error)}); {advice}"
        ) from error
    return Path(folder)


def _parse(data: str, hub: HubData) -> tuple[str, str | None]:
    name, _, revision = data.partition("@")
    repo = name.partition(":")[2] if ":" in name else hub.repo
    if repo.count("/") != 1 or not all(repo.split("/")) or (not revision and "@" in data):
        raise UserError(f"--data {data} names no dataset; write hub, hub@REVISION or hub:ORG/NAME[@REVISION]")
    return repo, revision or None
