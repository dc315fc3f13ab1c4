"""Encode a record as the members of one webdataset sample, and decode it (see `format` for the layout)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...common.errors import ImageError, first_line, shown
from ...common.images.reading import load_image, open_image
from ...common.images.sources import image_source
from ...common.json_files import JsonError, parse_json
from ..records import STORED_FORMATS, EncodedImage, Part, Record, RecordError, with_image_parts
from .stored_image import encode_image
from .tar_index import require_readable, stored_size

CODE_PARTS = {"pixel_codes": "pixel", "semantic_codes": "semantic"}
#: Codes are stored as uint16.
CODE_LIMIT = 1 << 16
#: Bytes of a record without its images: twice a context of a million tokens.
_LARGEST_RECORD = 1 << 23

Members = list[tuple[str, bytes]]


@dataclass(frozen=True)
class EncodedSample:
    """A record as the members of its sample: (ending of the name, content)."""

    members: Members
    num_images: int


def encode_record(record: Record) -> EncodedSample:
    """Validate and encode a record. RecordError for an invalid record or an unreadable image."""
    record.validate()
    members: Members = []
    parts: list[Part] = []
    for number, part in enumerate(record.image_parts()):
        stored, files = _encode_image_part(part, number, record.id)
        parts.append(stored)
        members += files
    messages = with_image_parts(record, parts).messages
    data = {"id": record.id, "messages": messages, "metadata": record.metadata}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    _require_size(text)
    members.insert(0, ("json", text))
    try:
        require_readable(sum(stored_size(content) for _, content in members))
    except OSError as error:
        raise RecordError(f"Record {shown(record.id)}: {error}") from None
    return EncodedSample(members, len(parts))


def _encode_image_part(part: Part, number: int, record_id: str) -> tuple[Part, Members]:
    if "image" not in part:
        names = {field: f"{number}.{label}.npy" for field, label in CODE_PARTS.items()}
        files = [(name, _encode_codes(part[field], record_id)) for field, name in names.items()]
        return {"type": "image", **names}, files
    encoded = _encode_image(part["image"], record_id)
    name = f"{number}.{encoded.extension}"
    return {**part, "image": name}, [(name, encoded.data)]


def _encode_image(image: Any, record_id: str) -> EncodedImage:
    """The bytes of an image file if shards store its format, else a PNG."""
    if isinstance(image, EncodedImage):
        return image
    try:
        _, found = image_source(image)
        if isinstance(found, bytes) and (kind := open_image(found).format) in STORED_FORMATS:
            return EncodedImage(found, STORED_FORMATS[kind])
        upright = load_image(found)
    except ImageError as error:
        name = shown(str(image)) if isinstance(image, str | os.PathLike) else "given"
        raise RecordError(f"Record '{record_id}': the image {name} cannot be read ({error}).") from error
    return encode_image(upright)


def _encode_codes(codes: Any, record_id: str) -> bytes:
    array = np.asarray(codes)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
        raise RecordError(f"Record '{record_id}': codes are integers of shape (H, W, D), got {array.shape}.")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < CODE_LIMIT:
        raise RecordError(f"Record '{record_id}': codes must lie in [0, {CODE_LIMIT}), the range of uint16.")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype="<u2"))
    return buffer.getvalue()


# --- reading ----------------------------------------


@dataclass(frozen=True)
class CodeShape:
    """The shape of a tokenizer's codes: grid (H, W); depth and num_codes by the keys of `CODE_PARTS`."""

    grid: tuple[int, int]
    depth: Mapping[str, int]
    num_codes: Mapping[str, int]

    @classmethod
    def of(cls, grid: Sequence[int], pixel: Mapping[str, Any], semantic: Mapping[str, Any]) -> CodeShape:
        """The shape for a grid and the settings of both quantizers."""
        quantizers = dict(zip(CODE_PARTS, (pixel, semantic), strict=True))
        depth, num_codes = (
            {field: settings[name] for field, settings in quantizers.items()}
            for name in ("depth", "num_codes")
        )
        return cls((grid[0], grid[1]), depth, num_codes)

    def problem(self, field: str, codes: np.ndarray) -> str | None:
        """Why an array of integers (H, W, D) or (H·W, D) does not fit, or None."""
        height, width = self.grid
        depth, limit = self.depth[field], self.num_codes[field]
        if codes.shape not in ((height, width, depth), (height * width, depth)):
            return f"its {field} have shape {codes.shape}, expected {(height, width, depth)}"
        if not 0 <= int(codes.min()) <= (largest := int(codes.max())) < limit:
            return f"its {field} hold code {largest}; there are {limit} codes"
        return None


def decode_record(
    members: Mapping[str, bytes], load_images: bool = True, shape: CodeShape | None = None
) -> Record:
    """The valid record of a sample's members. RecordError, with the reason, for an invalid sample.

    Images are opened (they decode at first use), codes become arrays that must fit `shape` if given. Without
    `load_images` the image parts keep the names of their members, which are not checked.
    """
    if "json" not in members:
        raise RecordError("it has no .json")
    _require_size(members["json"])
    try:
        data = parse_json(members["json"])
    except JsonError as error:
        raise RecordError(f"its .json is not a record ({error})") from None
    if not isinstance(data, dict):
        raise RecordError(f"its .json is not a record: {shown(data)} is not an object")
    record = Record(data.get("id"), data.get("messages"), data.get("metadata")).check_messages()  # type: ignore[arg-type]
    if load_images:
        for part in record.image_parts():
            load_part(part, members, shape)
    return record


def _require_size(text: bytes) -> None:
    if len(text) > _LARGEST_RECORD:
        raise RecordError(f"its .json has {len(text)} bytes; at most {_LARGEST_RECORD} are read")


def load_part(part: Part, members: Mapping[str, bytes], shape: CodeShape | None = None) -> None:
    """Replace the names of members by the image, or the codes; errors as in `decode_record`."""
    for field in ("image", *CODE_PARTS):
        if field not in part:
            continue
        name = part[field]
        if not isinstance(name, str) or name not in members:
            raise RecordError(f"its member {shown(name)} is missing")
        if field != "image":
            part[field] = _decode_codes(members[name], field, shape)
            continue
        try:
            part[field] = open_image(members[name])
        except ImageError as error:
            raise RecordError(f"image {shown(name)}: {error}") from None


def _decode_codes(data: bytes, field: str, shape: CodeShape | None) -> np.ndarray:
    try:
        body = 10 + int.from_bytes(data[8:10], "little")
        codes = np.frombuffer(data, dtype="<u2", offset=body).reshape(_stored_shape(data[:body]))
    except Exception as error:  # numpy evaluates the header as a Python literal, which fails in many ways
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise RecordError(f"its {field} cannot be read ({reason})") from None
    if codes.ndim != 3 or not codes.size:
        raise RecordError(f"its {field} have shape {codes.shape}, expected (H, W, D)")
    if shape is not None and (problem := shape.problem(field, codes)):
        raise RecordError(problem)
    return codes


@lru_cache(maxsize=256)
def _stored_shape(header: bytes) -> tuple[int, ...]:
    """The shape in a .npy header, cached because all images of a shard share it and parsing is slow."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("cached codes must be .npy of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or dtype != np.dtype("<u2"):
        raise ValueError(f"cached codes must be uint16 in C order, got {shown(dtype)}")
    return shape
