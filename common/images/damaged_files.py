"""Image files without metadata, for files whose metadata is damaged."""

from __future__ import annotations

import struct
import zlib

_ORIENTATION = 0x0112
_JPEG_START, _JPEG_SCAN, _JPEG_APP0, _JPEG_APP1, _JPEG_APP2 = 0xD8, 0xDA, 0xE0, 0xE1, 0xE2
#: Segments without pixels: comments, and application data except Adobe's, which has the colour transform.
_JPEG_METADATA = (*(set(range(0xE1, 0xF0)) - {0xEE}), 0xFE)
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def without_metadata(data: bytes) -> bytes | None:
    """The same JPEG or PNG with its pixels and its orientation only; None for other formats.

    One damaged tag, a colour profile or a text of megabytes keeps Pillow from opening a file with intact
    pixels.
    """
    if data[:3] == b"\xff\xd8\xff":
        segments, scans = _jpeg_segments(data)
        exif = next(
            (content for marker, content in segments if marker == _JPEG_APP1 and content[:4] == b"Exif"), b""
        )
        kept = [segment for segment in segments if segment[0] not in _JPEG_METADATA]
        return _jpeg([(0xE1, _exif(orientation(exif))), *kept], scans)
    if data.startswith(_PNG_START):
        chunks = _png_chunks(data)
        exif = next((chunk[8:-4] for chunk in chunks if chunk[4:8] == b"eXIf"), b"")
        kept_chunks = [chunk for chunk in chunks if chunk[4:8] in _PNG_PIXELS]
        turned = b"eXIf" + _exif(orientation(exif)).removeprefix(b"Exif\0\0")
        turned = struct.pack(">I", len(turned) - 4) + turned + struct.pack(">I", zlib.crc32(turned))
        return b"".join([_PNG_START, *kept_chunks[:1], turned, *kept_chunks[1:]])
    return None


def first_image(data: bytes, size: int) -> bytes:
    """The first image of an MPO (several images in one file, from phones and stereo cameras) as plain JPEG.

    size: bytes of the first image, from the file's table.
    """
    segments, scans = _jpeg_segments(data[:size])
    return _jpeg([s for s in segments if not (s[0] == _JPEG_APP2 and s[1].startswith(b"MPF\0"))], scans)


def orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block whose other tags may be damaged; 1 if it has none."""
    body = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", body, 4)
        (count,) = struct.unpack_from(f"{order}H", body, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", body, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:  # cut short
        pass
    return 1


def _exif(value: int) -> bytes:
    """An EXIF block with the orientation only."""
    entry = struct.pack(">HHIHH", _ORIENTATION, 3, 1, value, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


def _jpeg_segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The segments (marker, content) before the first scan, and the rest of the file."""
    segments = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _JPEG_SCAN:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        length = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return segments, data[at:]


def _jpeg(segments: list[tuple[int, bytes]], scans: bytes) -> bytes:
    parts = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments]
    return b"".join([bytes((0xFF, _JPEG_START)), *parts, scans])


def _png_chunks(data: bytes) -> list[bytes]:
    """Every chunk with its length, name and checksum; the last one may be cut short."""
    chunks = []
    at = len(_PNG_START)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at:end])
        at = end
    return chunks
