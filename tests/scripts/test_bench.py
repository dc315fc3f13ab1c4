"""`dualtoken bench`: which benchmarks there are, and how their results are collected."""

import json
from pathlib import Path

import pytest

from dualtoken.scripts import bench, cli

GOOD = '''"""Adding one, against adding it twice.

More."""
import argparse, json

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size")
    size = parser.parse_args().size
    cases = [{"name": f"sum, {size}", "against": "plain", "speed": 2.5, "memory": None, "seconds": 0.1}]
    print("on the way")
    print(json.dumps({"benchmark": "good", "machine": "here", "cases": cases, "data": {"share": 0.5}}))

main()
'''
BAD = '''"""Ends with an error."""

def main():
    raise RuntimeError("no such thing")

main()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    (folder / "helper.py").write_text('"""No benchmark."""\n')
    monkeypatch.setattr(bench, "FOLDER", folder)
    return folder


def test_every_benchmark_of_the_package_has_a_summary():
    found = bench.find_benchmarks(bench.FOLDER)
    assert {"losses", "loader", "train_step"} <= set(found)
    assert "measure" not in found
    for benchmark in found.values():
        assert benchmark.summary.endswith(".")
        text = benchmark.path.read_text()
        assert "argument_parser(__doc__, " in text or '"--size"' in text
    assert '"--size"' in (bench.FOLDER / "measure.py").read_text()


def test_without_a_name_the_benchmarks_are_listed(folder, capsys):
    assert cli.main(["bench"]) == 0
    out = capsys.readouterr().out
    assert "good           Adding one, against adding it twice." in out
    assert "helper" not in out


def test_results_become_a_table_and_a_list(folder, tmp_path, capsys):
    output = tmp_path / "results" / "bench.json"
    assert cli.main(["bench", "good", "good", "--size", "full", "--output", str(output)]) == 0
    (result,) = json.loads(output.read_text())
    assert result["cases"][0]["name"] == "sum, full"
    head, row, *notes = capsys.readouterr().out.splitlines()
    assert head.split() == ["benchmark", "case", "against", "speed", "memory", "seconds"]
    assert row.split() == ["good", "sum,", "full", "plain", "2.5", "-", "0.1"]
    assert notes == ["good, data: share 0.5", "good on here"]


def test_a_failing_benchmark_leaves_the_others_their_results(folder, tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert cli.main(["bench", "all", "--output", str(output)]) == 1
    bad, good = json.loads(output.read_text())
    assert bad == {"benchmark": "bad", "error": "RuntimeError: no such thing"}
    assert good["benchmark"] == "good"
    captured = capsys.readouterr()
    assert "bad failed: RuntimeError: no such thing" in captured.out
    assert "Traceback" in captured.err


def test_a_benchmark_whose_package_is_missing_is_refused_or_skipped(folder, capsys):
    (folder / "bad.py").unlink()
    (folder / "lacking.py").write_text(
        f"import absent_package.part\n{GOOD.partition('main()')[0]}main(): 1 / 0"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(bench.OPTIONAL, "absent_package", ("bench", "absent-package"))
        assert cli.main(["bench", "good", "lacking"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "for the benchmark lacking the package absent-package is needed" in captured.err
        assert "pip install '.[bench]'" in captured.err
        assert captured.err.count("\n") == 1
        assert cli.main(["bench", "all"]) == 0
        captured = capsys.readouterr()
        assert captured.err.startswith("skipped: for the benchmark lacking the package absent-package")
        assert "good on here" in captured.out


def test_what_the_benchmarks_import_has_an_extra(folder, monkeypatch):
    monkeypatch.undo()
    assert bench.find_benchmarks(bench.FOLDER)["quantizer"].needs == ("vector_quantize_pytorch",)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["goood"], "unknown benchmark 'goood'; did you mean 'good'? (benchmarks: bad, good, all)"),
        (["good", "qqqq"], "unknown benchmark 'qqqq'; (benchmarks:"),
        (["good", "--output", "results.txt"], "must end in .json"),
        (["good", "--output", "/proc/results.json"], "cannot be made"),
        (["good", "--output", "benchmarks/mine.json"], "was not made by dualtoken"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, mistake, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "mine.json").write_text('{"mine": 1}')
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert mistake in captured.err
