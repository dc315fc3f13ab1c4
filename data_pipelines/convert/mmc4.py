"""Convert Multimodal C4: documents of sentences, each image of which belongs to one sentence.

Layout: https://github.com/allenai/mmc4. `text_list` holds the sentences, `image_info` for each image
`image_name` (the name of its file), `raw_url`, `matched_text_index` and `matched_sim`. `similarity_matrix` is
what these were computed from, and is not used.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...common.arguments import number as number_argument
from ...common.errors import shown
from ...common.values import finite_number, one_of
from ..records import Record, RecordError
from .foreign_values import optional_text
from .interleaved import InterleavedConverter, Item, Picture
from .samples import Rejected

POSITIONS: tuple[str, ...] = ("before", "after")


@dataclass
class Mmc4Converter(InterleavedConverter):
    """One document for each row.

    Args:
        position: of an image, before or after its sentence.
        min_similarity: images whose `matched_sim` is lower are left out, and counted.
    """

    kind = "mmc4"
    summary = "interleaved documents in the layout of Multimodal C4 (text_list and image_info)"
    example = "dualtoken prepare mmc4 --input docs_shard_0_v3.jsonl --image-folder images --output data/mmc4"

    position: str = "before"
    min_similarity: float = 0.0

    needed: tuple[str, ...] = field(default=("text_list", "image_info"), init=False)
    optional: tuple[str, ...] = field(default=("url",), init=False)

    def __post_init__(self) -> None:
        one_of(self.position, "--image-position", POSITIONS)
        finite_number(self.min_similarity, "--min-similarity", 0.0, 1.0)
        super().__post_init__()

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        where = "of an image, before or after its sentence (default %(default)s)"
        parser.add_argument("--image-position", choices=POSITIONS, default=cls.position, help=where)
        least = "leave out images that fit their sentence less (matched_sim; default %(default)s)"
        parser.add_argument("--min-similarity", type=number_argument(0, 1), default=0.0, help=least)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Mmc4Converter:
        how = {"position": args.image_position, "min_similarity": args.min_similarity}
        return cls(**cls.fields_from(args), **how)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "position": self.position, "min_similarity": self.min_similarity}

    def records(self, payload: tuple[int, dict[str, Any]]) -> Iterator[tuple[Record, str] | Rejected]:
        number, row = payload
        name = f"{self.split}-{number}"
        sentences, images = row["text_list"], row["image_info"]
        if not isinstance(sentences, list) or not isinstance(images, list):
            raise RecordError("its text_list and image_info are not lists")
        of_sentence: dict[int, list[Picture]] = defaultdict(list)
        for image in images:
            index, similarity = _match(image, len(sentences))
            if similarity is not None and similarity < self.min_similarity:
                reason = f"its similarity is {similarity:.3f}; the document is kept without it"
                yield Rejected(f"{name}, image {image.get('image_name')}", reason)
            else:
                address = image.get("raw_url") if self.options.listed is not None else None
                of_sentence[index].append(Picture(address or image.get("image_name")))
        document: list[Item] = []
        for place, given in enumerate(sentences):
            text = (optional_text(given, "sentence") or "").strip()
            images_here, texts = of_sentence[place], [text] if text else []
            document += [*images_here, *texts] if self.position == "before" else [*texts, *images_here]
        url = row.get("url")
        yield from self.options.records(name, document, " ", {"url": url} if isinstance(url, str) else {})


def _match(image: Any, count: int) -> tuple[int, float | None]:
    """(index of the sentence, similarity) of an image. RecordError."""
    index = image.get("matched_text_index") if isinstance(image, dict) else None
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise RecordError(f"an image belongs to sentence {shown(index)} of {count}")
    similarity = image.get("matched_sim")
    return index, float(similarity) if isinstance(similarity, int | float) else None
