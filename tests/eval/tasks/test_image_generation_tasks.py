"""Image generation tasks: official files in, official layouts out, scores by local models or null."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.eval import ScoringContext, get_task
from dualtoken.eval.judges.local_models import LocalModels
from dualtoken.eval.judges.protocols import Judges
from dualtoken.eval.metrics.fid import FeatureStatistics, frechet_distance
from dualtoken.eval.metrics.fid_by_category import add_images
from dualtoken.eval.scorers.geneval import Detection
from dualtoken.tokenizer import UserError

GENEVAL = """\
{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "counting", "include": [{"class": "clock", "count": 2}], \
"exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}
{"tag": "colors", "include": [{"class": "fire hydrant", "count": 1, "color": "blue"}], \
"prompt": "a photo of a blue fire hydrant"}
"""
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\r\n"
    "bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\r\n"
    '"G I G G L E" painted in thick colorful lettering.\tIllustrations\tWriting & Symbols\t\r\n'
)
DPG = """\
{"item_id": "0", "text": "Eight cabbages in a field."}
{"item_id": "whoops9", "text": "A red pickup truck on a beach."}
"""
DPG_QUESTIONS = """\
item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
0,t,,1,0,entity,whole,entity - whole (field),Is there a field?
0,t,,2,0,entity,whole,entity - whole (cabbages),Are there cabbages?
0,t,,3,"2, 0",other,count,other - count (cabbages),Are there eight cabbages?
whoops9,t,,1,0,entity,whole,entity - whole (truck),Is there a truck?
"""
GENAI = {"00000": {"prompt": "a red dog"}, "00001": {"prompt": "two cats"}, "00002": {"prompt": "a hat"}}
SKILLS = {"basic": [0, 2], "counting": [1]}


def noise(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def generated(task, items, folder: Path) -> dict[str, list[str]]:
    """Noise for every image, saved as a runner does."""
    predictions = {}
    for index, item in enumerate(items):
        names = [task.image_name(index, number) for number in range(task.images_per_prompt)]
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            noise(100 * index + number).save(folder / name)
        predictions[item.id] = names
    return predictions


class Detector:
    """Finds a bench in every image."""

    name = "always-a-bench"

    def require(self, names) -> None:
        self.required = names

    def __call__(self, image: Image.Image) -> list[Detection]:
        return [Detection("bench", 0.95, (0, 0, 8, 8)), Detection("fire hydrant", 0.95, (8, 8, 16, 16))]


class Judge:
    """Answers by the question alone."""

    name = "fake"

    def probabilities(self, image: Image.Image, question: str) -> tuple[float, float]:
        yes = 0.75 if "dog" in question or "hat" in question or "cabbages" in question else 0.25
        return yes, 1 - yes


class OneColor:
    """A CLIP for which every image is blue."""

    name = "blue"

    def encode_images(self, images) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    def encode_texts(self, texts) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if "blue" in text else [0.0, 1.0] for text in texts])


def test_geneval_writes_the_official_layout(tmp_path: Path) -> None:
    task = get_task("geneval")
    (tmp_path / "evaluation_metadata.jsonl").write_text(GENEVAL)
    items = task.load(tmp_path, "test")
    assert [item.prompt for item in items][:2] == ["a photo of a bench", "a photo of two clocks"]
    output = tmp_path / "output"
    generated(task, items, output)
    task.write_layout(items, output)
    assert sorted(path.name for path in (output / "00001" / "samples").iterdir()) == [
        f"{number:04}.png" for number in range(4)
    ]
    written = json.loads((output / "00001" / "metadata.jsonl").read_text())
    assert written == json.loads(GENEVAL.splitlines()[1])
    assert task.splits == {"test": 553}


def test_geneval_by_a_local_detector(tmp_path: Path) -> None:
    task = get_task("geneval")
    (tmp_path / "evaluation_metadata.jsonl").write_text(GENEVAL)
    items = task.load(tmp_path, "test")
    predictions = generated(task, items, tmp_path)
    name = "geneval-own-detector"

    without = task.score(items, predictions, ScoringContext(tmp_path))
    assert without.headline == name
    assert without.metrics[name] is None
    assert any("no local detector" in note for note in without.notes)

    judges = Judges(detector=Detector)
    colorless = task.score(items, predictions, ScoringContext(tmp_path, judges=judges))
    assert colorless.metrics[f"{name}/single_object"] == 1
    assert colorless.metrics[f"{name}/counting"] == 0
    assert colorless.metrics[f"{name}/colors"] is None
    assert colorless.metrics[name] is None
    assert any("colours are named by CLIP" in note for note in colorless.notes)

    judges = Judges(detector=Detector, clip=OneColor)
    whole = task.score(items, predictions, ScoringContext(tmp_path, judges=judges))
    assert whole.metrics[f"{name}/colors"] == 1
    assert whole.metrics[name] == pytest.approx(2 / 3)
    assert whole.scores == {"00000": 1, "00001": 0, "00002": 1}


def test_clip_score_of_generated_images(tmp_path: Path) -> None:
    task = get_task("parti")
    (tmp_path / "PartiPrompts.tsv").write_bytes(PARTI.encode())
    items = task.load(tmp_path, "test")
    assert items[1].prompt.startswith('"G I G G L E" painted')
    assert dict(items[1].target) == {"category": "Illustrations", "challenge": "Writing & Symbols"}
    predictions = generated(task, items, tmp_path)
    without = task.score(items, predictions, ScoringContext(tmp_path))
    assert without.metrics == {"clip_score": None}
    assert "no local clip" in without.notes[0]
    context = ScoringContext(tmp_path, judges=Judges(clip=OneColor))
    found = task.score([*items], predictions, context)
    assert found.metrics == {"clip_score": 0}
    assert found.notes == ("clip_score by blue",)


def test_dpg_grids_and_own_judge(tmp_path: Path) -> None:
    task = get_task("dpg")
    (tmp_path / "prompts.jsonl").write_text(DPG)
    items = task.load(tmp_path, "test")
    output = tmp_path / "output"
    predictions = generated(task, items, output)
    task.write_layout(items, output)
    with Image.open(output / "dpg_bench" / "whoops9.png") as grid:
        assert grid.size == (32, 32)
        corner = np.asarray(grid.crop((16, 16, 32, 32)))
    np.testing.assert_array_equal(corner, np.asarray(noise(103)))
    assert task.score(items, predictions, ScoringContext(output)).metrics["dpg-own-judge"] is None

    context = ScoringContext(output, judges=Judges(vqa_judge=Judge))
    note = task.score(items, predictions, context).notes[0]
    assert "dpg_bench.csv is not in the folder" in note
    (tmp_path / "dpg_bench.csv").write_text(DPG_QUESTIONS)
    items = task.load(tmp_path, "test")
    # The official script skips the first question.
    assert [question["id"] for question in items[0].target["questions"]] == [2, 3]
    found = task.score(items, predictions, context)
    assert found.scores == {"0": 1, "whoops9": 0}
    assert found.metrics["dpg-own-judge"] == 50


def test_prompts_of_dpg_as_the_official_text_files(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    for name in ("10", "9"):
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"Prompt {name}.\n")
    items = get_task("dpg").load(tmp_path, "test")
    assert [(item.id, item.prompt) for item in items] == [("10", "Prompt 10."), ("9", "Prompt 9.")]


def test_genai_bench_by_skill(tmp_path: Path) -> None:
    task = get_task("genai-bench")
    (tmp_path / "genai_image.json").write_text(json.dumps(GENAI))
    (tmp_path / "genai_skills.json").write_text(json.dumps(SKILLS))
    items = task.load(tmp_path, "test")
    predictions = generated(task, items, tmp_path)
    task.write_layout(items, tmp_path)
    assert (tmp_path / "genai_bench" / "00002.jpeg").is_file()
    assert task.score(items, predictions, ScoringContext(tmp_path)).metrics["vqascore-own-judge"] is None
    context = ScoringContext(tmp_path, judges=Judges(vqa_judge=Judge))
    metrics = task.score(items, predictions, context).metrics
    assert metrics["vqascore-own-judge"] == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    assert metrics["vqascore-own-judge/basic"] == 0.75
    assert metrics["vqascore-own-judge/counting"] == 0.25


def colour_features(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 1).flatten(1)


def test_mjhq_by_category_and_in_all(tmp_path: Path) -> None:
    task = get_task("mjhq30k")
    categories = {f"id{n}": ("animals", "food")[n % 2] for n in range(12)}
    meta = {name: {"category": category, "prompt": name} for name, category in categories.items()}
    (tmp_path / "meta_data.json").write_text(json.dumps(meta))
    items = task.load(tmp_path, "test")
    predictions = generated(task, items, tmp_path)
    name = "fid-torch-fidelity"
    assert task.score(items, predictions, ScoringContext(tmp_path)).metrics[name] is None
    context = ScoringContext(tmp_path, judges=Judges(inception=lambda: colour_features))
    lost = task.score(items, predictions, context)
    assert lost.metrics[name] is None
    assert any("id0.jpg is missing (12 in all)" in note for note in lost.notes)

    references = {}
    for n, (key, category) in enumerate(categories.items()):
        path = tmp_path / "mjhq30k_imgs" / category / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(1000 + n, side=16 + n % 3).save(path)  # sizes differ, as in the set
        references[key] = path
    metrics = task.score(items, predictions, context).metrics
    assert set(metrics) == {name, f"{name}/animals", f"{name}/food", "clip_score"}
    sides = FeatureStatistics(3), FeatureStatistics(3)
    files = [tmp_path / names[0] for names in predictions.values()]
    for side, paths in zip(sides, (list(references.values()), files), strict=True):
        add_images(paths, colour_features, [side])
    assert metrics[name] == pytest.approx(frechet_distance(*sides), abs=1e-9)


def test_t2i_compbench_layout(tmp_path: Path) -> None:
    task = get_task("t2i-compbench")
    (tmp_path / "color_val.txt").write_text("a green bench and a blue bowl\n\na blue bench and a green bowl")
    items = task.load(tmp_path, "color_val")
    assert [item.id for item in items] == ["color_000", "color_001"]
    generated(task, items, tmp_path)
    task.write_layout(items, tmp_path)
    task.write_layout(items, tmp_path)  # a second time changes nothing
    samples = tmp_path / "t2i_compbench" / "color" / "samples"
    assert len(list(samples.iterdir())) == 20
    assert (samples / "a blue bench and a green bowl_000019.png").is_file()
    with pytest.raises(UserError, match=r"t2i-compbench: the folder .*none does not exist"):
        task.load(tmp_path / "none", "color_val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no color_val\.txt"):
        task.load(tmp_path / "empty", "color_val")


def test_mistakes(tmp_path: Path) -> None:
    task = get_task("geneval")
    with pytest.raises(UserError, match="geneval needs --data"):
        task.load(None, "test")
    (tmp_path / "evaluation_metadata.jsonl").write_text(GENEVAL + '{"tag": "colors"}\n')
    with pytest.raises(UserError, match="line 4 has no field include, prompt"):
        task.load(tmp_path, "test")
    (tmp_path / "evaluation_metadata.jsonl").write_text(GENEVAL)
    items = task.load(tmp_path, "test")
    with pytest.raises(UserError, match=r"image none\.png of 00000 is missing"):
        task.score(items, {item.id: ["none.png"] for item in items}, ScoringContext(tmp_path))


def test_local_models_are_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIP", "DETECTOR", "JUDGE", "INCEPTION", "RANKER", "DEVICE"):
        monkeypatch.delenv(f"DUALTOKEN_EVAL_{name}", raising=False)
    assert LocalModels.from_environment() == LocalModels()
    monkeypatch.setenv("DUALTOKEN_EVAL_CLIP", "clip")
    monkeypatch.setenv("DUALTOKEN_EVAL_DEVICE", "cuda")
    assert LocalModels.from_environment() == LocalModels(clip=Path("clip"), device="cuda")


def tiny_yolos(folder: Path, names: list[str]) -> Path:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    config = YolosConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=40,
        id2label=dict(enumerate(names)),
    )
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 32}, do_pad=False).save_pretrained(folder)
    return folder


def tiny_mask2former(folder: Path, names: list[str]) -> Path:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
        SwinConfig,
    )

    size: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "window_size": 2}
    size |= {"depths": [1] * 4, "num_heads": [1] * 4, "out_features": [f"stage{n}" for n in range(1, 5)]}
    backbone = SwinConfig(**size)
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(names)),
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [tiny_yolos, tiny_mask2former])
def test_detectors_of_transformers(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualtoken.eval.judges import detector as module

    monkeypatch.setattr(module, "THRESHOLD", 0.0)  # random models are sure of nothing
    detector = module.LocalDetector(make(tmp_path / "detector", ["person", "mouse", "sofa"]))
    detector.require(["computer mouse", "couch"])
    with pytest.raises(UserError, match=r"does not know tv \(1 classes"):
        detector.require(["tv", "person"])
    image = noise(0, side=48).resize((60, 48))
    found = detector(image)
    assert found
    for detection in found:
        assert detection.name in ("person", "computer mouse", "couch")
        assert 0 <= detection.score <= 1
        if detection.mask is not None:
            assert detection.mask.shape == (48, 60)
            left, top, right, bottom = map(int, detection.box)
            assert detection.mask.sum() == detection.mask[top:bottom, left:right].sum()
    with pytest.raises(UserError, match="holds no object detector"):
        module.LocalDetector(tmp_path)


def test_the_packaged_model_can_judge() -> None:
    from dualtoken.common.loading.model_source import PRETRAINED_FOLDER
    from dualtoken.eval.judges.vqa_judge import LocalVqaJudge

    judge = LocalVqaJudge(PRETRAINED_FOLDER / "nano")
    yes, no = judge.probabilities(Image.new("RGB", (64, 64), "red"), "Is there a red circle?")
    assert 0 < yes < 1
    assert 0 < no < 1
    with pytest.raises(UserError, match="is not a folder"):
        LocalVqaJudge(PRETRAINED_FOLDER / "none")
