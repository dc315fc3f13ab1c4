"""`dualtoken eval`: from predictions to a report, mistakes are one line."""

import json
import shutil
from functools import partial

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.eval import get_task
from dualtoken.eval.scorers.yes_no import MME_COGNITION, MME_PERCEPTION
from dualtoken.scripts import cli


def evaluate(*arguments) -> int:
    return cli.run_command("eval", [str(argument) for argument in arguments])


def test_run_and_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    given = (
        "--tasks",
        "nlvr,scenes-t2i",
        "--output",
        tmp_path / "nano",
        "--limit",
        4,
        "--device",
        "cpu",
    )
    assert evaluate("run", *given) == 0
    assert "4 of 150 items: no headline metric" in capsys.readouterr().out
    images = sorted((tmp_path / "nano" / "scenes-t2i" / "test" / "images").iterdir())
    assert [path.name for path in images] == [f"0000{n}_00.png" for n in range(4)]
    assert evaluate("report", tmp_path / "nano", "--output", tmp_path / "report") == 0
    assert "| benchmark | nano |" in (tmp_path / "report" / "report.md").read_text()
    assert len(json.loads((tmp_path / "report" / "report.json").read_text())["results"]) == 2
    with Image.open(tmp_path / "report" / "report.png") as chart:
        assert chart.width > 300


def test_the_word_benchmarks_is_still_accepted(tmp_path, capsys):
    assert evaluate("check", "--benchmarks", "nlvr") == 0
    assert "nlvr (dev-150): 150 items, 150 expected  [package]" in capsys.readouterr().out


def test_list_names_every_task(capsys):
    assert evaluate("list") == 0
    printed = capsys.readouterr().out
    assert "scenes-t2i" in printed
    assert "github.com/AoiDragon/POPE, output/coco; images: COCO val2014" in printed
    assert "--data hub: lmms-lab-encoder/POPE" in printed
    assert "data: in the package" in printed


def test_a_run_loads_its_data_once(tmp_path, monkeypatch):
    kind = type(get_task("nlvr"))
    load, calls = kind.load, []

    def counted(*arguments):
        calls.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(kind, "load", counted)
    given = ("--tasks", "nlvr", "--output", tmp_path, "--limit", 2, "--device", "cpu")
    assert evaluate("run", *given) == 0
    assert len(calls) == 1


@pytest.fixture
def mme(tmp_path):
    """All of MME's questions in number, without an image, in a folder of its name."""
    (tmp_path / "mme").mkdir()
    tasks = (*MME_PERCEPTION, *MME_COGNITION)
    for task in tasks:
        images = 1187 - (len(tasks) - 1) if task == tasks[0] else 1
        lines = [f"{n}.jpg\tIs it so?\t{answer}\n" for n in range(images) for answer in ("Yes", "No")]
        (tmp_path / "mme" / f"{task}.txt").write_text("".join(lines))
    return tmp_path


def test_check_counts_items_and_names_missing_images(mme, capsys):
    given = ("--tasks", "mme", "--data", mme)
    assert evaluate("check", *given) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first == "mme (test): 2374 items, 2374 expected  [files]"
    assert second.startswith("  1187 of 1187 image files are missing: ")
    assert "existence/images/0.jpg, " in second
    assert evaluate("check", *given, "--no-images") == 0
    capsys.readouterr()
    (mme / "mme" / "count.txt").write_text("")
    assert evaluate("check", *given, "--no-images") == 2
    assert "2372 items, 2374 expected  WRONG NUMBER" in capsys.readouterr().out


def test_check_looks_at_every_split_that_is_there(tmp_path, capsys):
    line = json.dumps({"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"})
    for split in ("popular", "random"):
        (tmp_path / f"coco_pope_{split}.json").write_text(line)
    assert evaluate("check", "--tasks", "pope", "--data", tmp_path) == 2
    printed = capsys.readouterr().out
    assert "pope (popular): 1 items" in printed
    assert "pope (random): 1 items" in printed
    assert "adversarial" not in printed
    assert evaluate("check", "--tasks", "pope,gqa", "--data", tmp_path, "--split", "popular") == 2
    assert "gqa has no split 'popular'" in capsys.readouterr().err
    assert evaluate("check", "--tasks", "gqa", "--data", tmp_path) == 2
    printed = capsys.readouterr().out
    assert "gqa (testdev): not there: " in printed
    assert "not there: gqa: " not in printed
    assert evaluate("check", "--tasks", "pope", "--data", tmp_path / "nosuch") == 2
    head = f"pope (adversarial): not there: the folder {tmp_path / 'nosuch'} does not exist ("
    assert capsys.readouterr().out.startswith(head)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--tasks", "sceens", "--output", "x"), "did you mean scenes"),
        (("run", "--tasks", ",", "--output", "x"), "empty"),
        (("run", "--tasks", "scenes", "--output", "x", "--split", "dev"), "no split 'dev'"),
        (("run", "--tasks", "scenes", "--output", "x", "--model", "nowhere"), "nowhere"),
        (("score", "--tasks", "scenes", "--output", "x"), "predictions first"),
        (("report", "x"), "no result.json"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_class_or_template_without_end_is_refused_before_it_is_read_by_a_model(tmp_path):
    from dualtoken.scripts.evaluate_tokenizer import class_names, templates

    names = tmp_path / "names.txt"
    names.write_text("a cat\n{} " + "x" * 300_000)
    for read in (class_names, templates):
        with pytest.raises(UserError, match="300003 characters; at most 1000"):
            read(names)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_damaged_file_of_a_tokenizer_is_reported_and_not_ignored(tmp_path, name):
    from dualtoken.common.loading.model_source import PRETRAINED_FOLDER
    from dualtoken.mllm.assembly.tokenizers import load_text_tokenizer
    from dualtoken.scripts.evaluate_tokenizer import saved_part
    from dualtoken.tokenizer import DualTokenizerImageProcessor

    folder = shutil.copytree(PRETRAINED_FOLDER / "nano" / "visual_tokenizer", tmp_path / "tokenizer")
    if name.startswith("pre"):
        read = partial(saved_part, DualTokenizerImageProcessor.from_pretrained)
        files = [name]
    else:
        read, files = partial(saved_part, load_text_tokenizer), ["tokenizer.json", "tokenizer_config.json"]
    assert read(str(folder), *files) is not None
    for content in ("null", "[]", "{", '["x"]'):
        (folder / name).write_text(content)
        with pytest.raises(UserError):
            read(str(folder), *files)
    for file in folder.glob("*.json"):
        file.unlink()
    assert read(str(folder), *files) is None
