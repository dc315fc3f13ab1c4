"""Statistics of a stream of batches: padding, lengths, realised shares, skipped records, waiting time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..shards.retries import Retry

logger = logging.getLogger(__name__)

_NAMED = 100  # skipped records, and reads tried again, that are logged; all are counted
_STEPS_PER_DOUBLING = 8
_BUCKETS = 24 * _STEPS_PER_DOUBLING  # of the histogram of lengths, up to 2^24 tokens


@dataclass(frozen=True)
class Skip:
    """A record that could not be used: the number of its source in the recipe, its index there, why."""

    source: int
    index: int
    reason: str


@dataclass
class BatchFacts:
    """The contents of one batch. `lengths` are in tokens, 0 for examples without tokens."""

    positions: int = 0
    sources: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)


def example_length(example: Any) -> int:
    """Tokens of a model-ready example; 0 for one that is not a token sequence."""
    return len(example.input_ids) if hasattr(example, "input_ids") else 0


def batch_positions(batch: Any) -> int:
    """Positions of a batch's token sequences, padding included."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids.numel() if isinstance(ids, torch.Tensor) else 0


class StreamStatistics:
    """Sums the facts of one rank's batches; `read` returns the metrics since the last call.

    Args:
        names: of the sources, in the mixture's order.
        on_skip: is called with every skipped record.
    """

    def __init__(self, names: Sequence[str], on_skip: Callable[[Skip], None] | None = None) -> None:
        self.names = list(names)
        self.skipped = self.retried = 0  # since the start of the run, on this rank
        self._on_skip = on_skip
        self._reset()

    def _reset(self) -> None:
        self._positions = 0
        self._records = np.zeros(len(self.names))
        self._tokens = np.zeros(len(self.names))
        self._histogram = np.zeros(_BUCKETS)
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, facts: BatchFacts) -> None:
        """Count one batch, and log the records that were skipped or read again for it."""
        self._positions += facts.positions
        np.add.at(self._records, facts.sources, 1)
        np.add.at(self._tokens, facts.sources, facts.lengths)
        if facts.lengths:
            lengths = np.maximum(facts.lengths, 1)
            buckets = np.ceil(np.log2(lengths) * _STEPS_PER_DOUBLING).astype(int)
            np.add.at(self._histogram, np.minimum(buckets, _BUCKETS - 1), 1)
        for skip in facts.skips:
            self._log(skip)
        for retry in facts.retries:
            self.retried += 1
            if self.retried <= _NAMED:
                logger.warning("%s", retry)

    def _log(self, skip: Skip) -> None:
        self.skipped += 1
        if self._on_skip is not None:
            self._on_skip(skip)
        if self.skipped <= _NAMED:
            source = self.names[skip.source]
            logger.warning("skipped record %d of source %s: %s", skip.index, source, skip.reason)
        if self.skipped == _NAMED:
            logger.warning("%d records skipped; further ones are counted only", _NAMED)

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time spent waiting for them is counted."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - start
            yield batch

    def read(self, total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> dict[str, float]:
        """The metrics since the last call, over all ranks if `total` sums over them.

        fill_share and padding_share of all positions, length_mean, length_p50 and length_p95 in tokens (the
        percentiles to 9 %), share/NAME of the records, token_share/NAME of the tokens, skipped and retried
        (records since the start of the run), wait_share of the time.
        """
        elapsed = time.perf_counter() - self._since
        single = [self._positions, self._waited, elapsed, self.skipped, self.retried]
        numbers = np.concatenate([single, self._records, self._tokens, self._histogram])
        numbers = total(torch.from_numpy(numbers)).cpu().numpy()
        self._reset()
        positions, waited, elapsed, skipped, again = numbers[:5].tolist()
        records, tokens, histogram = np.split(numbers[5:], [len(self.names), 2 * len(self.names)])
        num_records, num_tokens = records.sum(), tokens.sum()
        metrics = {"skipped": skipped, "retried": again, "wait_share": waited / max(elapsed, 1e-9)}
        if num_records:
            shares = zip(self.names, records / num_records, strict=True)
            metrics |= {f"share/{name}": share for name, share in shares}
        if num_tokens:
            metrics["length_mean"] = num_tokens / num_records
            metrics["length_p50"] = _percentile(histogram, 0.5)
            metrics["length_p95"] = _percentile(histogram, 0.95)
            shares = zip(self.names, tokens / num_tokens, strict=True)
            metrics |= {f"token_share/{name}": share for name, share in shares}
        if num_tokens and positions:
            metrics["fill_share"] = num_tokens / positions
            metrics["padding_share"] = 1.0 - metrics["fill_share"]
        return {name: float(value) for name, value in metrics.items()}


def _percentile(histogram: np.ndarray, share: float) -> float:
    """The upper edge of the bucket in which a share of all counts is reached."""
    bucket = int(np.searchsorted(histogram.cumsum(), share * histogram.sum()))
    return 2.0 ** (bucket / _STEPS_PER_DOUBLING)
