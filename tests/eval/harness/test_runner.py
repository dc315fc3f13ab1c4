"""Predictions do not depend on interruptions and ranks; predictions of other data are not scored."""

import json
from dataclasses import replace

import pytest

from dualtoken.eval import get_task
from dualtoken.eval.data.held_out import HELD_OUT
from dualtoken.eval.harness.identity import ModelIdentity
from dualtoken.eval.harness.predictions import MERGED, PredictionWriter
from dualtoken.eval.harness.runner import predict, score
from dualtoken.eval.harness.task_data import Settings, load_data
from dualtoken.tokenizer import UserError

SETTINGS = Settings(batch_size=3)


def predicted(numbers, predictor, output, settings=SETTINGS, **model):
    return predict(numbers, predictor, output, settings, ModelIdentity(**model))


def test_stopped_and_resumed_equals_uninterrupted(numbers, calculator, tmp_path):
    whole = predicted(numbers, calculator(), tmp_path / "whole")
    for patience in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            predicted(numbers, calculator(patience), tmp_path / "parts")
    last = calculator()
    parts = predicted(numbers, last, tmp_path / "parts")
    assert last.asked == ["q9"]  # what was predicted is not asked again
    assert (parts / MERGED).read_bytes() == (whole / MERGED).read_bytes()
    assert not list(parts.glob("part-*"))


def test_ranks_give_the_predictions_of_one(numbers, calculator, tmp_path):
    whole = predicted(numbers, calculator(), tmp_path / "whole")
    asked = []
    for rank in (1, 0, 2):
        one = calculator()
        shared = predicted(numbers, one, tmp_path / "shared", replace(SETTINGS, rank=rank, world=3))
        asked += one.asked
    assert sorted(asked) == sorted(f"q{n}" for n in range(10))
    assert (shared / MERGED).read_bytes() == (whole / MERGED).read_bytes()


def test_an_incomplete_last_line_is_predicted_again(numbers, calculator, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        folder = predicted(numbers, calculator(2), tmp_path)
    (part,) = (tmp_path / "numbers" / "test").glob("part-*")
    part.write_bytes(part.read_bytes()[:-5])
    again = calculator()
    folder = predicted(numbers, again, tmp_path)
    assert again.asked[:3] == ["q3", "q4", "q5"]
    assert len((folder / MERGED).read_text().splitlines()) == 10


def test_a_result_contains_the_identity_of_its_run(numbers, calculator, tmp_path):
    predicted(numbers, calculator(), tmp_path, model="m", checkpoint="abc", device="cpu")
    result = score(numbers, tmp_path, SETTINGS)
    assert result["headline"] == {"accuracy": 90.0}
    assert (result["n"], result["n_expected"], result["n_unparsed"]) == (10, 10, 0)
    assert (result["model"], result["checkpoint"], result["seed"]) == ("m", "abc", 0)
    assert result["generation"] == {"max_new_tokens": 32, "batch_size": 3}
    assert len(result["data"]) == len(result["prompts"]) == 64
    assert "torch" in result["versions"]
    assert json.loads((tmp_path / "numbers" / "test" / "result.json").read_text()) == result


@pytest.mark.parametrize("split", ["test", "open"])
def test_a_part_of_the_items_has_no_headline(numbers, calculator, tmp_path, split):
    settings = replace(SETTINGS, split=split, limit=5)
    predicted(numbers, calculator(), tmp_path, settings)
    result = score(numbers, tmp_path, replace(SETTINGS, split=split))
    assert result["headline"] is None
    assert result["metrics"] == {"accuracy": 80.0}


@pytest.mark.parametrize(
    ("changes", "facts", "named"),
    [
        ({}, {"checkpoint": "other"}, "checkpoint"),
        ({"seed": 1}, {}, "seed"),
        ({"batch_size": 4}, {}, "generation"),
        ({"limit": 4}, {}, "limit"),
    ],
)
def test_a_resumed_run_must_have_the_same_settings(numbers, calculator, tmp_path, changes, facts, named):
    predicted(numbers, calculator(), tmp_path, checkpoint="abc")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=named):
        predicted(
            numbers, calculator(), tmp_path, replace(SETTINGS, **changes), **{"checkpoint": "abc", **facts}
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_missing_repeated_and_unknown_predictions_are_refused(numbers, calculator, tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        score(numbers, tmp_path, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        predicted(numbers, calculator(1), tmp_path)
    with pytest.raises(UserError, match="lacks 7 of 10"):
        score(numbers, tmp_path, SETTINGS)
    folder = tmp_path / "numbers" / "test"
    with PredictionWriter(folder, 1, 2) as writer:
        writer.write({"q1": "2"})
    with pytest.raises(UserError, match="'q1' is predicted twice"):
        score(numbers, tmp_path, SETTINGS)
    (folder / "part-00001-of-00002.jsonl").write_text('{"id": "x", "prediction": "2"}\n')
    with pytest.raises(UserError, match="no item 'x'"):
        score(numbers, tmp_path, SETTINGS)
    (folder / "part-00001-of-00002.jsonl").write_text("what\n")
    with pytest.raises(UserError, match="line 1 is not a prediction"):
        score(numbers, tmp_path, SETTINGS)


def test_predictions_of_other_data_are_not_scored(numbers, calculator, tmp_path, monkeypatch):
    predicted(numbers, calculator(), tmp_path)
    items = numbers.load(None, "test")
    changed = [replace(items[0], target={"answer": 7}), *items[1:]]
    monkeypatch.setattr(type(numbers), "load", lambda *_: changed)
    with pytest.raises(UserError, match="other data"):
        score(numbers, tmp_path, SETTINGS)


def test_unknown_names_are_answered_with_similar_ones(numbers):
    with pytest.raises(UserError, match="did you mean numbers"):
        get_task("number")
    with pytest.raises(UserError, match="it has test, open"):
        numbers.split_or_default("dev")


def test_folders_that_data_are_loaded_from(tmp_path):
    line = json.dumps({"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"})
    for folder in (tmp_path, tmp_path / "all" / "pope"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "coco_pope_popular.json").write_text(line)
    for data in (tmp_path, str(tmp_path), tmp_path / "all"):
        loaded = load_data(get_task("pope"), Settings(data=data, split="popular"))
        assert (len(loaded.items), loaded.source) == (1, "files")
    easyvqa = get_task("easyvqa")
    packaged, given = (load_data(easyvqa, Settings(data=data)) for data in (None, str(HELD_OUT)))
    assert [item.id for item in packaged.items] == [item.id for item in given.items]
    assert (packaged.source, given.source) == ("package", "files")
