"""What is in a folder of shards: tasks, roles, images, texts, and what was rejected and why."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..records import Record, RecordError
from .check import each_shard
from .format import read_manifest
from .reader import ShardDataset

#: By name ("tasks", "turns") or by name and role ("texts", "user"): how often each value occurs.
Tally = defaultdict[Any, Counter[Any]]


def _add_record(tally: Tally, record: Record) -> None:
    tally["tasks"][record.task()] += 1
    tally["images_per_record"][len(record.image_parts())] += 1
    tally["turns_per_record"][len(record.messages)] += 1
    tally["turns"].update(message["role"] for message in record.messages)
    for role, part in record.parts():
        if part["type"] == "text":
            tally["characters", role][len(part["text"])] += 1
            tally["words", role][len(part["text"].split())] += 1
            continue
        tally["images"][role] += 1
        if "image" in part:
            image = part["image"]
            tally["formats"][image.format or "unknown"] += 1
            tally["widths"][image.width] += 1
            tally["heights"][image.height] += 1
        else:
            tally["codes"][" x ".join(map(str, part["pixel_codes"].shape))] += 1


def _shard_tally(folder: Path, shard: Mapping[str, Any]) -> tuple[Tally, list[str]]:
    """The counts of one shard, and its unreadable records; images are opened for their size, not decoded."""
    tally: Tally = defaultdict(Counter)
    unreadable = []
    dataset = ShardDataset(folder / shard["file"], records=shard["records"])
    for index in range(len(dataset)):
        try:
            _add_record(tally, dataset[index])
        except RecordError as error:
            unreadable.append(str(error))
    return tally, unreadable


def statistics(folder: str | os.PathLike[str], workers: int = 1) -> dict[str, Any]:
    """Counts and distributions of a folder of shards, ready for JSON.

    Lengths of texts are in characters and words, sizes of images in pixels. Raises UserError when there is no
    manifest or a shard is damaged.
    """
    manifest = read_manifest(folder)
    tally: Tally = defaultdict(Counter)
    unreadable: list[str] = []
    for part, errors in each_shard(partial(_shard_tally, Path(folder)), manifest["shards"], workers):
        unreadable += errors
        for name, values in part.items():
            tally[name].update(values)
    counts = manifest["counts"]
    return {
        "source": manifest["source"],
        "licence": manifest["licence"],
        "records": counts["records"],
        "images": counts["images"],
        "splits": counts["splits"],
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "tasks": dict(tally["tasks"].most_common()),
        "roles": {
            role: {
                "turns": tally["turns"][role],
                "texts": tally["words", role].total(),
                "images": tally["images"][role],
                "characters_per_text": distribution(tally["characters", role]),
                "words_per_text": distribution(tally["words", role]),
            }
            for role in ("system", "user", "assistant")
            if role in tally["turns"]
        },
        "images_per_record": {str(number): n for number, n in sorted(tally["images_per_record"].items())},
        "turns_per_record": distribution(tally["turns_per_record"]),
        "image_formats": dict(tally["formats"].most_common()),
        "image_width": distribution(tally["widths"]),
        "image_height": distribution(tally["heights"]),
        "codes": dict(tally["codes"].most_common()),
        "unreadable": unreadable,
        "rejected": {"samples": counts["rejected"], "reasons": manifest["rejected"]["reasons"]},
    }


def distribution(counts: Counter[int]) -> dict[str, float] | None:
    """Minimum, median, mean, 95th percentile and maximum of counted values; None without any."""
    total = counts.total()
    if not total:
        return None
    values = sorted(counts)
    cumulative = np.cumsum([counts[value] for value in values])
    median, p95 = (values[int(cumulative.searchsorted(share * total))] for share in (0.5, 0.95))
    mean = sum(value * count for value, count in counts.items()) / total
    return {"min": values[0], "median": median, "mean": round(mean, 1), "p95": p95, "max": values[-1]}
