"""The model that ships with the package, its held-out data, and the scripts that make and judge it."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SiglipConfig, SiglipModel

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.scenes.scene import HELD_OUT_SEED, Scene, SceneObject, render
from dualtoken.data_pipelines.shards.check import check_shards
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.small_sets.public_sets import SETS
from dualtoken.eval.data.held_out import HeldOut
from dualtoken.eval.judges.protocols import Judges
from dualtoken.eval.metrics.ranking import ranks_of
from dualtoken.eval.tasks.emoji_t2i import EmojiT2i
from dualtoken.eval.tasks.held_out_questions import Scenes
from dualtoken.eval.tokenizer.text_ranker import TextRanker
from dualtoken.mllm import DualTokenPipeline
from dualtoken.scripts import cli, prepare
from dualtoken.scripts.nano import card as nano_card
from dualtoken.scripts.nano import evaluate as evaluate_nano
from dualtoken.scripts.nano import gallery
from dualtoken.scripts.nano import make as make_nano
from dualtoken.tokenizer import DualTokenizerImageProcessor
from dualtoken.train.config.compose import composed

ROOT = Path(__file__).parents[3]
NANO, HELD_OUT = ROOT / "pretrained" / "nano", ROOT / "pretrained" / "nano_heldout"
METRICS = {
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


def test_nano_generates_the_same_image_for_the_same_seed_alone_or_with_others(
    nano: DualTokenPipeline,
) -> None:
    alone = nano.generate_images("a red circle", 1, seed=3)[0]
    batched = nano.generate_images("a red circle", 3, seed=3)
    # The codes are the same; the pixels of another batch size may be rounded the other way.
    assert _largest_difference(alone, batched[0]) <= 1
    assert _largest_difference(batched[0], batched[1]) > 8


def _largest_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("name", make_nano.HELD_OUT)
def test_held_out_sets_are_complete(name: str) -> None:
    assert all(not faults for _, faults in check_shards(HELD_OUT / name))
    split, count = make_nano.HELD_OUT[name]
    assert len(ShardDataset(HELD_OUT / name, split=split)) == count


def test_the_names_of_emoji_are_those_that_are_trained_on() -> None:
    names = HeldOut().emoji_names()
    held_out = {record.texts()[-1] for record in HeldOut().records("emoji")}
    assert len(names) == len(set(names)) > 1500
    assert not held_out & set(names)
    assert "grinning face" in names


def test_every_data_set_of_nano_is_a_command_that_can_be_given() -> None:
    parser = cli.command_parser(prepare, "dualtoken prepare")
    files = {one.file for one in SETS.values()}
    for name, words in make_nano.ALL_DATA.items():
        args = parser.parse_args([*words, "--output", name])
        assert args.kind == "scenes" or args.input.name in files
        assert args.kind != "scenes" or args.seed < HELD_OUT_SEED
    for name in ("contrastive", "tokenizer", "refinement", "mllm", "decoder"):
        text = str(composed([f"nano_{name}"]))
        used = re.findall(r"runs/nano/(data|codes)/(\w+)", text)
        assert {one for kind, one in used if kind == "data"} <= set(make_nano.ALL_DATA)
        assert {one for kind, one in used if kind == "codes"} <= set(make_nano.TOKENIZED)


def test_data_sets_are_fetched_only_when_they_are_still_needed(tmp_path: Path) -> None:
    args = argparse.Namespace(data=tmp_path / "data", runs=tmp_path / "runs")
    needed = {step.result for step in make_nano._source_steps(args)}
    assert needed == {args.data / one.file for one in SETS.values()}
    for name in ("clothing", "clothing_words", "caltech"):
        (args.runs / "data" / name).mkdir(parents=True)
    left = {step.result.name for step in make_nano._source_steps(args) if not step.result.exists()}
    assert left == {"emoji_128.zip", "nlvr.zip", "easyvqa_64.zip", "caltech101_128.zip"}


def test_the_numbers_are_those_of_the_registered_tasks(nano: DualTokenPipeline, tmp_path: Path) -> None:
    """What `dualtoken eval run` gives of the same items, with the model's own towers as the ranker."""
    from dualtoken.eval.harness.predictor import PipelinePredictor
    from dualtoken.eval.harness.runner import run_tasks
    from dualtoken.scripts.nano import tasks

    judge, no_teacher = evaluate_nano.rankers("nano", None, "cpu")
    assert no_teacher is None
    chosen = [Scenes(6), tasks.scenes_to_generate(4, ["single_object", "counting"]), EmojiT2i(4)]
    judges = Judges(ranker=lambda: judge)
    expected = run_tasks(chosen, PipelinePredictor(nano), tmp_path / "harness", judges=judges)
    runs = {task.name: tasks.run_task(nano, task, tmp_path / "nano", HeldOut(), judges) for task in chosen}
    assert {name: run.metrics for name, run in runs.items()} == {
        name: result["metrics"] for name, result in expected.items()
    }
    answers = evaluate_nano.answer_metrics(runs["scenes"])
    assert answers["questions"] == 6
    assert answers["accuracy"] == round(expected["scenes"]["metrics"]["accuracy"], 1)
    assert set(answers["by_kind"]) == {item.target["kind"] for item, _ in runs["scenes"].samples}
    scenes = evaluate_nano.scene_metrics(nano, runs["scenes-t2i"])
    assert {skill: found["drawings"] for skill, found in scenes.items()} == {
        "single_object": 4,
        "counting": 2,
    }
    assert scenes["counting"]["correct"] == round(expected["scenes-t2i"]["metrics"]["counting"], 1)
    assert 0 <= scenes["counting"]["checker_on_reconstructions"] <= 100
    names = HeldOut().emoji_names()
    shown = runs["emoji-t2i"].samples[1][0].target["name"]
    true_images = {shown: Image.new("RGB", (64, 64), "white")}
    emoji = evaluate_nano.emoji_metrics(runs["emoji-t2i"], judge, names, true_images)
    assert (emoji["drawings"], emoji["names"]) == (4, len(names))
    assert 0 <= emoji["top1"] <= emoji["top5"] <= 100
    assert emoji["judge_on_true_images"] in (0.0, 100.0)
    assert "4 emoji" in nano_card.metrics_table({**METRICS, "emoji": emoji})


def test_what_codes_keep_of_the_teacher_is_reported() -> None:
    own, teacher = evaluate_nano.rankers("nano", NANO / "visual_tokenizer", "cpu")
    assert set(evaluate_nano.naming_metrics(own, None, 6)) == {"from_codes"}
    named = evaluate_nano.naming_metrics(own, teacher, 6)
    assert named["from_codes"] == named["teacher"]
    assert named["kept"] == 100 or named["teacher"] == 0
    assert f"kept {named['kept']} %" in nano_card.metrics_table({**METRICS, "named": named})


def test_the_teacher_may_be_the_judge(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**small, "image_size": 64, "patch_size": 16}
    text = {**small, "projection_size": 16, "vocab_size": 2048, "max_position_embeddings": 12}
    config = SiglipConfig(vision_config=vision, text_config=text)
    SiglipModel(config).save_pretrained(tmp_path)
    DualTokenizerImageProcessor.from_pretrained(NANO / "visual_tokenizer").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(NANO / "visual_tokenizer").save_pretrained(tmp_path)
    images = [Image.new("RGB", (80, 64), colour) for colour in ("red", "blue")]
    ranks = TextRanker(tmp_path).ranks(images, [0, 2], ["apple emoji", "tree emoji", "flag emoji"])
    assert all(0 <= rank <= 2 for rank in ranks)


def test_a_ranker_needs_a_folder_with_both_sides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot rank texts"):
        TextRanker(tmp_path)


def test_ranks_count_equal_scores_against_the_correct_one() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.7, 0.2, 0.1]])
    assert ranks_of(scores, [1, 1, 2]).tolist() == [0, 2, 2]


def test_dialogues_are_tables_whose_images_are_there(nano: DualTokenPipeline) -> None:
    lines, images = gallery.dialogues(nano, 2)
    named = set(re.findall(r"!\[\]\(([\w-]+)\.png\)", "\n".join(lines)))
    assert named == set(images)
    assert sum(line.startswith("### Dialogue") for line in lines) == 2
    assert all(line.count(" | ") >= 2 for line in lines if line.startswith("| "))


@pytest.mark.slow
def test_the_gallery_is_a_page_with_its_pictures(tmp_path: Path) -> None:
    words = ["--model", "nano", "--output", str(tmp_path), "--dialogues", "1"]
    words += ["--overview", str(tmp_path / "all.png")]
    assert cli.run_module("nano.gallery", "nano.gallery", words) == 0
    page = (tmp_path / "README.md").read_text()
    named = set(re.findall(r"\(([\w-]+\.png)\)", page))
    assert {"drawings.png", "mistakes.png", "reconstructions.png"} <= named
    assert named | {"README.md", "all.png"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_evaluation_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_module("nano.evaluate", "nano.evaluate", ["--scenes", "6", "--drawings", "4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["tokenizer"]["psnr_db"]) == {"scenes", *make_nano.HELD_OUT}
    assert nano_card.metrics_table(result).count("\n") > 20


def test_the_readme_table_is_replaced_between_its_marks_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{nano_card.BEGIN} (how) -->\n\nold\n\n{nano_card.END} -->\nafter\n")
    nano_card.update_readme(readme, METRICS)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{nano_card.END} -->\nafter\n")
    assert "33.50 dB" in text
    assert "old" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert 0 < len(table) <= len(nano_card.README_ROWS) == 5


def test_a_step_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_module("nano.make", "nano.make", ["--until", "dinner"]) == 2
    assert "dinner" in capsys.readouterr().err


def test_every_path_of_a_recipe_moves_with_the_runs_folder() -> None:
    class Args:
        runs = Path("elsewhere")

    for name in ("contrastive", "tokenizer", "refinement", "mllm", "decoder"):
        moved = make_nano._moved(Args(), name)  # type: ignore[arg-type]
        text = str(composed([f"nano_{name}"]))
        assert len(moved) // 2 == text.count("runs/nano")
        assert all(value.startswith("elsewhere/") for value in moved[1::2])
