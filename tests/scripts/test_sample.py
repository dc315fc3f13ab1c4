"""dualtoken sample: files, their description, and that a call can be repeated exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dualtoken
from dualtoken.common.outputs import MARK
from dualtoken.scripts import options, sample_t2i
from dualtoken.scripts.cli import main
from dualtoken.scripts.nano.contact_sheet import CELL, card_sheet, contact_sheet, thumbnail


@pytest.fixture
def sample(tiny_model: Path, tmp_path: Path):
    """Run the command on the tiny model, with an output folder in tmp_path, and return that folder."""

    def run(*arguments: str, output: str = "out") -> Path:
        argv = ["sample", "--model", str(tiny_model), "--device", "cpu", "--output", str(tmp_path / output)]
        assert main([*argv, *arguments]) == 0
        return tmp_path / output

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_their_description(sample, tiny_model):
    folder = sample(
        "--prompt", "a red circle", "--prompt", "two stars", "--num-images", "2", "--top-p", "0.9"
    )
    images = ["0000_00.png", "0000_01.png", "0001_00.png", "0001_01.png"]
    assert sorted(contents(folder)) == sorted([MARK, *images, "grid.png", "samples.json"])
    assert Image.open(folder / images[0]).size == (16, 16)
    description = json.loads((folder / "samples.json").read_text())
    assert [entry["file"] for entry in description["images"]] == images
    assert description["images"][3] == {"file": images[3], "prompt": "two stars", "seed": 0, "index": 1}
    assert description["model"] == str(tiny_model)
    assert description["device"] == "cpu"
    assert description["versions"]["dualtoken"] == dualtoken.__version__
    assert description["settings"] == {
        "num_images": 2,
        "seed": 0,
        "batch_size": 16,
        "guidance_scale": 1.5,  # the model's own
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.9,
        "truncate_from_level": 0,
        "batch_invariant": 0,
        "guidance_schedule": "constant",
        "sampler": "inverse_cdf",
    }


def test_the_same_call_gives_the_same_bytes(sample):
    arguments = ("--prompt", "a red circle", "--num-images", "3", "--seed", "7", "--guidance-scale", "2")
    first, second = sample(*arguments, output="one"), sample(*arguments, output="two")
    assert contents(first) == contents(second)
    again = sample(*arguments, output="one")
    assert contents(again) == contents(second)


def test_another_seed_gives_other_images(sample):
    one = sample("--prompt", "a star", "--seed", "1", output="one")
    two = sample("--prompt", "a star", "--seed", "2", output="two")
    assert contents(one)["0000_00.png"] != contents(two)["0000_00.png"]


def test_a_prompts_file_in_batches(sample, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  two stars  \na blue square\n", encoding="utf-8")
    file = ("--prompts-file", str(tmp_path / "prompts.txt"), "--num-images", "2")
    small = sample(*file, "--batch-size", "1", output="small")
    large = sample(*file, "--batch-size", "8", "--batch-invariant", "2", output="large")
    description = json.loads((large / "samples.json").read_text())
    prompts = [entry["prompt"] for entry in description["images"]]
    assert prompts == ["a red circle"] * 2 + ["two stars"] * 2 + ["a blue square"] * 2
    for entry in description["images"]:
        one, other = (np.array(Image.open(folder / entry["file"]), dtype=int) for folder in (small, large))
        assert abs(one - other).max() <= 1  # rounded differently by the decoder, from the same codes


def test_a_later_call_replaces_the_earlier_images_and_nothing_else(sample):
    folder = sample("--prompt", "a star", "--num-images", "3")
    (folder / "0000_77.png").write_bytes(b"mine, not in samples.json")
    (folder / "notes.txt").write_text("mine")
    sample("--prompt", "a star", "--num-images", "1")
    names = ["0000_00.png", "0000_77.png", "grid.png", "notes.txt", "samples.json"]
    assert sorted(contents(folder)) == [MARK, *names]


@pytest.mark.parametrize("theirs", ["grid.png", "samples.json", "0000_00.png"])
def test_a_file_of_the_users_is_not_replaced(theirs, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "load_pipeline", lambda *args: pytest.fail("the model is loaded"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / theirs).write_text("mine")
    argv = ["sample", "--model", str(tiny_model), "--prompt", "a star", "--output", str(tmp_path / "out")]
    assert main(argv) == 2
    assert theirs in capsys.readouterr().err
    assert contents(tmp_path / "out") == {theirs: b"mine"}


def test_a_mark_from_elsewhere_deletes_nothing_outside_the_folder(sample, tmp_path):
    (tmp_path / "0000_00.png").write_bytes(b"precious")
    folder = sample("--prompt", "a star", "--num-images", "1")
    (folder / MARK).write_text('{"entries": ["../0000_00.png", "0000_00.png", "grid.png", "samples.json"]}')
    sample("--prompt", "a star", "--num-images", "1")
    assert (tmp_path / "0000_00.png").read_bytes() == b"precious"


def test_an_interrupted_call_leaves_nothing(sample, tiny_model, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_t2i, "contact_sheet", interrupt)
    argv = ["sample", "--model", str(tiny_model), "--prompt", "a star", "--output", str(tmp_path / "out")]
    assert main(argv) == 130
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_has_a_row_for_each_prompt_and_cuts_long_texts():
    small, large = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (1000, 500), "blue")
    assert thumbnail(small).size == (CELL, CELL)
    assert thumbnail(large).size == (CELL, CELL // 2)
    sheet = contact_sheet([("a " * 500, [thumbnail(small)] * 3), ("b", [thumbnail(large)])])
    assert sheet.width == 8 + 3 * (CELL + 8)
    assert sheet.getpixel((sheet.width - 20, 100)) == (255, 0, 0)
    assert sheet.getpixel((20, sheet.height - CELL + 20)) == (0, 0, 255)


def test_white_images_can_be_seen_on_the_sheets():
    white = Image.new("RGB", (64, 64), "white")
    frame = Image.new("L", (CELL + 2, CELL + 2), 255)
    frame.paste(0, (1, 1, CELL + 1, CELL + 1))
    for sheet in (contact_sheet([("", [thumbnail(white)])]), card_sheet([("", [white])], 1)):
        grey = sheet.convert("L").point(lambda level: 255 if level == 0xB0 else 0)
        left, top, right, bottom = grey.getbbox()
        assert (right - left, bottom - top) == frame.size
        assert grey.crop((left, top, right, bottom)).tobytes() == frame.tobytes()
    images = [Image.new("RGB", (900, 900), colour) for colour in ("white", "red", "lime", "blue")]
    sheet = card_sheet([("", images)], 1)
    counts = {colour: count for count, colour in sheet.getcolors(1 << 20)}
    side = CELL // 3 - 3
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert counts[colour] == side**2, "no frame covers an image"
