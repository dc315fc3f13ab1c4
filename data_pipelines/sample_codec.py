"""A record as the members of one webdataset sample, and back (the layout is described in `shards`)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..common.errors import ImageError, shown
from ..common.image_sources import image_source
from ..common.images import load_image, open_image
from ..common.json_files import parse_json
from .records import STORED_FORMATS, EncodedImage, Message, Part, Record, RecordError

CODE_PARTS = {"pixel_codes": "pixel", "semantic_codes": "semantic"}
_CODE_LIMIT = 1 << 16

Members = list[tuple[str, bytes]]


@dataclass(frozen=True)
class EncodedSample:
    """A record as the members of its sample: (ending of the name, content)."""

    members: Members
    num_images: int


def encode_record(record: Record) -> EncodedSample:
    """A validated record as bytes. Raises RecordError for a broken record or an image that cannot be read."""
    record.validate()
    members: Members = []
    number = 0
    messages: list[Message] = []
    for message in record.messages:
        content: list[Part] = []
        for part in message["content"]:
            if part["type"] == "image":
                stored, files = _encode_image_part(part, number, record.id)
                content.append(stored)
                members.extend(files)
                number += 1
            else:
                content.append(part)
        messages.append({"role": message["role"], "content": content})
    data = {"id": record.id, "messages": messages, "metadata": record.metadata}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return EncodedSample([("json", text), *members], number)


def _encode_image_part(part: Part, number: int, record_id: str) -> tuple[Part, Members]:
    if "image" not in part:
        stored: Part = {"type": "image"}
        files = []
        for field, label in CODE_PARTS.items():
            stored[field] = f"{number}.{label}.npy"
            files.append((stored[field], _encode_codes(part[field], record_id)))
        return stored, files
    encoded = _encode_image(part["image"], record_id)
    name = f"{number}.{encoded.extension}"
    return {**part, "image": name}, [(name, encoded.data)]


def _encode_image(image: Any, record_id: str) -> EncodedImage:
    """The file of an image: its own bytes where it is a file of a format that is stored, else a PNG."""
    if isinstance(image, EncodedImage):
        return image
    try:
        _, found = image_source(image)
        kind = open_image(found).format if isinstance(found, bytes) else None
        if isinstance(found, bytes) and kind in STORED_FORMATS:
            return EncodedImage(found, STORED_FORMATS[kind])
        upright = load_image(found)
    except ImageError as error:
        name = shown(str(image)) if isinstance(image, str | os.PathLike) else "given"
        raise RecordError(f"Record '{record_id}': the image {name} cannot be read ({error}).") from error
    buffer = io.BytesIO()
    upright.save(buffer, format="PNG")
    return EncodedImage(buffer.getvalue(), "png")


def _encode_codes(codes: Any, record_id: str) -> bytes:
    array = np.asarray(codes)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
        raise RecordError(f"Record '{record_id}': codes are integers of shape (H, W, D), got {array.shape}.")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < _CODE_LIMIT:
        raise RecordError(
            f"Record '{record_id}': codes must lie in [0, {_CODE_LIMIT}) to be stored as uint16."
        )
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype="<u2"))
    return buffer.getvalue()


@lru_cache(maxsize=256)
def _code_shape(header: bytes) -> tuple[int, ...]:
    """Shape in a .npy header. Cached by its bytes: all images of a shard share it, and parsing it is slow."""
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or dtype != np.dtype("<u2"):
        raise ValueError(f"cached codes must be uint16 in C order, got {dtype}")
    return shape


def _decode_codes(data: bytes) -> np.ndarray:
    body = 10 + int.from_bytes(data[8:10], "little")
    return np.frombuffer(data, dtype="<u2", offset=body).reshape(_code_shape(data[:body]))


def decode_record(members: Mapping[str, bytes], load_images: bool = True) -> Record:
    """The record of a sample's members. Images are opened (they decode at first use), codes become arrays.

    Without `load_images` the image parts keep the names of their members. Raises RecordError for a record
    that breaks the schema, and KeyError, ValueError, TypeError or OSError for a damaged sample.
    """
    data = parse_json(members["json"])
    if not isinstance(data, dict):
        raise RecordError(f"its .json is no record but {shown(data)}")
    record = Record(data.get("id"), data.get("messages"), data.get("metadata")).check_messages()  # type: ignore[arg-type]
    if load_images:
        for part in record.image_parts():
            _load_part(part, members)
    return record


def _load_part(part: Part, members: Mapping[str, bytes]) -> None:
    if "image" in part:
        name = part["image"]
        try:
            part["image"] = open_image(members[name])
        except ImageError as error:
            raise ImageError(f"'{name}' {error}") from None
        return
    for field in CODE_PARTS:
        part[field] = _decode_codes(members[part[field]])
