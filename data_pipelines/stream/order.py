"""The order in which the records of one source are read, as a function of (epoch, position).

An order holds no state between calls, so any position can be asked for at any time: a resumed run, another
rank and another number of ranks see the same order. Every epoch gives every record exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...common.errors import UserError
from ...common.values import whole_number

#: Version of the order of `shuffle: records`, for checkpoints: 1 stores every permutation, 2 computes that of
#: a long source.
ORDER_VERSION = 2
#: Records of a source whose permutation is stored, half a megabyte; a longer one is computed.
LARGEST_STORED = 1 << 16

_ROUNDS = 8
_BLOCK = 1 << 13  # consecutive positions that are computed together


class Order(Protocol):
    """One source's order: `index(epoch, position)` is the record to read."""

    def index(self, epoch: int, position: int) -> int: ...


def record_order(length: int, seed: int, source: int, version: int = ORDER_VERSION) -> Order:
    """The records of source number `source` in fully random order.

    Errors:
        UserError for a version of the order that is not known.
    """
    if version not in (1, ORDER_VERSION):
        raise UserError(
            f"the order of the records has version {version}; this version of dualtoken knows 1 to "
            f"{ORDER_VERSION}: resume with the version that wrote the checkpoint"
        )
    if version == 1 or length <= LARGEST_STORED:
        return StoredOrder(length, seed, source)
    return ComputedOrder(length, seed, source)


class StoredOrder:
    """A uniformly random permutation for each epoch, 8 bytes a record in memory."""

    def __init__(self, length: int, seed: int, source: int) -> None:
        self._length, self._key = length, (seed, 1, source)
        self._epoch = -1
        self._indices = np.empty(0, np.int64)

    def index(self, epoch: int, position: int) -> int:
        if epoch != self._epoch:
            self._indices = np.random.default_rng((*self._key, epoch)).permutation(self._length)
            self._epoch = epoch
        return int(self._indices[position])


class ComputedOrder:
    """A pseudo-random permutation for each epoch whose memory does not depend on the number of records.

    A Feistel network over the smallest power of two with room for all records; a number above the last record
    is permuted again until it is one ("cycle walking", Black and Rogaway 2002), which takes less than two
    rounds through the network on average.
    """

    def __init__(self, length: int, seed: int, source: int) -> None:
        bits = max(2, (length - 1).bit_length())
        self._length, self._key = length, (seed, 1, source)
        self._widths = bits // 2, bits - bits // 2
        self._cached = (-1, -1)
        self._indices = np.empty(0, np.int64)

    def index(self, epoch: int, position: int) -> int:
        block, offset = divmod(position, _BLOCK)
        if (epoch, block) != self._cached:
            end = min(self._length, (block + 1) * _BLOCK)
            self._indices = self.indices(epoch, np.arange(block * _BLOCK, end))
            self._cached = epoch, block
        return int(self._indices[offset])

    def indices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The records at `positions`, an int64 array."""
        keys = np.random.default_rng((*self._key, epoch)).integers(2**64, size=_ROUNDS, dtype=np.uint64)
        values = positions.astype(np.uint64)
        outside = np.arange(len(values))
        while len(outside):
            values[outside] = self._permuted(values[outside], keys)
            outside = outside[values[outside] >= self._length]
        return values.astype(np.int64)

    def _permuted(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """One pass through the network; after an even number of rounds the halves have their widths again."""
        left_bits, right_bits = self._widths
        left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
        for key in keys:
            mixed = left ^ (_scrambled(right + key) & np.uint64((1 << left_bits) - 1))
            left, right = right, mixed
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


def _scrambled(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ShardOrder:
    """Shards in random order, of which `window` are being read at a time.

    Every shard is cut into as many runs of consecutive records as the window has shards. The window slides
    over the shuffled shards, one at a time; each of its positions is a *bin* with one run of every shard in
    the window, shuffled together. So a bin has about as many records as a shard, and whoever reads in this
    order needs one new shard for every bin. The first shards of an epoch are mixed with its last ones.

    Args:
        lengths: records of each shard, in the order of the source's indices.
        window: shards; more mix better.
    """

    def __init__(self, lengths: Sequence[int], window: int, seed: int, source: int) -> None:
        self._lengths = np.asarray(lengths, np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self.window = min(whole_number(window, "shuffle_window", 1), len(self._lengths))
        self._key = (seed, 4, source)
        self._epoch = self._bin = -1
        self._shards = self._first_runs = self._edges = self._indices = np.empty(0, np.int64)

    def index(self, epoch: int, position: int) -> int:
        if epoch != self._epoch:
            self._begin(epoch)
        number = int(np.searchsorted(self._edges, position, side="right"))
        if number != self._bin:
            self._bin, self._indices = number, self._records(number)
        return int(self._indices[position - (int(self._edges[number - 1]) if number else 0)])

    def shards(self, epoch: int, position: int) -> list[int]:
        """The shards of the window at a position, the newest first."""
        self.index(epoch, position)
        return [int(self._shards[self._bin - age]) for age in range(self.window)]

    def _begin(self, epoch: int) -> None:
        """Shuffle the shards, and count the records of every bin."""
        rng = np.random.default_rng((*self._key, epoch))
        count = len(self._lengths)
        self._shards = rng.permutation(count)
        self._first_runs = rng.integers(self.window, size=count)
        sizes = np.zeros(count, np.int64)
        for age in range(self.window):
            begin, end = self._run(np.arange(count), age)
            sizes += np.roll(end - begin, age)
        self._edges, self._epoch, self._bin = np.cumsum(sizes), epoch, -1

    def _run(self, place: np.ndarray, age: int) -> tuple[np.ndarray, np.ndarray]:
        """(first record, end) of what the shards at `place` give to the bin `age` after they entered."""
        shard = self._shards[place]
        run = (self._first_runs[place] + age) % self.window
        length = self._lengths[shard]
        begin, end = length * run // self.window, length * (run + 1) // self.window
        return self._starts[shard] + begin, self._starts[shard] + end

    def _records(self, number: int) -> np.ndarray:
        runs = [self._run(np.array(number - age), age) for age in range(self.window)]
        records = np.concatenate([np.arange(int(begin), int(end)) for begin, end in runs])
        np.random.default_rng((*self._key, self._epoch, number)).shuffle(records)
        return records
