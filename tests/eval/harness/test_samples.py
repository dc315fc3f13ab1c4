"""`samples.jsonl` holds prompt, prediction and score of every item, for every kind of task."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from dualtoken.eval import Graded, Item, Task, get_task
from dualtoken.eval.harness.generated_images import ImageTask
from dualtoken.eval.harness.predictions import MERGED
from dualtoken.eval.harness.results import SAMPLES
from dualtoken.eval.harness.runner import predict, run_tasks, score
from dualtoken.eval.harness.score import Score
from dualtoken.eval.harness.task_data import Settings

SETTINGS = Settings(batch_size=3)


class Choices(Task):
    name = "choices"
    summary = "a or b"
    kind = "choose"
    splits = {"test": 2}

    def load(self, root, split):
        return [Item(key, "Which?", (), {"answer": key}, ("a", "b")) for key in "ab"]

    def grade(self, item, prediction):
        picked = "ab"[prediction.index(max(prediction))]
        return Graded(picked, float(picked == item.target["answer"]))


class Shades(ImageTask):
    name = "shades"
    summary = "images that grow brighter"
    splits = {"test": 2}
    images_per_prompt = 2

    def load(self, root, split):
        return [Item(str(n), f"shade {n}", target={"red": n}) for n in range(2)]

    def own_score(self, images, judges):
        reds = {image.item.id: image.open().getpixel((0, 0))[0] for image in images}
        graded = {key: Graded(red, float(red == int(key))) for key, red in reds.items()}
        return Score("right", {"right": 100.0}, items=graded)


def samples(folder):
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


def test_answers_and_what_was_parsed_from_them(numbers, calculator, tmp_path):
    folder = predict(numbers, calculator(), tmp_path, SETTINGS)
    text = (folder / MERGED).read_text().replace('"prediction": "18"', '"prediction": null')
    (folder / MERGED).write_text(text)
    score(numbers, tmp_path, SETTINGS)
    written = samples(folder)
    assert [list(one) for one in written] == [
        ["id", "prompt", "target", "prediction", "parsed", "score"]
    ] * 10
    fields = {"prompt": "1 + 1", "target": {"answer": 2}}
    assert written[1] == {"id": "q1", **fields, "prediction": "2", "parsed": "2", "score": 1.0}
    assert (written[3]["prediction"], written[3]["parsed"], written[3]["score"]) == ("?", "?", 0.0)
    # q9 could not be asked.
    assert (written[9]["prediction"], written[9]["parsed"], written[9]["score"]) == (None, None, 0.0)


def test_choices_and_generated_images(calculator, tmp_path):
    results = run_tasks([Choices(), Shades()], calculator(), tmp_path, SETTINGS)
    assert results["choices"]["headline"] == {"accuracy": 50.0}
    chosen = samples(tmp_path / "choices" / "test")
    assert [one["prediction"] for one in chosen] == [[-1.0, -1.0]] * 2
    assert [(one["parsed"], one["score"]) for one in chosen] == [("a", 1.0), ("a", 0.0)]
    images = samples(tmp_path / "shades" / "test")
    assert images[1]["prediction"] == ["images/00001_00.png", "images/00001_01.png"]
    assert (images[1]["parsed"], images[1]["score"]) == (1, 1.0)
    assert Image.open(tmp_path / "shades" / "test" / images[1]["prediction"][0]).size == (8, 8)


def test_items_without_a_score_are_null(calculator, tmp_path):
    row = {"question_id": 1, "image_id": 42, "question": "How many?"}
    (tmp_path / "test2015").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test2015" / "COCO_test2015_000000000042.jpg")
    name = "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    (tmp_path / name).write_text(json.dumps({"questions": [row]}))
    task, settings = get_task("vqav2"), replace(SETTINGS, data=tmp_path, split="test-dev")

    class Silent(calculator):
        def answer(self, items, settings):
            return ["two" for _ in items]

    folder = predict(task, Silent(), tmp_path / "out", settings)
    assert score(task, tmp_path / "out", settings)["metrics"] == {"accuracy": None}
    (sample,) = samples(folder)
    assert (sample["prediction"], sample["parsed"], sample["score"]) == ("two", None, None)


def test_an_item_may_be_in_no_group_of_the_table(calculator, tmp_path):
    class Grouped(Choices):
        name = "grouped"

        def groups(self, item):
            return {"first": ["a"]} if item.id == "a" else {}

    result = run_tasks([Grouped()], calculator(), tmp_path, SETTINGS)["grouped"]
    assert result["metrics"] == {"accuracy": 50.0, "first/a": 100.0}


@pytest.mark.parametrize("limit", [3, None])
def test_samples_are_those_of_the_items_asked(numbers, calculator, tmp_path, limit):
    run_tasks([numbers], calculator(), tmp_path, replace(SETTINGS, limit=limit))
    assert len(samples(tmp_path / "numbers" / "test")) == (limit or 10)
