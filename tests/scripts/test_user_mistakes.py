"""Every mistake a user can make on the command line: one clear line, exit status 2, nothing left behind.

No model is needed: the commands check what they were given before they load anything.
"""

import struct
import zlib
from pathlib import Path

import pytest
import torch

from dualtoken.scripts.cli import main

ABSENT_DEVICE = "mps" if torch.cuda.is_available() else "cuda"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with one bad file of every kind."""
    (tmp_path / "notes.txt").write_text("not an image\n")
    (tmp_path / "text.png").write_text("not an image either\n")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "no-model").mkdir()
    (tmp_path / "prompts-blank.txt").write_text("\n  \n")
    (tmp_path / "prompts-binary.txt").write_bytes(b"\xff\xfe\x00")
    signature = b"\x89PNG\r\n\x1a\n"
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(64 * (1 + 3 * 64))))
    (tmp_path / "good.png").write_bytes(signature + header + pixels + png_chunk(b"IEND", b""))
    (tmp_path / "broken.png").write_bytes((signature + header + pixels)[:60])
    huge = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(signature + huge + pixels + png_chunk(b"IEND", b""))
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD_IMAGES = ["missing.png", "notes.txt", "text.png", "empty.png", "folder.png", "broken.png", "huge.png"]
RECONSTRUCT = ["reconstruct", "--output", "out.png"]
SAMPLE = ["sample", "--output", "out"]
MISTAKES = [
    *[([*RECONSTRUCT, name], name) for name in BAD_IMAGES],
    *[(["chat", "--question", "What is this?", "--image", name], name) for name in BAD_IMAGES],
    (["chat", "--question", "Same?", "--image", "good.png", "--image", "missing.png"], "missing.png"),
    (["chat", "--question", "  ", "--image", "good.png"], "--question"),
    ([*SAMPLE, "--prompt", ""], "--prompt"),
    ([*SAMPLE, "--prompt", " \t"], "--prompt"),
    ([*SAMPLE, "--prompts-file", "prompts-blank.txt"], "prompts-blank.txt"),
    ([*SAMPLE, "--prompts-file", "prompts-binary.txt"], "prompts-binary.txt"),
    ([*SAMPLE, "--prompts-file", "missing.txt"], "missing.txt"),
    (SAMPLE, "--prompt"),
    ([*SAMPLE, "--prompt", "a star", "--prompts-file", "notes.txt"], "--prompts-file"),
    (["sample", "--prompt", "a star", "--output", "good.png"], "good.png"),
    ([*SAMPLE, "--prompt", "a star", "--num-images", "0"], "--num-images"),
    ([*SAMPLE, "--prompt", "a star", "--top-p", "1.5"], "--top-p"),
    ([*SAMPLE, "--prompt", "a star", "--temperature", "nan"], "--temperature"),
    (["quickstart", "--prompt", " "], "--prompt"),
    (["reconstruct", "good.png", "--output", "out.bmp"], "out.bmp"),
    (["reconstruct", "good.png", "--output", "folder.png"], "folder.png"),
    ([*RECONSTRUCT, "good.png", "--codes", "codes.txt"], "codes.txt"),
    ([*RECONSTRUCT, "good.png", "--device", ABSENT_DEVICE], ABSENT_DEVICE),
    ([*SAMPLE, "--prompt", "a star", "--device", ABSENT_DEVICE], ABSENT_DEVICE),
    (["chat", "--question", "Who?", "--device", ABSENT_DEVICE], ABSENT_DEVICE),
    (["quickstart", "--device", ABSENT_DEVICE], ABSENT_DEVICE),
    ([*SAMPLE, "--prompt", "a star", "--device", "tpu"], "tpu"),
    ([*SAMPLE, "--prompt", "a star", "--device", "cpu", "--quantization", "4bit"], "needs a CUDA device"),
    (["chat", "--question", "Who?", "--device", "cpu", "--quantization", "8bit"], "needs a CUDA device"),
    (["chat", "--question", "Who?", "--quantization", "2bit"], "2bit"),
    *[
        ([*arguments, "--model", model], model)
        for arguments in (
            [*RECONSTRUCT, "good.png"],
            [*SAMPLE, "--prompt", "a star"],
            ["chat", "--question", "Who?"],
            ["quickstart"],
        )
        for model in ("no-model", "./missing-model", "good.png")
    ],
]


@pytest.mark.parametrize(("argv", "named"), MISTAKES, ids=[" ".join(argv) for argv, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(argv, named, files, capfd):
    before = sorted(files.rglob("*"))
    assert main(argv) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"dualtoken {argv[0]}: error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert named in captured.err
    assert sorted(files.rglob("*")) == before
