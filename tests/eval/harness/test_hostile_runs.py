"""Folders of predictions and results that were damaged, shortened, swapped or are in use; broken images."""

import contextlib
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualtoken.common.errors import ImageError, UserError
from dualtoken.common.images.reading import load_image
from dualtoken.common.locks import only_process
from dualtoken.eval import Item
from dualtoken.eval.data.files import read_parquet, read_tsv
from dualtoken.eval.harness.identity import RunIdentity
from dualtoken.eval.harness.predictions import MERGED, check_predictions
from dualtoken.eval.harness.results import collect_results
from dualtoken.eval.harness.runner import predict, run_folder, score
from dualtoken.eval.harness.task_data import Settings
from dualtoken.scripts import cli

SETTINGS = Settings(batch_size=3)


@pytest.fixture
def finished(numbers, calculator, tmp_path):
    return predict(numbers, calculator(), tmp_path, SETTINGS)


def test_a_shortened_file_of_predictions_is_completed_again(numbers, calculator, tmp_path, finished):
    whole = (finished / MERGED).read_bytes()
    (finished / MERGED).write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    with pytest.raises(KeyboardInterrupt):
        predict(numbers, calculator(1), tmp_path, SETTINGS)
    last = calculator()
    predict(numbers, last, tmp_path, SETTINGS)
    assert last.asked == ["q6", "q7", "q8", "q9"]
    assert (finished / MERGED).read_bytes() == whole


def test_a_run_killed_while_it_merged_the_parts_is_completed(numbers, calculator, tmp_path, finished):
    whole = (finished / MERGED).read_bytes()
    (finished / "part-00000-of-00001.jsonl").write_bytes(whole)  # not yet deleted
    again = calculator()
    predict(numbers, again, tmp_path, SETTINGS)
    assert again.asked == []
    assert (finished / MERGED).read_bytes() == whole
    assert not list(finished.glob("part-*"))


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b'{"id": "q9", "prediction": 18}',
        b'{"id": "q9", "prediction": ["18"]}',
        b'{"id": 9, "prediction": "18"}',
        b'{"id": null, "prediction": "18"}',
        b'{"id": "q9"}',
        b"[1]",
        b"null",
        b'{"id": "q9", "prediction": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id": "q9", "prediction": "\\ud800"}',
        b'{"id": "q9", "prediction": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_line_that_is_not_a_prediction_is_named(numbers, calculator, tmp_path, finished, line):
    lines = (finished / MERGED).read_bytes().splitlines()
    (finished / MERGED).write_bytes(b"\n".join([*lines[:-1], line]) + b"\n")
    for attempt in (
        lambda: score(numbers, tmp_path, SETTINGS),
        lambda: predict(numbers, calculator(), tmp_path, SETTINGS),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(finished) in str(caught.value)
        assert len(str(caught.value)) <= 300


def test_an_item_that_could_not_be_asked_is_incorrect_and_leaves_no_headline(numbers, tmp_path, finished):
    text = (finished / MERGED).read_text().replace('"prediction": "18"', '"prediction": null')
    (finished / MERGED).write_text(text)
    result = score(numbers, tmp_path, SETTINGS)
    assert result["metrics"] == {"accuracy": 80.0}
    assert result["headline"] is None
    assert "1 items could not be asked ('q9' first)" in result["notes"][0]


@pytest.mark.parametrize("kind", ["answer", "choose", "image"])
def test_predictions_of_other_kinds_are_refused(tmp_path, kind):
    item = Item("a", "b", choices=("x", "y"))
    right = {"answer": ["", "x", None], "choose": [[0.5, -1], None], "image": ["images/0.png", ["a.png"]]}[
        kind
    ]
    wrong = {
        "answer": [1, ["x"], {}],
        "choose": ["x", [1.0], [1.0, float("nan")], [True, False], ["1", "2"]],
        "image": [None, 3, [3], ["../x.png"], ["/etc/passwd"], "../x.png"],
    }[kind]
    for value in right:
        check_predictions(kind, [item], {"a": value}, tmp_path)
    for value in wrong:
        with pytest.raises(UserError):
            check_predictions(kind, [item], {"a": value}, tmp_path)


def test_broken_images_affect_only_their_items(numbers, calculator, tmp_path, monkeypatch, capsys):
    class Seeing(calculator):
        def answer(self, items, settings):
            for item in items:
                for image in item.images:
                    load_image(image)
            return super().answer(items, settings)

    Image.effect_noise((16, 16), 50).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    files = {"q1": "broken.png", "q2": "whole.png"}
    items = [
        replace(item, images=(tmp_path / files[item.id],)) if item.id in files else item
        for item in numbers.load(None, "test")
    ]
    monkeypatch.setattr(type(numbers), "load", lambda *_: items)
    with pytest.raises(ImageError):
        load_image(tmp_path / "broken.png")
    predict(numbers, Seeing(), tmp_path / "out", SETTINGS)
    assert "item 'q1' is not asked" in capsys.readouterr().err
    result = score(numbers, tmp_path / "out", SETTINGS)
    assert result["metrics"] == {"accuracy": 80.0}  # q3 is wrong anyway
    assert result["headline"] is None


def test_a_second_run_in_a_folder_names_the_process_that_uses_it(numbers, calculator, tmp_path, finished):
    before = (finished / MERGED).read_bytes()
    with (
        only_process(finished, "--output"),
        pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
    ):
        predict(numbers, calculator(), tmp_path, SETTINGS)
    assert (finished / MERGED).read_bytes() == before
    with only_process(finished, "--output", part="-1"):  # another rank of one run
        predict(numbers, calculator(), tmp_path, SETTINGS)


def test_a_folder_of_other_files_is_not_written_to(numbers, calculator, tmp_path):
    folder = run_folder(tmp_path, numbers, "test")
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "00000_00.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds 'images' and no manifest"):
        predict(numbers, calculator(), tmp_path, SETTINGS)
    assert (folder / "images" / "00000_00.png").read_bytes() == b"mine"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_manifest_or_result_is_read_or_refused(data, tmp_path_factory):
    base = {
        "benchmark": "n", "split": "test", "model": "m", "checkpoint": "c", "data": "d", "prompts": "p",
        "device": "cpu", "generation": {}, "versions": {}, "seed": 0, "n": 1, "limit": None, "n_expected": 1,
        "headline": {"accuracy": 1.0}, "notes": ["x"], "n_unparsed": 0,
    }  # fmt: skip
    changed = {**base, data.draw(st.sampled_from(sorted(base))): data.draw(VALUES)}
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    for name in ("manifest.json", "result.json"):
        (folder / name).write_text(json.dumps(changed))
    with contextlib.suppress(UserError):
        RunIdentity.read(folder)
    with contextlib.suppress(UserError):
        collect_results([folder])


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff", b"[" * 10**5, b'{"benchmark": 3}'])
def test_invalid_results_are_one_line(tmp_path, content, capsys):
    (tmp_path / "result.json").write_bytes(content)
    assert cli.run_command("eval", ["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= 300


def test_a_report_replaces_its_own_files_only(numbers, tmp_path, finished, capsys):
    pytest.importorskip("matplotlib")
    score(numbers, tmp_path, SETTINGS)
    output = tmp_path / "report"
    output.mkdir()
    (output / "report.md").write_text("mine")
    command = ["report", str(finished), "--output", str(output)]
    assert cli.run_command("eval", command) == 2
    assert "holds 'report.md'" in capsys.readouterr().err
    (output / "report.md").rename(output / "notes.md")
    assert [cli.run_command("eval", command) for _ in range(2)] == [0, 0]
    assert (output / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("content", [b"caf\xe9\tb\n1\t2\n", b"a\tb\n\xff\t2\n", b"\0\tb\n", b""])
def test_tables_that_are_not_utf8_are_one_line(tmp_path, content):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tsv"):
        list(read_tsv(tmp_path / "a.tsv", ["a", "b"]))


def test_a_parquet_file_cut_short_or_flipped_is_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [b"x" * 5000] * 50}), tmp_path / "a.parquet", compression="zstd")
    whole = (tmp_path / "a.parquet").read_bytes()
    for damaged in (whole[:-20], b"", whole[:4] + bytes(60) + whole[64:]):
        (tmp_path / "b.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"b\.parquet"):
            list(read_parquet([tmp_path / "b.parquet"], ["a"]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--tasks", "scenes", "--output", "FILE"),
        ("run", "--tasks", "scenes", "--output", "FILE/x"),
        ("run", "--tasks", "scenes", "--output", "/proc/x"),
        ("run", "--tasks", "scenes", "--output", "x" * 5000),
        ("run", "--tasks", "scenes", "--output", "out", "--batch-size", "9" * 30),
        ("run", "--tasks", "scenes", "--output", "out", "--seed", "-1"),
        ("run", "--tasks", "scenes", "--output", "out", "--limit", "nan"),
        ("run", "--tasks", "pope", "--output", "out", "--data", "/dev/zero"),
        ("run", "--tasks", "pope", "--output", "out", "--data", "hub:"),
        ("run", "--tasks", "x" * 10_000, "--output", "out"),
        ("score", "--tasks", "scenes", "--output", "out", "--judge", "replay:"),
        ("check", "--tasks", "pope", "--data", "a\0b"),
        ("check", "--tasks", "pope", "--data", "~nobody-of-this-name/x"),
        ("report", "FILE"),
        ("report", "x" * 5000),
        ("tokenizer", "--images", "/dev/zero"),
        ("tokenizer", "--images", "."),
        ("tokenizer", "--images", "FILE", "--output", "FILE"),
        ("tokenizer", "--images", ".", "--metrics", "psnrr"),
        ("tokenizer", "--images", ".", "--templates", "FILE"),
    ],
)
def test_wrong_command_lines_are_one_line_before_a_model_is_loaded(arguments, tmp_path, monkeypatch, capsys):
    def no_model(*_, **__):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("dualtoken.scripts.options.load_pipeline", no_model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("mine")
    assert cli.run_command("eval", list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= 300
    assert (tmp_path / "FILE").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
