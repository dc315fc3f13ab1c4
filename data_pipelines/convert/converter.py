"""The base class of converters: list the samples of a data set, and make records of each."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...common.errors import UserError
from ...common.outputs import Inputs, examining
from ..records import Record
from .samples import Rejected, Sample


class Converter:
    """Converts one data set to records; on the command line `dualtoken prepare KIND` (see `registry`).

    A converter is sent to worker processes without the attributes that have a leading underscore; the others
    must be picklable. `name`, `licence` and `settings` (any JSON) go to the manifest: equal settings and an
    equal `fingerprint` of the input must give equal records.
    """

    #: The word after `dualtoken prepare`, a summary and example commands for its help.
    kind: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str] = ""

    name: str = ""
    licence: str = "unknown"
    #: Records made of one sample: a part of the work has as many samples as fill a shard.
    records_per_sample: int = 1
    #: Whether `samples_from` is fast: then a node of many lists only the samples of its own parts.
    seeks: bool = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command's options, except those of the output."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Converter:
        """The converter of a parsed command line."""
        return cls()

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every sample, always in the same order."""
        raise NotImplementedError

    def records(self, payload: Any) -> Iterable[tuple[Record, str] | Rejected]:
        """(record, split) for each record of a sample, in a worker process. RecordError rejects it.

        A `Rejected` among them names a part that is left out, such as one of many images.
        """
        raise NotImplementedError

    def samples_from(self, start: int) -> Iterator[Sample | Rejected]:
        """The samples without the first `start`; override it where there is a faster way than skipping."""
        return itertools.islice(self.samples(), start, None)

    def settings(self) -> dict[str, Any]:
        """Everything besides the input that the records depend on."""
        return {}

    def fingerprint(self) -> str:
        """Changes when the input changes, so that an unfinished run is not resumed with other data."""
        return ""

    def inputs(self) -> Inputs:
        """The files and folders that are read, by the option that names them: no output may replace them."""
        return {}

    def check_inputs(self) -> None:
        """Raise UserError for one of `inputs` that does not exist."""
        for option, given in self.inputs().items():
            for path in [given] if isinstance(given, Path) else given or []:
                with examining(path, option):
                    found = path.exists()
                if not found:
                    raise UserError(f"{option} {path} does not exist: give a file or folder that does")

    def skipped(self) -> Mapping[str, int]:
        """Counts of ignored items of the input, by kind; complete when all samples have been listed."""
        return {}

    def total(self) -> int | None:
        """The number of samples, if it is known in advance."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}
