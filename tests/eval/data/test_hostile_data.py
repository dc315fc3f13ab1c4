"""Official files of tasks with a value of any other type: a message of one line, never another error."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualtoken.common.errors import UserError
from dualtoken.eval import ScoringContext, get_task
from dualtoken.eval.harness.task_data import Settings, load_data

DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    1.5,
    "",
    "\ud800",
    "a\0b",
    "/dev/zero",
    [],
    {},
    [None],
    {"a": None},
    DEEP,
)

#: A question of each task as it was published: files, and their JSON; of JSON lines, the one line.
PUBLISHED: dict[str, dict[str, Any]] = {
    "pope": {
        "coco_pope_adversarial.json": {"question_id": 1, "image": "a.jpg", "text": "Dog?", "label": "yes"},
    },
    "scienceqa": {
        "problems.json": {
            "1": {
                "question": "q",
                "choices": ["a", "b"],
                "answer": 0,
                "hint": "",
                "image": "image.png",
                "split": "test",
                "subject": "natural science",
                "grade": "grade1",
                "topic": "t",
            }
        },
        "pid_splits.json": {"test": ["1"]},
    },
    "gqa": {
        "testdev_balanced_questions.json": {
            "1": {"imageId": "n1", "question": "q", "answer": "yes", "types": {"structural": "verify"}}
        },
    },
    "vqav2": {
        "v2_OpenEnded_mscoco_val2014_questions.json": {
            "questions": [{"image_id": 1, "question": "q", "question_id": 1}]
        },
        "v2_mscoco_val2014_annotations.json": {
            "annotations": [{"question_id": 1, "answer_type": "other", "answers": [{"answer": "a"}] * 10}]
        },
    },
    "textvqa": {
        "TextVQA_0.5.1_val.json": {
            "data": [{"question": "q", "image_id": "a", "question_id": 1, "answers": ["a"] * 10}]
        },
    },
    "seedbench": {
        "SEED-Bench.json": {
            "questions": [
                {
                    "answer": "A",
                    **{f"choice_{letter}": letter for letter in "abcd"},
                    "data_id": "1",
                    "data_type": "image",
                    "question": "q",
                    "question_id": "1",
                    "question_type_id": 1,
                }
            ],
            "question_type": {"Scene Understanding": 1},
        },
    },
    "mmvet": {
        "mm-vet.json": {
            "v1_0": {"imagename": "v1_0.png", "question": "q", "answer": "a", "capability": ["ocr", "math"]}
        },
    },
    "geneval": {
        "evaluation_metadata.jsonl": {
            "tag": "single_object",
            "include": [{"class": "bench", "count": 1}],
            "prompt": "a bench",
        },
    },
    "genai-bench": {
        "genai_image.json": {"0": {"prompt": "x"}},
        "genai_skills.json": {"basic": [0]},
    },
    "mjhq30k": {"meta_data.json": {"a": {"category": "x", "prompt": "y"}}},
}


def positions(value: Any, before: tuple = ()) -> Iterator[tuple]:
    """The path to every value in a JSON document, in lists to that of the first entry only."""
    yield before
    entries = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        entries = list(enumerate(value))[:1]
    for key, inner in entries:
        yield from positions(inner, (*before, key))


def replaced(document: Any, position: tuple, value: Any) -> Any:
    if not position:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in position[:-1]:
        inner = inner[key]
    inner[position[-1]] = value
    return document


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_any_value_of_another_type_is_taken_or_refused_in_one_line(name: str, tmp_path: Path):
    task, refused = get_task(name), 0
    for file, document in PUBLISHED[name].items():
        (tmp_path / file).write_text(json.dumps(document))
    assert len(load_data(task, Settings(data=tmp_path)).items) == 1
    for file, document in PUBLISHED[name].items():
        for position in positions(document):
            for value in ODD:
                (tmp_path / file).write_text(json.dumps(replaced(document, position, value)))
                try:
                    items = load_data(task, Settings(data=tmp_path)).items
                except UserError:
                    refused += 1
                else:
                    if task.kind == "answer":  # what is taken can be scored
                        task.score(items, {item.id: "a" for item in items}, ScoringContext(tmp_path))
                    for item in items:
                        assert item.prompt.encode().strip()
                        assert not {"None", "\0", "[]", "{"} & set(item.prompt.split() + list(item.prompt))
        (tmp_path / file).write_text(json.dumps(document))
    assert refused


QUESTIONS_OF_DPG = "item_id,proposition_id,dependency,question_natural_language\n0,1,0,a?\n0,2,x,b?\n"


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        ("genai-bench", {"genai_image.json": '{"0": {"text": "x"}}'}, "genai_image.json, entry '0' has no"),
        (
            "genai-bench",
            {"genai_image.json": '{"a": {"prompt": "x"}}'},
            "genai_image.json, entry 'a': a value",
        ),
        (
            "genai-bench",
            {"genai_image.json": '{"0": {"prompt": "x"}}', "genai_skills.json": '{"basic": ["y"]}'},
            "genai_skills.json: a value",
        ),
        ("mjhq30k", {"meta_data.json": '{"a": {"category": "x"}}'}, "meta_data.json, entry 'a' has no"),
        ("mjhq30k", {"meta_data.json": '{"a": ["x"]}'}, "meta_data.json, entry 'a' holds"),
        (
            "parti",
            {"PartiPrompts.tsv": "Prompt\tCategory\nx\ty\n"},
            "PartiPrompts.tsv has no column Challenge",
        ),
        (
            "dpg",
            {"prompts.jsonl": '{"item_id": "0", "text": "x"}', "dpg_bench.csv": QUESTIONS_OF_DPG},
            "dpg_bench.csv, line 3: a value is of the wrong type",
        ),
    ],
)
def test_a_mistake_in_an_official_file_names_the_file_and_the_row(
    task: str, files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        load_data(get_task(task), Settings(data=tmp_path))


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a/b"])
def test_names_of_items_stay_inside_the_output_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"item_id": name, "text": "a cat"}) + "\n")
    (tmp_path / "color_val.txt").write_text(f"{name}\n")
    for task, split in (("dpg", "test"), ("t2i-compbench", "color_val")):
        with pytest.raises(UserError, match="cannot name a file"):
            load_data(get_task(task), Settings(data=tmp_path, split=split))


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/passwd", "a/../../../outside.jpg"])
def test_images_outside_the_folder_of_the_data_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    line = {"question_id": 1, "image": name, "text": "Dog?", "label": "yes"}
    (root / "coco_pope_random.json").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="is outside the folder of the data"):
        load_data(get_task("pope"), Settings(data=root, split="random"))
    row = {"category": "../..", "prompt": "a cat"}
    (root / "meta_data.json").write_text(json.dumps({"outside": row}))
    with pytest.raises(UserError, match="cannot name a file"):
        load_data(get_task("mjhq30k"), Settings(data=root))
