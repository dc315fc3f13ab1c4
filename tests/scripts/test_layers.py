"""`dualtoken layers`: numbers, plot and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtoken.data_pipelines.scenes.scene import random_scene, render
from dualtoken.scripts import cli
from dualtoken.scripts.layers import choose_images

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for number in range(180):
        render(random_scene(np.random.default_rng(number)), 32).save(folder / "sub" / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def tokenizer(tiny_tokenizer, tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def layers(*arguments: object) -> int:
    return cli.run_command("layers", [str(argument) for argument in arguments])


def test_taps_picture_and_numbers(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, numbers = tmp_path / "layers.png", tmp_path / "layers.json"
    given = ("--backbone", tokenizer, "--images", photos, "--segments", 2, "--device", "cpu")
    assert layers(*given, "--output", plot, "--json", numbers) == 0
    output = capsys.readouterr()
    found = json.loads(numbers.read_text())
    assert f"pixel_layer: {found['pixel_layer']}  semantic_layer: {found['semantic_layer']}" in output.out
    assert len(found["pixel_share"]) == len(found["linear_cka"]) == 4
    assert "broken.jpg" in output.err
    with Image.open(plot) as image:
        assert image.size[0] > 800


def test_images_in_shards_are_found_as_files_are(tmp_path: Path) -> None:
    from dualtoken.data_pipelines.records import Record, image_part, user
    from dualtoken.data_pipelines.shards.writer import ShardWriter

    scene = render(random_scene(np.random.default_rng(0)), 32)
    with ShardWriter(tmp_path / "set" / "shards", source="made for tests", licence="MIT") as writer:
        for number in range(5):
            writer.write(Record(id=str(number), messages=[user(image_part(scene))]))
    scene.save(tmp_path / "set" / "scene.png")
    assert len(choose_images(tmp_path / "set", 100, seed=0)) == 6
    assert len(choose_images(tmp_path / "set", 3, seed=0)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--images": "nowhere"}, "is not a folder"),
        ({"--images": "."}, "holds no image"),
        ({"--backbone": "nowhere"}, "nowhere"),
        ({"--output": "layers.jpg"}, "must end in .png"),
    ],
)
def test_mistakes_leave_nothing_behind(
    changes: dict[str, str],
    message: str,
    photos: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    given = {"--backbone": str(tokenizer), "--images": str(photos), "--output": "layers.png", **changes}
    assert layers(*(word for pair in given.items() for word in pair)) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())
