"""Converters from outside this package: by an include path, and by an entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dualtoken
from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert.converter import Converter
from dualtoken.data_pipelines.convert.registry import CONVERTERS, register
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.scripts import cli

CAPITALS = '''
"""Countries and their capitals, a pair a line."""

from pathlib import Path

from dualtoken.data_pipelines.convert.converter import Converter
from dualtoken.data_pipelines.convert.registry import register
from dualtoken.data_pipelines.convert.samples import Sample
from dualtoken.data_pipelines.records import Record, assistant, user


@register
class CapitalsConverter(Converter):
    kind = "capitals"
    summary = "countries and their capitals"
    name = "capitals"

    def __init__(self, path, greeting):
        self.path, self.greeting = path, greeting

    @classmethod
    def add_arguments(cls, parser):
        parser.add_argument("--input", required=True, help="a line for each country")
        parser.add_argument("--greeting", default="Hello!", help="begins each question")

    @classmethod
    def from_arguments(cls, args):
        return cls(args.input, args.greeting)

    def samples(self):
        for number, line in enumerate(Path(self.path).read_text().splitlines()):
            yield Sample(f"line {number}", (number, line))

    def records(self, payload):
        number, line = payload
        country, capital = line.split(":")
        question = f"{self.greeting} What is the capital of {country}?"
        yield Record(f"capital-{number}", [user(question), assistant(capital)]), "train"
'''


def prepare(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`dualtoken prepare` in a process of its own, in which no plug-in has been imported before."""
    found = [str(Path(dualtoken.__file__).parents[1]), *([str(path)] if path else [])]
    command = [sys.executable, "-m", "dualtoken.scripts.cli", "prepare", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def capitals(tmp_path):
    (tmp_path / "countries.txt").write_text("France:Paris\nPeru:Lima\nnobody\n")
    return ["capitals", "--input", str(tmp_path / "countries.txt"), "--output", str(tmp_path / "out")]


def questions(folder: Path) -> list[list[str]]:
    return [record.texts() for record in ShardDataset(folder)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_converter_from_an_include_path(tmp_path, capitals, workers):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "capital_converter.py").write_text(CAPITALS)
    include = ["--include-path", str(tmp_path / "mine")]
    done = prepare(*include, *capitals, "--greeting", "Tell me.", "--workers", workers, "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "2 records" in done.stdout
    assert "1 sample rejected" in done.stderr
    assert questions(tmp_path / "out") == [
        ["Tell me. What is the capital of France?", "Paris"],
        ["Tell me. What is the capital of Peru?", "Lima"],
    ]


def test_a_converter_from_an_entry_point(tmp_path, capitals):
    package = tmp_path / "site"
    (package / "capital_package-1.0.dist-info").mkdir(parents=True)
    (package / "capital_package.py").write_text(CAPITALS)
    information = package / "capital_package-1.0.dist-info"
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: capital-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[dualtoken.converters]\ncapitals = capital_package:CapitalsConverter\n"
    )
    done = prepare(*capitals, path=package)
    assert done.returncode == 0, done.stderr
    assert len(questions(tmp_path / "out")) == 2
    assert "countries and their capitals" in prepare("--help", path=package).stdout


def test_mistakes_with_plugins_are_one_line(tmp_path, capitals):
    assert "invalid choice: 'capitals'" in prepare(*capitals).stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "broken_converter.py").write_text("import no_such_module_anywhere\n")
    done = prepare("--include-path", str(tmp_path / "mine"), *capitals)
    assert done.returncode == 2
    assert "broken_converter.py cannot be imported" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("countries", "countries", "converter 'capitals': nope.txt does not exist"),
        (
            "    def records",
            "    def inputs(self):\n        return {'--input': Path(self.path)}\n\n    def records",
            "--input nope.txt does not exist: give",
        ),
        (
            "number, line in",
            "number, line in [(0, 1 / 0)] or",
            "converter 'capitals': samples raised ZeroDivisionError: division by zero (raising.py:",
        ),
        ("def samples", "def examples", "converter 'capitals' does not define samples"),
        ("def records", "def entries", "converter 'capitals' does not define records"),
    ],
)
def test_what_a_converter_of_a_plugin_lacks_or_raises_is_one_line(
    tmp_path, monkeypatch, capsys, old, new, message
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "raising.py").write_text(CAPITALS.replace(old, new))
    command = ["--include-path", str(tmp_path / "mine"), "capitals", "--input", "nope.txt"]
    try:
        assert cli.run_command("prepare", [*command, "--output", str(tmp_path / "out")]) == 2
    finally:
        sys.modules.pop("raising", None)
        CONVERTERS.pop("capitals", None)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("out*")), "there is nothing to resume"


@pytest.mark.parametrize(("kind", "reason"), [("llava", "two converters"), ("a b", "no kind"), (None, "no")])
def test_a_kind_is_a_name_of_its_own(kind, reason):
    before = dict(CONVERTERS)
    with pytest.raises(UserError, match=reason):
        register(type("Mine", (Converter,), {"kind": kind}))
    assert before == CONVERTERS
