"""dualtoken reconstruct and dualtoken quickstart on the tiny model."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.mllm import DualTokenPipeline
from dualtoken.scripts.cli import main
from dualtoken.scripts.reconstruct import psnr, side_by_side


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_reconstruct_shows_both_and_prints_the_psnr_of_the_picture(
    tiny_model, picture, working_folder, capsys
):
    argv = [
        "reconstruct",
        "--model",
        str(tiny_model),
        "--device",
        "cpu",
        str(picture),
        "--output",
        "both.png",
    ]
    assert main(argv) == 0
    both = Image.open("both.png")
    assert both.size == (512, 256)
    before, after = both.crop((0, 0, 256, 256)), both.crop((256, 0, 512, 256))
    assert capsys.readouterr().out == f"PSNR {psnr(before, after):.2f} dB\n"
    pipeline = DualTokenPipeline.from_pretrained(tiny_model, device="cpu")
    assert (
        after.resize((16, 16), Image.Resampling.NEAREST).tobytes() == pipeline.reconstruct(picture).tobytes()
    )
    assert not Path("codes.npz").exists()


def test_reconstruct_writes_codes_that_decode_to_the_picture(tiny_model, picture, working_folder):
    argv = ["reconstruct", "--model", str(tiny_model), "--device", "cpu", str(picture)]
    assert main([*argv, "--output", "deep/both.png", "--codes", "deep/codes.npz"]) == 0
    codes = np.load("deep/codes.npz")
    assert sorted(codes.files) == ["pixel", "semantic"]
    assert codes["pixel"].shape == codes["semantic"].shape == (2, 2, 2)
    assert codes["pixel"].dtype == np.uint16
    pipeline = DualTokenPipeline.from_pretrained(tiny_model, device="cpu")
    with torch.inference_mode():
        decoded = pipeline.model.visual_tokenizer.decode(
            torch.from_numpy(codes["pixel"].astype(np.int64))[None]
        )
    (image,) = pipeline.processor.image_processor.to_images(decoded)
    assert image.tobytes() == pipeline.reconstruct(picture).tobytes()


def test_psnr_is_the_textbook_one():
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))
    assert psnr(black, black) == float("inf")


@pytest.mark.parametrize(("side", "expected"), [(64, 256), (100, 300), (256, 256), (384, 384)])
def test_side_by_side_enlarges_by_whole_factors(side, expected):
    picture = side_by_side(Image.new("RGB", (side, side), "red"), Image.new("RGB", (side, side), "blue"))
    assert picture.size == (2 * expected, expected)
    assert picture.getpixel((expected - 1, 0)) == (255, 0, 0)
    assert picture.getpixel((expected, 0)) == (0, 0, 255)


def test_quickstart_answers_draws_and_names_its_files(tiny_model, working_folder, capsys):
    assert main(["quickstart", "--model", str(tiny_model), "--device", "cpu", "--num-images", "2"]) == 0
    out = capsys.readouterr().out
    assert "What shape is the purple object?" in out
    assert re.search(r"done in \d+\.\d s", out)
    names = ["drawing_0.png", "drawing_1.png", "scene.png"]
    assert sorted(path.name for path in Path("quickstart").iterdir()) == names
    assert all(f"quickstart/{name}" in out for name in names)
    assert Image.open("quickstart/scene.png").size == (256, 256)


def test_a_broken_weight_file_is_a_users_mistake(tiny_model, working_folder, capfd):
    shutil.copytree(tiny_model, "broken")
    weights = Path("broken/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["chat", "--model", "broken", "--question", "Who?"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("dualtoken chat: error: ")
    assert err.count("\n") == 1
