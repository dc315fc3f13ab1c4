"""`dualtoken eval`: from predictions to a report, mistakes told in one line."""

import json

import pytest
from PIL import Image

from dualtoken.scripts import cli


def evaluate(*arguments) -> int:
    return cli.run_command("eval", [str(argument) for argument in arguments])


def test_run_and_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    given = (
        "--benchmarks",
        "nlvr,scenes-t2i",
        "--output",
        tmp_path / "nano",
        "--limit",
        4,
        "--device",
        "cpu",
    )
    assert evaluate("run", *given) == 0
    assert "4 of 150 items: no headline figure" in capsys.readouterr().out
    drawn = sorted((tmp_path / "nano" / "scenes-t2i" / "test" / "images").iterdir())
    assert [path.name for path in drawn] == [f"0000{n}_00.png" for n in range(4)]
    assert evaluate("report", tmp_path / "nano", "--output", tmp_path / "report") == 0
    assert "| benchmark | nano |" in (tmp_path / "report" / "report.md").read_text()
    assert len(json.loads((tmp_path / "report" / "report.json").read_text())["results"]) == 2
    with Image.open(tmp_path / "report" / "report.png") as chart:
        assert chart.width > 300


def test_list_names_every_benchmark(capsys):
    assert evaluate("list") == 0
    assert "scenes-t2i" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--benchmarks", "sceens", "--output", "x"), "did you mean scenes"),
        (("run", "--benchmarks", ",", "--output", "x"), "empty"),
        (("run", "--benchmarks", "scenes", "--output", "x", "--split", "dev"), "no split 'dev'"),
        (("run", "--benchmarks", "scenes", "--output", "x", "--model", "nowhere"), "nowhere"),
        (("score", "--benchmarks", "scenes", "--output", "x"), "predictions first"),
        (("report", "x"), "no result.json"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
