"""Converters of data sets of rows: on the hub, saved by `datasets`, or in files of parquet, JSON or CSV.

One process reads the rows in order (streamed by default), and the workers make records of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...common.errors import UserError, first_line, one_line
from ...common.outputs import Inputs
from ...common.paths import user_path
from .converter import Converter
from .hf_datasets import Dataset, open_dataset
from .samples import Rejected, Sample


@dataclass
class RowsConverter(Converter):
    """The rows of one split of a data set: a hub id, a parquet, JSON, CSV or Arrow file, or a folder.

    The payload of a sample is the number of the row and its columns `columns_read`.
    """

    path: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True

    def __post_init__(self) -> None:
        self.name = one_line(self.path)
        self._data: Dataset | None = open_dataset(
            self.path, self.config, self.split, self.revision, self.streaming
        )
        self.seeks = self._data.seeks

    @property
    def data(self) -> Dataset:
        """The opened data set; only in the process that reads it."""
        assert self._data is not None
        return self._data

    def columns_read(self) -> list[str]:
        """The names of the columns that the records are made of."""
        raise NotImplementedError

    @classmethod
    def add_row_arguments(cls, parser: argparse.ArgumentParser, files: str = "") -> None:
        """Add the options of the input; `files`: what else it may be."""
        add = parser.add_argument
        add("--input", required=True, help=f"hub id, folder, or parquet, JSON or CSV file{files}")
        add("--config", help="configuration (subset) of the data set")
        add("--split", default="train", help="split to read (default %(default)s)")
        add("--revision", help="commit, branch or tag on the hub")
        add("--no-streaming", action="store_true", help="download the data set first")

    @staticmethod
    def row_arguments(args: argparse.Namespace) -> dict[str, Any]:
        """The fields of this class in a parsed command line."""
        return {
            "path": args.input,
            "config": args.config,
            "split": args.split,
            "revision": args.revision,
            "streaming": not args.no_streaming,
        }

    def settings(self) -> dict[str, Any]:
        return {"config": self.config, "split": self.split, "revision": self.revision}

    def inputs(self) -> Inputs:
        local = user_path(self.path)
        return {"--input": local if local.exists() else None}

    def fingerprint(self) -> str:
        return self.data.fingerprint

    def total(self) -> int | None:
        return None if self.data.total is None else self.data.total + len(self.data.damaged)

    def samples(self) -> Iterator[Sample | Rejected]:
        return self.samples_from(0)

    def samples_from(self, start: int) -> Iterator[Sample | Rejected]:
        yield from self.data.damaged[start:]
        number = max(0, start - len(self.data.damaged))
        try:
            rows = self.data.read(self.columns_read(), number)
            for number, row in enumerate(rows, start=number):  # noqa: B020
                name = f"row {number}"
                yield Rejected(name, row) if isinstance(row, str) else Sample(name, (number, row))
        except UserError:
            raise
        except Exception as error:  # Arrow, the hub and the file systems have no common exception
            raise UserError(
                f"{self.path} cannot be read after row {number} ({type(error).__name__}: "
                f"{first_line(error)}): finished shards are kept, give the same command again to resume."
            ) from error
