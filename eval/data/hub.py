"""Data of tasks from the Hugging Face hub, into its cache; the loaders then read them like local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...common.errors import UserError, first_line

PREFIX = "hub"


@dataclass(frozen=True)
class HubData:
    """The dataset repository of a task and, for each split that is there, the files of it to fetch."""

    repo: str
    files: Mapping[str, tuple[str, ...]]


class Fetched(NamedTuple):
    """The folder to load from, and its source for the manifest: "hub:ORG/NAME@COMMIT"."""

    root: Path
    source: str


def is_hub(data: str | Path | None) -> bool:
    """Whether `--data` asks for the hub: "hub" or "hub:…"."""
    return isinstance(data, str) and data.partition(":")[0].partition("@")[0] == PREFIX


def fetch(data: str, task: str, hub: HubData | None, split: str) -> Fetched:
    """Download what a split needs, unless it is in the cache.

    Args:
        data: "hub", "hub@REVISION", or "hub:ORG/NAME[@REVISION]" for a copy of the same layout.
        task: its name, for messages.
        hub: where the task is on the hub.
        split: the split wanted.

    Raises:
        UserError: the task or the split is not on the hub, or it can be neither reached nor found in the
            cache; HF_HUB_OFFLINE=1 allows the cache only.
    """
    if hub is None:
        raise UserError(f"{task} is not taken from the hub; give --data DIR, the folder of its files")
    patterns = hub.files.get(split)
    if patterns is None:
        raise UserError(
            f"{task}: the split {split} is not on the hub, {', '.join(hub.files)} are; give --data DIR"
        )
    repo, revision = _parse(data, hub)
    root = snapshot(repo, "dataset", patterns, f"{task} also takes --data DIR", revision)
    if not any(next(root.glob(pattern), None) for pattern in patterns):
        raise UserError(
            f"{task}: {repo} holds no {' or '.join(patterns)}; give a dataset laid out like {hub.repo}"
        )
    return Fetched(root, f"{PREFIX}:{repo}@{root.name}")  # the cache names a snapshot after its commit


def snapshot(repo: str, kind: str, patterns: Sequence[str], advice: str, revision: str | None = None) -> Path:
    """The files of a "dataset" or "model" in the hub's cache, fetched where they are not there.

    UserError with `advice` where they can be neither fetched nor found.
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
