"""What is in a folder of shards: tasks, roles, images, texts, and what was rejected and why."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..records import Part, Record, RecordError
from .check import each_shard
from .format import read_manifest
from .reader import ShardDataset


@dataclass
class Tally:
    """Counts over records, and of values how often each occurs: tallies of shards add up to the folder's."""

    tasks: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    images_per_record: Counter[int] = field(default_factory=Counter)
    turns_per_record: Counter[int] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    characters: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    words: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    unreadable: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.tasks[record.task()] += 1
        self.images_per_record[len(record.image_parts())] += 1
        self.turns_per_record[len(record.messages)] += 1
        self.messages.update(message["role"] for message in record.messages)
        for role, part in record.parts():
            if part["type"] == "text":
                self.texts[role] += 1
                self.characters[role][len(part["text"])] += 1
                self.words[role][len(part["text"].split())] += 1
            elif part["type"] == "image":
                self.images[role] += 1
                self._add_image(part)

    def _add_image(self, part: Part) -> None:
        if "image" not in part:
            self.codes[" x ".join(map(str, part["pixel_codes"].shape))] += 1
            return
        image = part["image"]
        self.formats[image.format or "unknown"] += 1
        self.widths[image.width] += 1
        self.heights[image.height] += 1

    def merge(self, other: Tally) -> None:
        """Add the counts of `other`."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, list):
                mine.extend(value)
            elif isinstance(value, defaultdict):
                for role, counts in value.items():
                    mine[role].update(counts)
            else:
                mine.update(value)


def shard_tally(folder: Path, shard: Mapping[str, Any]) -> Tally:
    """The tally of one shard; images are opened for their size, not decoded."""
    tally = Tally()
    dataset = ShardDataset(folder / shard["file"], records=shard["records"])
    for index in range(len(dataset)):
        try:
            tally.add(dataset[index])
        except RecordError as error:
            tally.unreadable.append(str(error))
    return tally


def statistics(folder: str | os.PathLike[str], workers: int = 1) -> dict[str, Any]:
    """Counts and distributions of a folder of shards, ready for JSON.

    Lengths of texts are in characters and words, sizes of images in pixels. Raises UserError when there is no
    manifest or a shard is damaged.
    """
    manifest = read_manifest(folder)
    tally = Tally()
    for part in each_shard(partial(shard_tally, Path(folder)), manifest["shards"], workers):
        tally.merge(part)
    counts = manifest["counts"]
    roles = [role for role in ("system", "user", "assistant") if tally.messages[role]]
    return {
        "source": manifest["source"],
        "licence": manifest["licence"],
        "records": counts["records"],
        "images": counts["images"],
        "splits": counts["splits"],
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "tasks": dict(tally.tasks.most_common()),
        "roles": {
            role: {
                "turns": tally.messages[role],
                "texts": tally.texts[role],
                "images": tally.images[role],
                "characters_per_text": distribution(tally.characters[role]),
                "words_per_text": distribution(tally.words[role]),
            }
            for role in roles
        },
        "images_per_record": {str(number): n for number, n in sorted(tally.images_per_record.items())},
        "turns_per_record": distribution(tally.turns_per_record),
        "image_formats": dict(tally.formats.most_common()),
        "image_width": distribution(tally.widths),
        "image_height": distribution(tally.heights),
        "codes": dict(tally.codes.most_common()),
        "unreadable": tally.unreadable,
        "rejected": {"samples": counts["rejected"], "reasons": manifest["rejected"]["reasons"]},
    }


def distribution(values: Counter[int]) -> dict[str, float] | None:
    """Least, median, mean, 95th percentile and greatest of counted values; None without any."""
    total = values.total()
    if not total:
        return None
    ordered = sorted(values.items())

    def quantile(share: float) -> int:
        seen = 0
        for value, count in ordered:
            seen += count
            if seen >= share * total:
                return value
        return ordered[-1][0]

    mean = sum(value * count for value, count in ordered) / total
    return {
        "min": ordered[0][0],
        "median": quantile(0.5),
        "mean": round(mean, 1),
        "p95": quantile(0.95),
        "max": ordered[-1][0],
    }
