"""Understanding tasks: official files are read unchanged, scores are official, mistakes are one line."""

import base64
import csv
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.eval import ScoringContext, get_task, task_names
from dualtoken.eval.judges.replay import Verdicts

OFFICIAL = Path(__file__).parent / "official"
UNDERSTANDING = {
    "ai2d",
    "gqa",
    "mathvista",
    "mmbench",
    "mme",
    "mmmu",
    "mmvet",
    "pope",
    "realworldqa",
    "scienceqa",
    "seedbench",
    "seedbench-letter",
    "textvqa",
    "vqav2",
}


def png():
    """A small image, encoded. Noise keeps it above the length of a reference to another row."""
    file = BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


def in_base64():
    return base64.b64encode(png()).decode()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_tsv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def cell():
    return {"bytes": png(), "path": None}


def scored(name, items, answers, folder=Path()):
    predictions = dict(zip([item.id for item in items], answers, strict=True))
    return get_task(name).score(items, predictions, ScoringContext(verdicts=Verdicts.read(folder, name)))


def test_all_are_registered_with_their_official_counts():
    assert set(task_names()) >= UNDERSTANDING
    for name in UNDERSTANDING:
        task = get_task(name)
        assert task.source
        assert task.summary
        assert all(count and count > 100 for count in task.splits.values())


@pytest.mark.parametrize("name", sorted(UNDERSTANDING))
def test_missing_files_are_named(name, tmp_path):
    task = get_task(name)
    split = next(iter(task.splits))
    with pytest.raises(UserError, match="needs --data"):
        task.load(None, split)
    with pytest.raises(UserError, match=f"{name}: .*holds no"):
        task.load(tmp_path, split)


@pytest.mark.parametrize("split", ["adversarial", "popular", "random"])
def test_pope(split):
    items = get_task("pope").load(OFFICIAL / "pope", split)
    assert [item.id for item in items] == ["1", "2", "3", "4"]
    assert items[0].prompt == "Is there a snowboard in the image?"
    assert items[0].images[0] == OFFICIAL / "pope/val2014/COCO_val2014_000000310196.jpg"
    labels = [item.target["label"] for item in items]
    assert scored("pope", items, labels).metrics["f1"] == 100
    empty = scored("pope", items, [""] * 4)
    assert empty.unparsed == 4
    assert empty.metrics["yes_ratio"] == 100
    assert "count as yes" in empty.notes[0]


def test_mme():
    items = get_task("mme").load(OFFICIAL / "mme", "test")
    assert len(items) == 28
    assert items[0].id.startswith("existence/")
    assert items[0].prompt.endswith("Please answer yes or no.")
    right = scored("mme", items, [item.target["label"].capitalize() for item in items])
    assert (right.metrics["perception"], right.metrics["cognition"]) == (2000, 800)
    # Always yes: half of the questions and none of the images, 50 points a task.
    always = scored("mme", items, ["yes"] * 28)
    assert (always.metrics["perception"], always.metrics["cognition"], always.unparsed) == (500, 200, 0)
    assert scored("mme", items, ["maybe"] * 28).unparsed == 28


def test_mme_files_with_mistakes(tmp_path):
    for path in (OFFICIAL / "mme").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "color.txt").write_text("a.jpg\tIs it red?\tYes\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jpg has 1 questions"):
        get_task("mme").load(tmp_path, "test")
    (tmp_path / "color.txt").write_text("a.jpg\tIs it red?\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        get_task("mme").load(tmp_path, "test")


def test_vqav2(tmp_path):
    questions = [{"question_id": n, "image_id": 42, "question": "How many?"} for n in (1, 2)]
    answers = [{"answer": "2"}] * 9 + [{"answer": "two"}]
    annotations = [{"question_id": n, "answers": answers, "answer_type": "number"} for n in (2, 1)]
    write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    write_json(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    items = get_task("vqav2").load(tmp_path, "val")
    assert items[0].images == (tmp_path / "val2014/COCO_val2014_000000000042.jpg",)
    assert items[0].prompt == "How many?\nAnswer the question using a single word or phrase."
    score = scored("vqav2", items, ["Two.", "3"])
    assert score.metrics == {"accuracy": 50, "answer_type/number": 50}
    hidden = get_task("vqav2").load(tmp_path, "test-dev")
    assert scored("vqav2", hidden, ["2", "2"]).metrics["accuracy"] is None
    assert "not public" in scored("vqav2", hidden, ["2", "2"]).notes[0]


def test_textvqa(tmp_path):
    row = {"question_id": 7, "image_id": "ab", "question": "what does it say?", "answers": ["STOP"] * 10}
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    items = get_task("textvqa").load(tmp_path, "val")
    assert items[0].images == (tmp_path / "train_images/ab.jpg",)
    assert scored("textvqa", items, ["a stop"]).metrics["accuracy"] == 100


def test_gqa(tmp_path):
    rows = {
        "01": {"question": "Is it red?", "answer": "no", "imageId": "n1", "types": {"structural": "verify"}},
        "02": {"question": "What is it?", "answer": "dog", "imageId": "n2", "types": {"structural": "query"}},
    }
    write_json(tmp_path / "testdev_balanced_questions.json", rows)
    items = get_task("gqa").load(tmp_path, "testdev")
    score = scored("gqa", items, ["No.", "a dog"])
    assert score.metrics == {"accuracy": 50, "type/binary": 100, "type/open": 0}
    assert score.scores == {"01": 1.0, "02": 0.0}


def mmbench_rows():
    """One question of two options in both rotations, and one of three in its first only."""
    image = in_base64()
    common = {"hint": "", "category": "ocr", "l2-category": "perception"}
    return [
        {
            "index": 5,
            "question": "What?",
            "A": "dog",
            "B": "cat",
            "C": "",
            "answer": "A",
            "image": image,
            **common,
        },
        {
            "index": 1000005,
            "question": "What?",
            "A": "cat",
            "B": "dog",
            "C": "nan",
            "answer": "B",
            "image": 5,
            **common,
        },
        {
            **common,
            **{
                "index": 6,
                "question": "Who?",
                "A": "I",
                "B": "you",
                "C": "None",
                "answer": "C",
                "image": image,
            },
            "hint": "Look.",
        },
    ]


def test_mmbench(tmp_path):
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", mmbench_rows())
    items = get_task("mmbench").load(tmp_path, "dev-en")
    assert items[0].prompt == (
        "Question: What?\nOptions:\nA. dog\nB. cat\nPlease select the correct answer from the options above."
    )
    # "None" is an option, not a missing cell.
    assert items[2].prompt.startswith("Hint: Look.\nQuestion: Who?")
    assert "C. None" in items[2].prompt
    assert [image.size for item in items for image in item.images] == [(16, 16)] * 3  # by reference, too
    score = scored("mmbench", items, ["A", "A", "C"])
    assert (score.metrics["accuracy"], score.metrics["accuracy_one_pass"]) == (50, 100)
    assert score.metrics["category/ocr"] == 50
    both = scored("mmbench", items, ["dog", "(B)", ""])
    assert (both.metrics["accuracy"], both.unparsed) == (50, 1)
    assert both.scores == {"5": 1.0, "1000005": 1.0, "6": 0.0}


def test_tsv_with_mistakes(tmp_path):
    rows = mmbench_rows()
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [rows[0], rows[0]])
    with pytest.raises(UserError, match="more than once, '5'"):
        get_task("mmbench").items(tmp_path, "dev-en")
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [{"index": 1, "question": "?"}])
    with pytest.raises(UserError, match="no column A, B, image"):
        get_task("mmbench").load(tmp_path, "dev-en")
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [{**rows[0], "image": base64.b64encode(b"x" * 99).decode()}])
    with pytest.raises(UserError, match="line 2, index 5: it is not an image"):
        get_task("mmbench").load(tmp_path, "dev-en")


def test_seedbench_both_ways(tmp_path):
    row = {
        f"choice_{letter}": word for letter, word in zip("abcd", ("one", "two", "three", "four"), strict=True)
    }
    row |= {"question": "How many?", "data_id": "1_2", "answer": "B", "question_type_id": 5}
    questions = [
        {**row, "question_id": "101", "data_type": "image"},
        {**row, "question_id": "v1", "data_type": "video"},
    ]
    write_json(
        tmp_path / "SEED-Bench.json", {"questions": questions, "question_type": {"Instances Counting": 5}}
    )
    (item,) = get_task("seedbench").load(tmp_path, "image")
    assert (item.prompt, item.choices) == ("Question: How many?\nAnswer:", ("one", "two", "three", "four"))
    assert item.images == (tmp_path / "SEED-Bench-image/1_2",)
    assert scored("seedbench", [item], [[-4.0, -1.0, -2.0, -3.0]]).metrics["accuracy"] == 100
    (letter,) = get_task("seedbench-letter").load(tmp_path, "image")
    assert "\nB. two\n" in letter.prompt
    assert not letter.choices
    assert scored("seedbench-letter", [letter], ["B"]).metrics["dimension/Instances Counting"] == 100
    assert scored("seedbench-letter", [letter], ["two"]).unparsed == 1


def test_scienceqa(tmp_path):
    problem = {
        "question": "Which?",
        "choices": ["north", "south"],
        "answer": 1,
        "hint": "",
        "subject": "social science",
    }
    problems = {
        "3": {**problem, "image": "image.png", "grade": "grade2"},
        "9": {**problem, "image": None, "grade": "grade11"},
    }
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"test": ["9", "3"]})
    items = get_task("scienceqa").load(tmp_path, "test")
    assert [(item.id, len(item.images)) for item in items] == [("9", 0), ("3", 1)]
    assert items[1].images == (tmp_path / "images/test/3/image.png",)
    assert items[0].prompt.startswith("Question: Which?\nContext: N/A\nOptions: (A) north (B) south\n")
    score = scored("scienceqa", items, ["The answer is B.", "A"])
    assert score.metrics["accuracy"] == 50
    assert (score.metrics["context/NO"], score.metrics["context/IMG"]) == (100, 0)
    assert (score.metrics["grade/G7-12"], score.metrics["subject/SOC"]) == (100, 50)
    only = get_task("scienceqa").load(tmp_path, "test-image")
    assert [item.id for item in only] == ["3"]


def mmmu_row(key, question_type, options, answer):
    images = {f"image_{number}": None for number in range(1, 8)}
    images["image_1"] = cell()
    question = "What is in <image 1>?"
    return {
        "id": key,
        "question": question,
        "options": options,
        "answer": answer,
        "question_type": question_type,
        **images,
    }


def test_mmmu(tmp_path):
    from dualtoken.eval.tasks.mmmu import DISCIPLINE_OF

    assert len(DISCIPLINE_OF) == 30
    for subject in DISCIPLINE_OF:
        rows = [
            mmmu_row(f"validation_{subject}_1", "multiple-choice", "['a dog', \"it's red\"]", "B"),
            mmmu_row(f"validation_{subject}_2", "open", "[]", "['1,000', 'thousand']"),
        ]
        write_parquet(tmp_path / subject / "validation-00000-of-00001.parquet", rows)
    items = get_task("mmmu").load(tmp_path, "validation")
    assert len(items) == 60
    assert items[0].id == "validation_Accounting_1"
    assert items[0].prompt == (
        "What is in <image 1>?\n(A) a dog\n(B) it's red\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert items[1].prompt.endswith("?\nAnswer the question using a single word or phrase.")
    assert len(items[0].images) == 1
    assert items[0].images[0].size == (16, 16)
    score = scored("mmmu", items, ["(B)", "It is a thousand"] * 30)
    assert (
        score.metrics["accuracy"]
        == score.metrics["discipline/Science"]
        == score.metrics["subject/Art"]
        == 100
    )
    # No letter in 30 of 60 answers: 25 in 100 expected of picking one of two.
    lost = scored("mmmu", items, ["no idea", "1000.001"] * 30)
    assert (lost.metrics["accuracy"], lost.metrics["accuracy_random_expected"], lost.unparsed) == (50, 75, 30)


def test_ai2d_from_tsv_and_parquet(tmp_path):
    row = {
        "index": 0,
        "question": "Which part?",
        "A": "leaf",
        "B": "root",
        "answer": "B",
        "image": in_base64(),
    }
    (tmp_path / "tsv").mkdir()
    write_tsv(tmp_path / "tsv/AI2D_TEST.tsv", [row])
    write_parquet(
        tmp_path / "parquet/data/test-00000-of-00001.parquet",
        [{"question": "Which part?", "options": ["leaf", "root"], "answer": "1", "image": cell()}],
    )
    loaded = [get_task("ai2d").load(tmp_path / kind, "test") for kind in ("tsv", "parquet")]
    assert loaded[0][0].prompt == loaded[1][0].prompt
    assert loaded[0][0].target == loaded[1][0].target
    for items in loaded:
        assert scored("ai2d", items, ["B. root"]).metrics["accuracy"] == 100
        assert scored("ai2d", items, ["the plant"]).unparsed == 1


def test_realworldqa(tmp_path):
    rows = [
        {"image": cell(), "question": "How many?\nPlease answer with a number.", "answer": "2"},
        {"image": cell(), "question": "Which?\n\nA. left\nB. right", "answer": "B"},
    ]
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", rows)
    items = get_task("realworldqa").load(tmp_path, "test")
    assert items[0].prompt == rows[0]["question"]
    assert scored("realworldqa", items, ["Two", "b."]).metrics["accuracy"] == 100
    assert scored("realworldqa", items, ["", "B"]).unparsed == 1


def mathvista_problem(**changes):
    problem = {
        "question": "How long?",
        "image": "images/1.jpg",
        "choices": None,
        "unit": "cm",
        "precision": 1.0,
    }
    problem |= {
        "answer": "3.5",
        "question_type": "free_form",
        "answer_type": "float",
        "metadata": {"task": "geometry"},
    }
    return problem | changes


def test_mathvista_needs_the_judge_only_where_rules_find_no_answer(tmp_path):
    choice = mathvista_problem(
        choices=["12", "14"], answer="14", question_type="multi_choice", answer_type="text", unit=None
    )
    write_json(tmp_path / "annot_testmini.json", {"1": mathvista_problem(), "2": choice})
    items = get_task("mathvista").load(tmp_path, "testmini")
    assert items[0].images == (tmp_path / "images/1.jpg",)
    assert items[0].prompt == (
        "Hint: Please answer the question requiring a floating-point number with one decimal place and"
        " provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How long? (Unit: cm)"
    )
    assert items[1].prompt.endswith("Question: How long?\nChoices:\n(A) 12\n(B) 14")
    by_rules = scored("mathvista", items, ["3.5", "14"], tmp_path)
    assert by_rules.metrics["accuracy"] == by_rules.metrics["task/geometry"] == 100
    answers = ["3.5", "I think it is (B)"]
    without = scored("mathvista", items, answers, tmp_path)
    assert without.metrics == {"accuracy": None, "accuracy_without_judge": 50}
    assert without.unparsed == 1
    assert "mathvista-judge.json" in without.notes[0]
    write_json(tmp_path / "mathvista-judge.json", {"2": {"extraction": "B"}})
    assert scored("mathvista", items, answers, tmp_path).metrics["accuracy"] == 100
    write_json(tmp_path / "mathvista-judge.json", {"1": {"extraction": "3.5"}})
    assert "lacks 1 of the 1" in scored("mathvista", items, answers, tmp_path).notes[0]


def test_mathvista_from_parquet_uses_the_query_of_the_file(tmp_path):
    row = mathvista_problem(pid="1", query="Hint: …\nQuestion: How long?", decoded_image=cell())
    write_parquet(tmp_path / "data/testmini-00000-of-00001.parquet", [row])
    (item,) = get_task("mathvista").load(tmp_path, "testmini")
    assert item.prompt == row["query"]
    assert item.images[0].size == (16, 16)


def test_mmvet_needs_the_grades_of_all_answers(tmp_path):
    row = {
        "imagename": "v1_0.png",
        "question": "What is x?",
        "answer": "-1<AND>-5",
        "capability": ["ocr", "math"],
    }
    write_json(tmp_path / "mm-vet.json", {"v1_0": row, "v1_1": row})
    items = get_task("mmvet").load(tmp_path, "test")
    assert items[0].images == (tmp_path / "images/v1_0.png",)
    without = scored("mmvet", items, ["x = -1", ""], tmp_path)
    assert without.metrics == {"total": None}
    assert "need a judge" in without.notes[0]
    grades = {key: {"model": ["m"], "content": ["0.5"], "score": [0.5]} for key in ("v1_0", "v1_1", "v1_2")}
    write_json(tmp_path / "mmvet-judge.json", grades)
    score = scored("mmvet", items, ["x = -1", ""], tmp_path)
    assert (score.metrics["total"], score.metrics["capability/ocr"]) == (50, 50)
    write_json(tmp_path / "mmvet-judge.json", {**grades, "v1_0": {"score": [1.5]}})
    with pytest.raises(UserError, match="between 0 and 1"):
        scored("mmvet", items, ["x = -1", ""], tmp_path)
    write_json(tmp_path / "mmvet-judge.json", [1, 2])
    with pytest.raises(UserError, match="JSON object"):
        scored("mmvet", items, ["x = -1", ""], tmp_path)
