"""The model that ships with the package, its held-out data, and the scripts that make and judge it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtoken.data_pipelines.scenes import Scene, SceneObject, render
from dualtoken.data_pipelines.shards import ShardDataset, verify_shards
from dualtoken.mllm import DualTokenPipeline
from dualtoken.scripts import cli, make_nano, nano_card

ROOT = Path(__file__).parents[2]
NANO, HELD_OUT = ROOT / "pretrained" / "nano", ROOT / "pretrained" / "nano_heldout"
FIGURES = {
    "tokenizer": {"psnr_db": {"scenes": 33.5}, "codebook_usage": {"pixel": [0.5, 1.0]}},
    "answers": {"scenes": {"accuracy": 70.0, "questions": 10}},
    "drawings": {"single_object": {"correct": 50.0, "colour": 80.0, "empty": 0.0, "drawings": 4}},
}


@pytest.fixture(scope="module")
def nano() -> DualTokenPipeline:
    return DualTokenPipeline.from_pretrained("nano", device="cpu")


def test_nano_weighs_at_most_28_mb() -> None:
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= 28e6


def test_shipped_files_name_no_path_of_a_machine() -> None:
    shipped = [*NANO.rglob("*"), *HELD_OUT.rglob("*")]
    for path in (path for path in shipped if path.suffix in (".json", ".yaml", ".md")):
        assert not any(root in path.read_text() for root in ("/home/", "/work/", "/root/", "/tmp/")), path


def test_nano_sees_colours(nano: DualTokenPipeline) -> None:
    for colour in ("red", "blue", "yellow", "black"):
        scene = render(Scene((SceneObject("circle", colour, 0.5, 0.5, 0.24),)), 128)
        assert nano.answer(scene, "What colour is the circle?") == colour


def test_nano_draws_the_same_image_for_the_same_seed_alone_or_beside_others(nano: DualTokenPipeline) -> None:
    alone = nano.generate_images("a red circle", 1, seed=3)[0]
    beside = nano.generate_images("a red circle", 3, seed=3)
    # The codes are the same; the pixels of another batch size may be rounded the other way.
    assert _largest_difference(alone, beside[0]) <= 1
    assert _largest_difference(beside[0], beside[1]) > 8


def _largest_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("name", make_nano.HELD_OUT)
def test_held_out_sets_are_whole(name: str) -> None:
    verify_shards(HELD_OUT / name)
    split, count = make_nano.HELD_OUT[name]
    assert len(ShardDataset(HELD_OUT / name, split=split)) == count


@pytest.mark.slow
def test_evaluation_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_module("evaluate_nano", "evaluate_nano", ["--scenes", "6", "--drawings", "4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["tokenizer"]["psnr_db"]) == {"scenes", *make_nano.HELD_OUT}
    assert nano_card.figures_table(result).count("\n") > 20


def test_the_readme_table_is_replaced_between_its_marks_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{nano_card.BEGIN} (how) -->\n\nold\n\n{nano_card.END} -->\nafter\n")
    nano_card.update_readme(readme, FIGURES)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{nano_card.END} -->\nafter\n")
    assert "33.50 dB" in text
    assert "old" not in text


def test_a_step_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_module("make_nano", "make_nano", ["--until", "dinner"]) == 2
    assert "dinner" in capsys.readouterr().err


def test_every_path_of_a_recipe_moves_with_the_runs_folder() -> None:
    class Args:
        runs = Path("elsewhere")

    for name in ("contrastive", "tokenizer", "refinement", "mllm", "decoder"):
        moved = make_nano._moved(Args(), name)  # type: ignore[arg-type]
        text = (make_nano.RECIPES / f"nano_{name}.yaml").read_text()
        assert len(moved) // 2 == text.count("runs/nano")
        assert all(value.startswith("elsewhere/") for value in moved[1::2])
