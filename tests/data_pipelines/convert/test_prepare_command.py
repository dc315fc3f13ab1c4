"""`dualtoken prepare`: what it makes, what it prints, and its exit status."""

import re
import shlex
from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert.registry import CONVERTERS
from dualtoken.data_pipelines.scenes.convert import parse_weights
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.scripts import cli, prepare


def test_scenes_from_the_command_line(tmp_path, capsys):
    arguments = ["prepare", "scenes", "--output", str(tmp_path / "s"), "--count", "12", "--task", "t2i"]
    arguments += ["--skills", "counting=1", "--image-size", "16", "--shard-size", "5", "--no-progress"]
    assert cli.main(arguments) == 0
    assert "12 records" in capsys.readouterr().out
    dataset = ShardDataset(tmp_path / "s")
    assert len(dataset.shards) == 3
    assert {dataset[i].metadata["skill"] for i in range(12)} == {"counting"}
    assert cli.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["scenes", "--skills", "flying=1"], "single_object"),
        (["scenes", "--skills", "counting=much"], "name=weight"),
        (["scenes", "--count", "0"], "--count"),
        (["labels", "--input", "missing.zip"], "missing.zip"),
        (["llava", "--input", "missing.json"], "missing.json"),
        (["folder", "--input", "missing"], "missing"),
        (["folder", "--input", ".", "--captions", "missing.csv"], "missing.csv"),
        (["folder", "--input", ".", "--max-image-size", "2"], "--max-image-size"),
        (["folder", "--input", ".", "--held-out", "1.5"], "--held-out"),
        (["folder", "--input", ".", "--workers", "0"], "--workers"),
        (["folder", "--input", ".", "--question", " "], "--question"),
        (["webdataset", "--input", "{00..01}.tar"], "00.tar"),
        (["hf", "--input", "nobody/nothing"], "nobody/nothing"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(tmp_path, capsys, arguments, word):
    assert cli.main(["prepare", *arguments, "--output", str(tmp_path / "x"), "--no-progress"]) == 2
    error = capsys.readouterr().err.strip()
    assert word in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", CONVERTERS)
def test_every_kind_has_help_with_an_example(kind, capsys):
    with pytest.raises(SystemExit) as exit_status:
        cli.main(["prepare", kind, "--help"])
    assert exit_status.value.code == 0
    assert f"dualtoken prepare {kind} --" in capsys.readouterr().out


def test_weights_are_parsed():
    assert parse_weights("a=0.5, b = 2,c") == {"a": 0.5, "b": 2.0, "c": 1.0}
    with pytest.raises(UserError, match="name=weight"):
        parse_weights("a=x")


GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "howto" / "prepare_data.md").read_text(
    encoding="utf-8"
)
GUIDE_LINES = re.findall(r"^dualtoken (prepare .+)$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("line", GUIDE_LINES)
def test_the_guides_command_lines_parse(line):
    _, *arguments = shlex.split(line)
    cli.command_parser(prepare, "dualtoken prepare").parse_args(arguments)


def test_the_guide_shows_every_source_of_a_users_own_data():
    shown = {line.split()[1] for line in GUIDE_LINES}
    assert shown >= {"folder", "llava", "webdataset", "hf", "check", "stats", "scenes", "labels"}
