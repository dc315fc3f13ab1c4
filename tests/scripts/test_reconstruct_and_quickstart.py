"""dualtoken reconstruct and dualtoken quickstart on the tiny model."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.common.outputs import MARK
from dualtoken.mllm import DualTokenPipeline
from dualtoken.scripts import options
from dualtoken.scripts.cli import main
from dualtoken.scripts.reconstruct import psnr, side_by_side


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_reconstruct_shows_both_and_prints_the_psnr_of_the_image(tiny_model, photo, working_folder, capsys):
    argv = [
        "reconstruct",
        "--model",
        str(tiny_model),
        "--device",
        "cpu",
        str(photo),
        "--output",
        "both.png",
    ]
    assert main(argv) == 0
    both = Image.open("both.png")
    assert both.size == (512, 256)
    before, after = both.crop((0, 0, 256, 256)), both.crop((256, 0, 512, 256))
    assert capsys.readouterr().out == f"PSNR {psnr(before, after):.2f} dB\n"
    pipeline = DualTokenPipeline.from_pretrained(tiny_model, device="cpu")
    assert after.resize((16, 16), Image.Resampling.NEAREST).tobytes() == pipeline.reconstruct(photo).tobytes()
    assert not Path("codes.npz").exists()


def test_reconstruct_writes_codes_that_decode_to_the_image(tiny_model, photo, working_folder):
    argv = ["reconstruct", "--model", str(tiny_model), "--device", "cpu", str(photo)]
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
    assert image.tobytes() == pipeline.reconstruct(photo).tobytes()


def test_several_images_and_folders_become_a_folder_or_a_sheet(tiny_model, photo, working_folder, capsys):
    (working_folder / "photos" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        shutil.copy(photo, working_folder / "photos" / name)
    (working_folder / "photos" / "notes.txt").write_text("no image")
    (working_folder / "photos" / "broken.jpg").write_bytes(b"no image")
    argv = ["reconstruct", "--model", str(tiny_model), "--device", "cpu", "photos", str(photo)]
    assert main([*argv, "--output", "all", "--codes", "codes"]) == 0
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert "notes" not in captured.err
    assert captured.out.count("PSNR") == 4
    names = ["0000_a", "0002_a", "0003_image"]
    assert sorted(path.name for path in Path("all").iterdir()) == [MARK, *(f"{name}.png" for name in names)]
    assert sorted(path.name for path in Path("codes").iterdir()) == [MARK, *(f"{n}.npz" for n in names)]
    assert main([*argv, "--output", "all"]) == 0, "what the command made, it replaces"
    assert main([*argv, "--output", "sheet.png"]) == 0
    assert Image.open("sheet.png").size == (512, 3 * 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "--output", "photo.png"], "is also an image to reconstruct"),
        (["photo.png", "--output", "hard.png"], "is also an image to reconstruct"),
        (["photo.png", "--output", "sub/../photo.png"], "is also an image to reconstruct"),
        (["photo.png", "--output", "mine.png"], "not made by dualtoken"),
        (["photo.png", "--output", "new.png", "--codes", "mine.npz"], "not made by dualtoken"),
        (["photo.png", "--output", "new.png", "--codes", "sub"], "must end in .npz"),
        (["photo.png", "mine.png", "--output", "new.png", "--codes", "new.npz"], "go into a folder"),
        (["sub", "--output", "new.png"], "holds no image"),
        (["photo.png", "photo.png/x", "--output", "photo.png/new"], "cannot be"),
        ([".", "--output", "."], "is also the folder of the images"),
        (["photo.png", "mine.png", "--output", "own"], "'0000_photo.png', which dualtoken did not make"),
    ],
)
def test_reconstruct_accepts_no_input_and_no_foreign_file_as_output(
    arguments, message, photo, working_folder, capsys, monkeypatch
):
    monkeypatch.setattr(options, "load_pipeline", lambda *args: pytest.fail("the model is loaded"))
    shutil.copy(photo, "photo.png")
    shutil.copy(photo, "mine.png")
    Path("hard.png").hardlink_to("photo.png")
    Path("mine.npz").write_bytes(b"mine")
    Path("sub").mkdir()
    Path("own").mkdir()
    Path("own", "0000_photo.png").write_bytes(b"mine")
    before = {path: path.is_file() and path.read_bytes() for path in working_folder.rglob("*")}
    assert main(["reconstruct", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.is_file() and path.read_bytes() for path in working_folder.rglob("*")} == before


def test_psnr_is_the_textbook_one():
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))
    assert psnr(black, black) == float("inf")


@pytest.mark.parametrize(("side", "expected"), [(64, 256), (100, 300), (256, 256), (384, 384)])
def test_side_by_side_enlarges_by_whole_factors(side, expected):
    photo = side_by_side(Image.new("RGB", (side, side), "red"), Image.new("RGB", (side, side), "blue"))
    assert photo.size == (2 * expected, expected)
    assert photo.getpixel((expected - 1, 0)) == (255, 0, 0)
    assert photo.getpixel((expected, 0)) == (0, 0, 255)


def test_quickstart_answers_generates_and_names_its_files(tiny_model, working_folder, capsys):
    assert main(["quickstart", "--model", str(tiny_model), "--device", "cpu", "--num-images", "2"]) == 0
    out = capsys.readouterr().out
    assert "What shape is the purple object?" in out
    assert re.search(r"done in \d+\.\d s", out)
    names = ["drawing_0.png", "drawing_1.png", "scene.png"]
    assert sorted(path.name for path in Path("quickstart").iterdir()) == [MARK, *names]
    assert all(f"quickstart/{name}" in out for name in names)
    assert Image.open("quickstart/scene.png").size == (256, 256)


def test_quickstart_keeps_images_of_the_user(working_folder, capsys, monkeypatch):
    monkeypatch.setattr(options, "load_pipeline", lambda *args: pytest.fail("the model is loaded"))
    Path("quickstart").mkdir()
    Path("quickstart", "drawing_3.png").write_bytes(b"mine")
    assert main(["quickstart"]) == 2
    assert "'drawing_3.png', which dualtoken did not make" in capsys.readouterr().err
    assert Path("quickstart", "drawing_3.png").read_bytes() == b"mine"


def test_a_broken_weight_file_is_a_users_mistake(tiny_model, working_folder, capfd):
    shutil.copytree(tiny_model, "broken")
    weights = Path("broken/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["chat", "--model", "broken", "--question", "Who?"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("dualtoken chat: error: ")
    assert err.count("\n") == 1
