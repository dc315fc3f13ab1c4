"""Tasks from outside the package: by a folder on the command line, and by an entry point."""

import json
import sys
from importlib.metadata import EntryPoint

import pytest

from dualtoken.common import plugins
from dualtoken.common.errors import UserError
from dualtoken.eval import Task, get_task, include, register
from dualtoken.eval.harness import registry
from dualtoken.scripts import cli

SOURCE = """
from PIL import Image

from dualtoken.eval import Graded, Item, Task, register


@register
class Colours(Task):
    name = "colours_of_squares"
    summary = "which colour is the whole image"
    splits = {"test": 2, "own": None}

    def load(self, root, split):
        if split == "own":
            colours = self.need_file(root, "colours.txt").read_text().split()
        else:
            colours = ["red", "blue"]
        question = "What colour is the image?"
        return [Item(c, question, (Image.new("RGB", (64, 64), c),), {"answer": c}) for c in colours]

    def grade(self, item, prediction):
        answer = prediction.strip().lower()
        return Graded(answer or None, float(answer == item.target["answer"]))

    def groups(self, item):
        return {"colour": [item.target["answer"]]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file that registers a task, which is removed afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules), set(registry.task_names())
    path = tmp_path / "tasks"
    path.mkdir()
    (path / "colours_task.py").write_text(SOURCE)
    yield path
    for name in set(sys.modules) - known[0]:
        if "colours_task" in name:
            del sys.modules[name]
    for name in set(registry.task_names()) - known[1]:
        del registry._REGISTERED[name]


def evaluate(*arguments) -> int:
    return cli.run_command("eval", [str(argument) for argument in arguments])


def test_a_task_of_a_folder_is_run_from_the_command_line(folder, tmp_path, capsys):
    named = ("--tasks", "colours_of_squares", "--include-path", folder)
    assert evaluate("run", "--device", "cpu", "--output", tmp_path / "out", *named) == 0
    assert "colours_of_squares (test): accuracy" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/colours_of_squares/test/result.json").read_text())
    assert set(result["metrics"]) == {"accuracy", "colour/red", "colour/blue"}
    lines = (tmp_path / "out/colours_of_squares/test/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["red", "blue"]
    assert evaluate("list", "--include-path", folder) == 0
    assert "which colour is the whole image" in capsys.readouterr().out
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "colours.txt").write_text("red green black")
    assert evaluate("check", "--split", "own", "--data", tmp_path / "data", *named) == 0
    assert "3 items, any number is accepted" in capsys.readouterr().out


def test_a_task_of_an_installed_package_is_found_by_its_entry_point(folder, monkeypatch):
    point = EntryPoint("colours", "colours_task", registry.ENTRY_POINTS)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])
    include([])
    assert get_task("colours_of_squares").splits == {"test": 2, "own": None}


def test_mistakes_of_plugins_are_one_line(folder, tmp_path, capsys):
    (folder / "colours_task.py").write_text("import no_such_package\n")
    for path, message in ((folder, "colours_task.py"), (tmp_path / "none", "is not a folder")):
        assert evaluate("check", "--tasks", "nlvr", "--include-path", path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "return Graded(answer or",
            "return {}['x'] or Graded(answer or",
            "item red: grade raised KeyError: 'x'",
        ),
        (
            "def groups(self, item):",
            "def groups(self, item):\n        1 / 0",
            ": score raised ZeroDivisionError",
        ),
        ("def grade(self", "def degrade(self", "defines neither grade nor score"),
    ],
)
def test_what_a_task_of_a_plugin_raises_is_one_line(folder, tmp_path, capsys, old, new, message):
    (folder / "colours_task.py").write_text(SOURCE.replace(old, new))
    named = ("--tasks", "colours_of_squares", "--include-path", folder)
    assert evaluate("run", "--device", "cpu", "--output", tmp_path / "out", *named) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "colours_of_squares" in line
    assert message in line
    assert "neither" in message or "(colours_task.py:" in line


def test_two_tasks_of_one_name_are_refused(numbers):
    class Other(Task):
        name = "numbers"

        def load(self, root, split):
            return []

    with pytest.raises(UserError, match="two tasks are named 'numbers'"):
        register(Other)
    assert get_task("numbers") is numbers
