"""Convert OBELICS: rows with the lists `images` and `texts`, of which one has a value at every position.

Layout: the data set card of HuggingFaceM4/OBELICS. `images` holds web addresses, `general_metadata` is a JSON
object with the address of the page; `metadata` (of each image) is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import shown
from ..records import Record, RecordError
from .foreign_values import json_value, optional_text
from .interleaved import InterleavedConverter, Item, Picture
from .samples import Rejected


@dataclass
class ObelicsConverter(InterleavedConverter):
    """One document for each row."""

    kind = "obelics"
    summary = "interleaved documents in OBELICS's layout (columns images and texts)"
    example = """dualtoken prepare obelics --input obelics.parquet \\
    --image-folder images --image-list images.csv --output data/obelics"""

    needed: tuple[str, ...] = field(default=("images", "texts"), init=False)
    optional: tuple[str, ...] = field(default=("general_metadata",), init=False)

    def records(self, payload: tuple[int, dict[str, Any]]) -> Iterator[tuple[Record, str] | Rejected]:
        number, row = payload
        images, texts = row["images"], row["texts"]
        if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
            raise RecordError("its images and texts are not lists of equal length")
        document: list[Item] = []
        for place, (image, given) in enumerate(zip(images, texts, strict=True), 1):
            text = optional_text(given, "text")
            if (image is None) == (text is None):
                what = "both an image and a text" if text is not None else "neither an image nor a text"
                raise RecordError(f"position {place} of its lists has {what}")
            if text is None:
                document.append(Picture(image))
            elif text.strip():
                document.append(text.strip())
        yield from self.options.records(f"{self.split}-{number}", document, "\n\n", _page(row))


def _page(row: dict[str, Any]) -> dict[str, Any]:
    """The address of the page, where the row has it."""
    given = row.get("general_metadata")
    if given is None:
        return {}
    about = json_value(given, "general_metadata") if isinstance(given, str) else given
    if not isinstance(about, dict):
        raise RecordError(f"its general_metadata is {shown(about)}, not an object")
    return {"url": about["url"]} if isinstance(about.get("url"), str) else {}
