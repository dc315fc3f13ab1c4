"""The one reader of images: what people give, what is refused, and hostile files that cost one line each."""

import base64
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dualtoken.common.errors import ImageError
from dualtoken.common.images import sources as image_sources
from dualtoken.common.images.damaged_files import orientation, without_metadata
from dualtoken.common.images.reading import LONGEST_SIDE, MAX_PIXELS, decode_image, is_image_name, load_image

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
PICTURE = Image.fromarray(LEVELS)
#: Orientation 6, a quarter turn, and an XResolution that is a text instead of a fraction.
DAMAGED_EXIF = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x02\0\0\0\x04abc\0\0\0\0\0"
)


def encoded(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PngImagePlugin._MAGIC + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def damaged_avif() -> bytes:
    data = bytearray(encoded("AVIF"))
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    return bytes(data)


PNG = encoded("PNG")
BASE64 = base64.b64encode(PNG).decode()
TENSOR = torch.from_numpy(LEVELS)


# --- what is taken ---


@pytest.mark.parametrize(
    "source",
    [
        PICTURE,
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        io.BytesIO(PNG),
        SimpleNamespace(data=PNG),
        f"data:image/png;base64,{BASE64}",
        f" data:image/png;base64,{BASE64}\n",
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/png;charset=utf-8;base64,{quote(BASE64, safe='')}",
        "data:," + "".join(f"%{byte:02x}" for byte in PNG),
        BASE64,
        BASE64.encode(),
        "\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        LEVELS,
        LEVELS.transpose(2, 0, 1),
        LEVELS / 255,
        LEVELS.astype(np.float32),
        LEVELS.astype(np.int64),
        TENSOR,
        TENSOR.permute(2, 0, 1),
        (TENSOR.permute(2, 0, 1) / 255).requires_grad_(),
        np.dstack([LEVELS, np.full((24, 20), 255, np.uint8)]),
    ],
)
def test_an_image_however_it_is_given(source: object):
    assert np.array_equal(load_image(source), LEVELS)


def test_greys():
    grey = LEVELS[:, :, 0]
    for source in (grey, grey[None], grey[:, :, None], torch.from_numpy(grey), grey / 255):
        assert np.array_equal(np.asarray(load_image(source))[..., 1], grey)
    assert load_image(np.eye(8, dtype=bool)).getpixel((3, 3)) == (255, 255, 255)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a[1]*?.png", "~odd.png", "data:x", "http:", "ä\udcff.png"):
        Path(name).write_bytes(PNG)
        assert load_image(name).size == (20, 24)
        assert load_image(Path(name)).size == (20, 24)
    for source in ("~/a[1]*?.png", "file://" + str(tmp_path / "a%5B1%5D%2A%3F.png"), Path("~/data:x")):
        assert load_image(source).size == (20, 24)
    with open("a[1]*?.png", "rb") as file:
        assert load_image(file).size == (20, 24)


def test_a_buffer_that_was_just_written():
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    assert load_image(file).size == (20, 24)


# --- what is refused ---


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (3, "given as int"),
        (None, "given as NoneType"),
        ([PICTURE], "given as list"),
        ("https://example.org/a.png", "web address: download it"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/png", "not a data: URL"),
        ("ftp://host/a.png", "is a web address"),
        ("HTTPS://host/a.png", "is a web address"),
        ("s3://bucket/a.png", "is a web address"),
        ("file://[", "is not a path"),
        ("data:image/svg+xml,<svg/>", "is not an image"),
        ("", "is not a path"),
        ("a\0b", "is not a path"),
        ("half \ud800", "not a path"),
        ("x" * 100_000, "name too long"),
        ("~nobody-at-all/a.png", "no such user"),
        ("/dev/zero", "a pipe or a device"),
        ("/", "is a folder"),
        (b"", "is not an image"),
        (io.StringIO("text"), "open it with 'rb'"),
        (np.zeros((2, 3, 4, 5)), "give one image"),
        (np.zeros((0, 3, 3), np.uint8), "give one image"),
        (np.full((4, 4), np.nan), "from nan to nan"),
        (torch.randn(3, 8, 8) * 2, "floats from 0 to 1"),
        (np.full((4, 4), 1000), "floats from 0 to 1"),
        (np.array([["a"]]), "has type"),
    ],
)
def test_anything_else_is_one_line(source: object, reason: str):
    with pytest.raises(ImageError, match="(?i)" + reason) as caught:
        load_image(source)
    assert len(str(caught.value)) <= 300


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    found: list[BaseException] = []

    def read() -> None:
        try:
            load_image(tmp_path / "pipe.png")
        except ImageError as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert "a pipe or a device" in str(found[0])


def test_a_big_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.png").write_bytes(PNG)
    monkeypatch.setattr(image_sources, "LARGEST_IMAGE_FILE", len(PNG) - 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(ImageError, match="bytes, more than"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "size", [(1, MAX_PIXELS), (LONGEST_SIDE + 1, 1), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_sizes_are_checked_before_decoding_and_pillows_own_limit_is_silent(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=f"has {size[0]} x {size[1]} pixels"):
            load_image(png_header(*size))


def test_a_limit_above_pillows_own_is_obeyed():
    with pytest.raises(ImageError, match="truncated"):  # which shows that it was to be decoded
        load_image(png_header(14_000, 14_000), max_pixels=2 * 14_000**2)


# --- hostile files ---

PILLOWS_ERRORS = [
    *(NotImplementedError, TypeError, AttributeError, MemoryError, RuntimeError, RecursionError, SyntaxError),
    *(struct.error, zlib.error, IndexError, KeyError, EOFError, OSError, Image.DecompressionBombError),
]


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "QOI"]
)
def test_half_a_file_is_an_error(kind: str):
    data = encoded(kind)
    with pytest.raises(ImageError):
        load_image(data[: len(data) // 2])


def test_a_damaged_avif_is_broken():
    with pytest.raises(ImageError, match="is broken"):
        load_image(damaged_avif())


@pytest.mark.parametrize("error", PILLOWS_ERRORS)
@pytest.mark.parametrize("place", ["load", "convert"])
def test_every_error_of_pillow_is_an_image_error(error: type[Exception], place: str, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise error("inner trouble")

    image = PICTURE.convert("RGBA")
    monkeypatch.setattr(Image.Image, place, fail)
    with pytest.raises(ImageError, match=r"^the given image "):
        load_image(image)


@pytest.mark.parametrize("error", PILLOWS_ERRORS)
def test_errors_in_metadata_do_not_lose_the_image(error: type[Exception], monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise error("inner trouble")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert load_image(encoded("PNG", exif=DAMAGED_EXIF)).size == (24, 20)


def test_a_progressive_jpeg_of_endless_scans_is_refused_at_once():
    data = encoded("JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    started = time.monotonic()
    with pytest.raises(ImageError, match="scans"):
        load_image(data[:-2] + 100_000 * scan + data[-2:])
    assert time.monotonic() - started < 2


# --- metadata ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_with_a_damaged_tag_is_used_and_turned(kind: str):
    data = encoded(kind, exif=DAMAGED_EXIF)
    assert load_image(data).size == (24, 20)
    plain = without_metadata(data)
    if plain is not None:
        assert len(plain) < len(data)
        assert np.array_equal(load_image(plain), load_image(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_image_that_was_turned_is_not_turned_again(kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind, exif=exif)
    once = load_image(data)
    assert once.size == (24, 20)
    assert np.array_equal(load_image(once), once)
    given = Image.open(io.BytesIO(data))
    assert load_image(given).size == load_image(given).size == (24, 20)


def test_a_reader_that_stumbles_over_metadata_gets_the_pixels_alone(monkeypatch: pytest.MonkeyPatch):
    from PIL import JpegImagePlugin

    def fail(self: object) -> None:
        if "icc_profile" in self.info:  # type: ignore[attr-defined]
            raise AttributeError("a profile that is none")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "_read_dpi_from_exif", fail)
    data = encoded("JPEG", exif=DAMAGED_EXIF, icc_profile=b"x" * 1000)
    assert load_image(data).size == (24, 20)


def test_megabytes_of_text_cost_no_pixels():
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "x" * 3_000_000, zip=True)
    decoded = decode_image(encoded("PNG", pnginfo=text, exif=DAMAGED_EXIF))
    assert decoded.image.size == (24, 20)
    with Image.open(io.BytesIO(decoded.data)) as plain:  # anybody can read what is kept of it
        assert plain.getexif()[0x0112] == 6
        assert np.array_equal(plain, LEVELS)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", DAMAGED_EXIF[:20], b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_an_orientation_that_cannot_be_read_is_upright(exif: bytes):
    assert orientation(exif) == 1


def test_the_first_of_several_images_is_kept_as_jpeg():
    data = encoded("MPO", save_all=True, append_images=[PICTURE, PICTURE], quality=95)
    with Image.open(io.BytesIO(data)) as several:
        assert (several.format, several.n_frames) == ("MPO", 3)
        first = np.asarray(several.convert("RGB"))
    decoded = decode_image(data)
    assert decoded.format == "JPEG"
    assert len(decoded.data) < len(data) / 2
    with Image.open(io.BytesIO(decoded.data)) as plain:
        assert plain.format == "JPEG"
        assert np.array_equal(plain, first)
    assert is_image_name("photo.MPO")


# --- levels ---


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-0.05, 0.5, 1.05], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([-1000.0, 0.0, 1000.0], [0, 128, 255]),
        ([0.0, 30_000.0, 60_000.0], [0, 128, 255]),
        ([np.nan, 0.5, np.inf], [0, 128, 0]),
    ],
)
def test_a_float_tiff_is_not_black(values: list[float], levels: list[int]):
    data = encoded("TIFF", Image.fromarray(np.array([values], dtype=np.float32)))
    assert np.asarray(load_image(data))[0, :, 0].tolist() == levels


def test_sixteen_bits_are_not_clipped():
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.asarray(load_image(encoded(kind, Image.fromarray(values))))[0, :, 2].tolist() == [
            0,
            1,
            128,
            255,
        ]


# --- corruption of any kind ---

SEEDS = [encoded(kind, exif=DAMAGED_EXIF) for kind in ("JPEG", "PNG", "WEBP")]
SEEDS += [encoded(kind) for kind in ("AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "QOI", "ICO", "TGA", "PPM")]
SEEDS += [encoded("TIFF", compression="tiff_lzw"), encoded("JPEG", progressive=True)]
SEEDS += [encoded("PNG", PICTURE.quantize(9)), encoded("MPO", save_all=True, append_images=[PICTURE])]
EDIT = st.tuples(st.integers(0, 10**6), st.binary(min_size=0, max_size=8), st.integers(0, 4))


def read(source: bytes | str) -> None:
    """Read it, or refuse it in one line, within seconds."""
    started = time.monotonic()
    try:
        assert load_image(source, max_pixels=1_000_000).mode == "RGB"
    except ImageError as refused:
        error: ImageError | None = refused
    else:
        error = None
    assert error is None or len(str(error)) <= 300
    assert time.monotonic() - started < 5


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(SEEDS), st.lists(EDIT, min_size=1, max_size=6), st.integers(0, 400))
def test_no_corruption_raises_anything_else(data: bytes, edits: list[tuple[int, bytes, int]], cut: int):
    for position, content, lost in edits:
        at = position % max(1, min(len(data), 200 if position % 2 else 10**9))
        data = data[:at] + content + data[at + lost :]
    read(data[: len(data) - cut] if cut < 20 else data)


TEXTS = st.tuples(
    st.sampled_from(["", "data:", "data:image/png;base64,", "file:", "~"]), st.text(max_size=100)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=300), TEXTS.map("".join)))
def test_no_bytes_and_no_text_raise_anything_else(source: bytes | str):
    read(source)


def test_memory_is_bounded():
    """Headers of any claim take no more memory than the biggest image that is allowed."""
    code = (
        "import resource, sys; from dualtoken.common.images.reading import load_image\n"
        "from dualtoken.common.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data in eval(sys.stdin.read()):\n"
        "    try: load_image(data)\n"
        "    except ImageError: pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    sizes = [(1, MAX_PIXELS), (8_000, 8_000), (65_535, 900), (2**31 - 1, 1), (20_000, 20_000)]
    qoi = b"qoif" + struct.pack(">II", 8000, 8000) + b"\3\0" + b"\xfd" * 99
    hostile = [*(png_header(*size) for size in sizes), qoi, b"P6 2000000000 2000000000 255\n"]
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, input=repr(hostile), capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 800
