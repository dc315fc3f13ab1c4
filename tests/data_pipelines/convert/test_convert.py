"""Converters on tiny inputs of the documented layouts, with corrupt samples among them."""

import io
import json
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.llava import LlavaConverter, llava_record
from dualtoken.data_pipelines.convert.samples import OutputOptions, stable_fraction
from dualtoken.data_pipelines.records import RecordError
from dualtoken.data_pipelines.scenes.convert import SceneConverter, SceneOptions, scene_record
from dualtoken.data_pipelines.scenes.language import ImageSpec
from dualtoken.data_pipelines.scenes.scene import HELD_OUT_SEED, Scene, render
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.stored_image import stored_image
from dualtoken.data_pipelines.small_sets.convert_sets import (
    EasyVqaConverter,
    EmojiConverter,
    LabelsConverter,
    NlvrConverter,
)
from dualtoken.data_pipelines.small_sets.label_wordings import with_article


def png(size=(20, 20), colour=(9, 99, 199), kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def make_zip(path, rows, images):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("meta.jsonl", "\n".join(json.dumps(row) for row in rows))
        for name, data in images.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def output(tmp_path):
    return OutputOptions(tmp_path / "shards", progress=False)


def turns(record):
    return [(m["role"], [p.get("text", "IMAGE") for p in m["content"]]) for m in record.messages]


# --- scenes ---


def test_a_scene_record_depends_on_seed_and_index_only():
    options = SceneOptions(count=5, seed=3)
    assert turns(scene_record(options, 2)) == turns(scene_record(SceneOptions(count=50, seed=3), 2))
    assert turns(scene_record(options, 2)) != turns(scene_record(SceneOptions(seed=4), 2))


@pytest.mark.parametrize("task", ["vqa", "t2i", "caption"])
def test_scene_shards_hold_their_scenes(output, task):
    manifest = write_shards(SceneConverter(SceneOptions(count=30, task=task, image_size=32)), output)
    assert manifest["counts"]["splits"] == {"train": 30}
    for record in map(ShardDataset(output.folder).record, range(30)):
        (part,) = record.image_parts()
        scene = Scene.from_dict(record.metadata["scene"])
        assert part["image"].tobytes() == render(scene, 32).tobytes()
        first = record.messages[0]["content"]
        if task == "t2i":
            assert record.messages[1]["content"] == [part]
            assert ImageSpec.from_dict(record.metadata["spec"]).skill == record.metadata["skill"]
        else:
            assert first[0] is part
            assert first[1]["type"] == "text"
        if task == "vqa":
            assert len(record.messages) == 12
            assert len(record.metadata["kinds"]) == 6


def test_scenes_are_the_same_in_several_processes(output, tmp_path):
    options = SceneOptions(count=200, image_size=16, task="t2i")
    other = OutputOptions(tmp_path / "parallel", progress=False, workers=2)
    first, second = (
        write_shards(SceneConverter(options), output),
        write_shards(SceneConverter(options), other),
    )
    assert first["shards"] == second["shards"]


def test_high_seeds_are_held_out(output):
    manifest = write_shards(SceneConverter(SceneOptions(count=3, seed=HELD_OUT_SEED)), output)
    assert manifest["counts"]["splits"] == {"heldout": 3}
    with pytest.raises(UserError, match="no split 'train'"):
        ShardDataset(output.folder)


def test_skill_weights_are_followed():
    options = SceneOptions(task="t2i", image_size=8, skills={"position": 3.0, "counting": 1.0})
    skills = [scene_record(options, index).metadata["skill"] for index in range(200)]
    assert set(skills) == {"position", "counting"}
    assert 0.65 < skills.count("position") / 200 < 0.85


@pytest.mark.parametrize("bad", [{"task": "sing"}, {"count": 0}, {"skills": {"flying": 1.0}}, {"seed": -1}])
def test_wrong_scene_options_are_a_users_mistake(bad):
    with pytest.raises(UserError):
        SceneOptions(**bad)


# --- sets in a zip ---


def test_easyvqa_holds_out_the_last_images_and_generates_what_its_questions_name(output, tmp_path):
    qa = [["what is the teal shape?", "circle"], ["is there a red shape?", "no"]]
    rows = [{"file": f"train/{n}.png", "split": "train", "qa": qa} for n in range(600)]
    rows[1]["qa"] = [["is there not a circle?", "no"], ["is a blue shape present?", "yes"]]
    rows[2]["qa"] = [["is a blue shape present?", "no"]]
    path = make_zip(
        tmp_path / "e.zip", rows, {row["file"]: png() for row in rows if row["file"] != "train/3.png"}
    )
    manifest = write_shards(EasyVqaConverter(path, task="all", questions_per_image=1), output)
    # Small sets keep a half for training.
    assert manifest["counts"]["splits"] == {"train": 2 * 299 - 1 - 2, "heldout": 2 * 301}
    assert manifest["counts"]["rejected"] == 2
    train = ShardDataset(output.folder)
    generated = {r.id: r for r in map(train.record, range(len(train))) if r.metadata["task"] == "t2i"}
    assert generated["easyvqa-t2i-0"].texts() == ["a teal circle"]
    assert generated["easyvqa-t2i-1"].texts() == ["a blue circle"]
    assert "easyvqa-t2i-2" not in generated
    assert len(train[0].messages) == 2


def test_nlvr_gives_three_boxes_and_keeps_permutations_together(output, tmp_path):
    image = np.zeros((100, 400, 3), np.uint8)
    for box, left in enumerate((0, 150, 300)):
        image[:, left : left + 100] = 80 * (box + 1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    same = {"sentence": " A  box. ", "label": "true"}
    rows = [
        {"file": f"{split}/{i}-{perm}.png", "split": split, "id": i, "perm": perm, **same}
        for perm in range(6)
        for split, i in (("dev", "7-0"), ("hidden", "8-0"), ("train1000", "9-0"))
    ]
    images = {row["file"]: buffer.getvalue() for row in rows}
    images["hidden/8-0-1.png"] = png((30, 30))
    manifest = write_shards(
        NlvrConverter(make_zip(tmp_path / "n.zip", rows, images), max_image_size=50), output
    )
    assert manifest["counts"]["splits"] == {"heldout": 6, "train": 11}
    assert [s["sample"] for s in manifest["rejected"]["samples"]] == ["hidden/8-0-1.png"]
    record = ShardDataset(output.folder, "heldout")[0]
    assert turns(record) == [
        ("user", ["IMAGE", "IMAGE", "IMAGE", "True or false: A box."]),
        ("assistant", ["true"]),
    ]
    boxes = [part["image"] for part in record.image_parts()]
    assert [box.size for box in boxes] == [(50, 50)] * 3
    assert [box.getpixel((25, 25)) for box in boxes] == [(80,) * 3, (160,) * 3, (240,) * 3]


def test_an_emoji_is_held_out_in_all_its_styles(output, tmp_path):
    rows = [
        {"file": f"{style}/{n}.png", "style": style, "emoji": f"e{n}", "name": f"thing {n}"}
        for n in range(120)
        for style in ("noto", "blob")
    ]
    path = make_zip(tmp_path / "m.zip", rows, {row["file"]: png((40, 40)) for row in rows})
    manifest = write_shards(EmojiConverter(path, task="all", max_image_size=16), output)
    held_out = {r.metadata["emoji"] for r in map(ShardDataset(output.folder, "heldout").record, range(4))}
    assert held_out <= {f"e{n}" for n in range(120) if stable_fraction(f"e{n}") < 0.05}
    assert manifest["counts"]["splits"]["heldout"] % 4 == 0
    question, image = (ShardDataset(output.folder)[i] for i in (0, 1))
    assert question.texts()[0] == "What is this?"
    assert image.texts() == [f"{question.texts()[1]} emoji"]
    assert image.image_parts()[0]["image"].size == (16, 16)


def test_labels_keep_their_splits_and_corrupt_photos_are_named(output, tmp_path):
    rows = [
        {"file": f"{n}.jpg", "label": "hat", "split": split}
        for n, split in enumerate(("train", "test", "train"))
    ]
    photo = png((64, 48), kind="JPEG")
    path = make_zip(tmp_path / "l.zip", rows, {"0.jpg": photo, "1.jpg": photo, "2.jpg": photo[:200]})
    manifest = write_shards(LabelsConverter(path, licence="free"), output)
    assert manifest["counts"]["splits"] == {"train": 1, "test": 1}
    assert manifest["rejected"]["samples"][0]["sample"] == "2.jpg"
    assert "0x" not in json.dumps(manifest), "no addresses of objects: manifests must be reproducible"
    record = ShardDataset(output.folder)[0]
    assert record.texts() == ["What is shown in the photo?", "hat"]
    assert record.image_parts()[0]["image"].size == (64, 48)


def test_labels_are_asked_for_in_other_words_in_training_only(output, tmp_path):
    labels = ("dress", "hat", "shoes", "t-shirt")
    rows = [{"file": f"{n}.png", "label": labels[n % 4], "split": "train"} for n in range(40)]
    rows += [{"file": f"{n}.png", "label": labels[n % 4], "split": "test"} for n in range(40, 44)]
    path = make_zip(tmp_path / "l.zip", rows, {row["file"]: png() for row in rows})
    write_shards(LabelsConverter(path, variants=5, noun="piece of clothing"), output)
    test = ShardDataset(output.folder, split="test")
    assert [r.texts() for r in map(test.record, range(len(test)))] == [
        ["What is shown in the photo?", label] for label in labels
    ]
    train = ShardDataset(output.folder, split="train")
    assert len(train) == 200
    kinds = Counter()
    for record in map(train.record, range(200)):
        question, answer = record.texts()
        label, (kind,) = record.metadata["label"], record.metadata.get("kinds", ["plain"])
        named = [word for word in labels if re.search(rf"\b{word}\b", question)]
        kinds[kind] += 1
        if kind in ("plain", "open"):
            assert (named, answer) == ([], label)
        elif kind == "options":
            assert answer == label
            assert label in named
            assert len(named) > 1
        elif kind == "yes_no":
            assert answer == ("yes" if named == [label] else "no")
        else:
            assert kind == "caption"
            assert label in answer
    assert kinds["plain"] == 40
    assert len(kinds) == 5


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("dress", "a dress"),
        ("ant", "an ant"),
        ("shoes", "shoes"),
        ("ibis", "an ibis"),
        ("outwear", "outwear"),
    ],
)
def test_a_label_has_an_article_unless_it_is_a_plural(label, phrase):
    assert with_article(label) == phrase


def test_the_wrong_input_is_a_users_mistake(output, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        write_shards(LabelsConverter(tmp_path / "missing.zip"), output)
    path = make_zip(tmp_path / "l.zip", [{"file": "0.png", "label": "x"}], {"0.png": png()})
    with pytest.raises(UserError, match="no field 'qa'"):
        write_shards(EasyVqaConverter(path), output)
    empty = make_zip(tmp_path / "e.zip", [{"file": "0.png", "label": "x"}], {})
    with pytest.raises(UserError, match="No sample"):
        write_shards(LabelsConverter(empty), output)
    assert not output.folder.exists()


# --- LLaVA ---


def test_llava_entries_become_records(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png())
    entry = {
        "id": 5,
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A dot, and  spaces\nstay."},
            {"from": "human", "value": "Draw it."},
            {"from": "gpt", "value": "Here: <image> Done."},
        ],
    }
    record = llava_record(entry, tmp_path, "x")
    assert record.id == "5"
    assert turns(record) == [
        ("system", ["Be kind."]),
        ("user", ["IMAGE", "What is this?"]),
        ("assistant", ["A dot, and  spaces\nstay."]),
        ("user", ["Draw it."]),
        ("assistant", ["Here:", "IMAGE", "Done."]),
    ]


@pytest.mark.parametrize("lines", [False, True])
def test_llava_files_are_a_list_or_lines(output, tmp_path, lines):
    dialogue = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    entries = [
        {"id": "text", "conversations": dialogue},
        {"id": "unmarked", "image": "a.png", "conversations": dialogue},
        {"id": "lost", "image": "a.png", "conversations": [{"from": "human", "value": "<image>"}]},
        {"id": "stranger", "conversations": [{"from": "cat", "value": "miau"}]},
        {"id": "empty", "conversations": []},
        "nonsense",
    ]
    path = tmp_path / "d.json"
    path.write_text("\n".join(map(json.dumps, entries)) + "\n{broken" if lines else json.dumps(entries))
    manifest = write_shards(LlavaConverter(path), output)
    assert manifest["counts"]["records"] == 1
    assert manifest["counts"]["rejected"] == 5 + lines
    assert "(lost)" in json.dumps(manifest["rejected"])
    assert ShardDataset(output.folder)[0].texts() == ["hi", "ho"]


# --- images ---


def test_small_images_keep_their_bytes_and_big_ones_shrink():
    data = png((40, 30))
    assert stored_image(data, "x").data == data
    assert stored_image(data, "x", 30).data == data
    assert stored_image(data, "x", 15).open().size == (20, 15)
    assert stored_image(png((40, 30), kind="JPEG"), "x", 15).extension == "jpg"
    assert stored_image(png(kind="BMP"), "x").extension == "png"


@pytest.mark.parametrize("data", [b"", b"text", png((300, 300))[:-40]])
def test_a_corrupt_image_is_refused(data):
    with pytest.raises(RecordError, match="image 'x'"):
        stored_image(data, "x")
