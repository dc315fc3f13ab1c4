"""What a converter is: a small class that lists the samples of a data set and makes records of each."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ...common.outputs import Inputs
from ..records import Record
from .samples import Rejected, Sample


class Converter:
    """One data set on its way to records.

    It travels to worker processes, so all attributes without a leading underscore must be picklable; the
    others stay behind. `name` and `licence` go to the manifest, and `settings` (any JSON) too: equal settings
    and an equal `fingerprint` of the input must mean equal records.

    On the command line it is `dualtoken prepare KIND`; see `registry` for how that learns of a class.
    """

    #: The word after `dualtoken prepare`, what it takes, and lines of example for its help.
    kind: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str] = ""

    name: str = ""
    licence: str = "unknown"
    #: Records that one sample becomes: a part of the work is as many samples as fill a shard.
    records_per_sample: int = 1

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add what the command takes besides the output."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Converter:
        """The converter of a parsed command line."""
        return cls()

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every sample, always in the same order."""
        raise NotImplementedError

    def records(self, payload: Any) -> Iterable[tuple[Record, str]]:
        """(record, split) of one sample, in a worker process. Raises RecordError for one that is unusable."""
        raise NotImplementedError

    def samples_from(self, start: int) -> Iterator[Sample | Rejected]:
        """The samples without the first `start`; a converter may have a faster way than to skip them."""
        return itertools.islice(self.samples(), start, None)

    def settings(self) -> dict[str, Any]:
        """Everything that decides what the records are."""
        return {}

    def fingerprint(self) -> str:
        """Changes when the input changes, so that an unfinished run is not continued with other data."""
        return ""

    def inputs(self) -> Inputs:
        """The files and folders that are read, by the option that names them: no output may replace them."""
        return {}

    def skipped(self) -> Mapping[str, int]:
        """What of the input is not a sample, by what it is; known when all samples have been listed."""
        return {}

    def total(self) -> int | None:
        """How many samples there are, where it is known beforehand."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}
