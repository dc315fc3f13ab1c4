"""Section `data`: what a run reads, and in which portions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...common.limits import limited
from .paths import locate


@dataclass(frozen=True)
class SourceConfig:
    """One named set of shards in the mixture.

    Args:
        path: folder of shards, as written by ``dualtoken prepare`` or ``dualtoken tokenize``, or its URL
            (``s3://bucket/folder``, ``https://…``).
        weight: relative share of the sampled records; only ratios between sources matter.
        max_repeats: a source is not read more often than this many epochs; its share then goes to the
            others. None sets no limit; at least one source must have none.
        shuffle: ``records`` reads the records in a fully random order. ``shards`` reads ``shuffle_window``
            shards at a time, each in runs of consecutive records, and mixes these: for data that are far
            away or larger than the memory that caches files.
        shuffle_window: shards that are mixed with ``shuffle: shards``. More mix better.
    """

    path: str
    weight: float = limited(1.0, above=0.0, most=1e9)
    max_repeats: float | None = limited(None, above=0.0, most=1e9)
    shuffle: Literal["records", "shards"] = "records"
    shuffle_window: int = limited(16, least=1, most=65_536)

    def __post_init__(self) -> None:
        locate(self, "path")


@dataclass(frozen=True)
class DataConfig:
    """What the run reads, and in which portions.

    Args:
        sources: the mixture, by name.
        micro_batch_size: records per rank and forward pass; with packing, rows.
        sort_window: this many micro-batches are read together and sorted by length, so that a batch holds
            records of similar length and little padding; their order is shuffled again. 1 switches sorting
            off.
        num_workers: processes that decode images ahead of the loop; 0 decodes in the main process.
        pack_length: rows of this many tokens, each of several records that do not see one another; longer
            ones see ``long_text``. 0 puts one record into a row. For ``mllm`` only.
        pack_window: records that are packed together. More fill the rows better and take more memory.
        max_length: records of more tokens than this, or than the language model's context, are too long;
            0 leaves only the context. Together with ``micro_batch_size`` it bounds the
            memory of a step. For ``mllm`` only.
        long_text: ``split`` makes pieces of a text that is too long for a row, or without packing takes one
            of its pieces, another one in each epoch: documents anywhere, dialogues before a user's turn.
            ``skip`` leaves it out. What cannot be split is skipped, counted and named. For ``mllm`` only.
        cache: folder on a local disk of every machine, for the shards of sources behind URLs. Empty: with
            ``shuffle: shards`` a folder of the machine's folder for temporary files, otherwise no cache.
        cache_gb: the most that the cache holds, in GB. It must have room for two windows of every source
            that has ``shuffle: shards``.
    """

    sources: dict[str, SourceConfig]
    micro_batch_size: int = limited(32, least=1, most=65_535)
    sort_window: int = limited(1, least=1, most=10_000)
    num_workers: int = limited(0, least=0, most=256)
    pack_length: int = limited(0, least=0, most=2**22)
    pack_window: int = limited(256, least=1, most=1_000_000)
    max_length: int = limited(0, least=0, most=2**22)
    long_text: Literal["split", "skip"] = "split"
    cache: str = ""
    cache_gb: float = limited(200.0, above=0.0, most=1e6)

    def __post_init__(self) -> None:
        locate(self, "cache")
