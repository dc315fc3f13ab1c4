"""Loss curves: what a log holds after kills and resumes, what a CSV keeps, and the comparison with one."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.common.errors import UserError
from dualtoken.scripts import cli
from dualtoken.train.loss_curves import MAX_ROWS, LossCurves

CURVES = Path(__file__).resolve().parents[2] / "docs" / "curves"


def line(step: int, **losses: float) -> str:
    values = {f"loss/{name}": value for name, value in losses.items()}
    return json.dumps({"step": step, **values, "loss/text/source": 9.0, "learning_rate": 1.0}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed after step 30, resumed at 10, and killed again in mid-line."""
    folder = tmp_path / "run"
    folder.mkdir()
    text = line(10, text=4) + line(20, text=9) + line(30, text=9) + line(20, text=2, pixel=8)
    (folder / "log.jsonl").write_text(text + line(30, text=1, pixel=4) + line(40, text=1)[:-9])
    return folder


def test_repeated_steps_count_once_and_a_torn_line_does_not(run: Path):
    curves = LossCurves.read(run)
    assert curves.steps == [10, 20, 30]
    assert curves.losses["text"] == [4, 2, 1]
    assert math.isnan(curves.losses["pixel"][0])
    assert curves.losses["pixel"][1:] == [8, 4]
    assert set(curves.losses) == {"text", "pixel"}, "losses by source and other values are not curves"
    assert LossCurves.read(run / "log.jsonl").steps == curves.steps


def test_steps_after_a_resumed_one_are_forgotten(run: Path):
    (run / "log.jsonl").write_text(line(10, text=4) + line(20, text=9) + line(15, text=3))
    assert LossCurves.read(run).steps == [10, 15]


def test_a_csv_is_thinned_to_means_and_read_back(run: Path, tmp_path: Path):
    count = 3 * MAX_ROWS + 1
    (run / "log.jsonl").write_text("".join(line(10 * n, text=n / 7, l1=1e-4 * n) for n in range(1, count)))
    thin = LossCurves.read(run).thinned()
    assert len(thin.steps) == MAX_ROWS
    assert thin.steps[:2] == [30, 60]
    assert thin.losses["text"][0] == pytest.approx(2 / 7)
    thin.write_csv(tmp_path / "curves.csv")
    again = LossCurves.read(tmp_path / "curves.csv")
    assert again.steps == thin.steps
    assert again.losses["l1"] == pytest.approx(thin.losses["l1"], rel=1e-3)


def test_a_loss_that_starts_late_leaves_empty_cells(run: Path, tmp_path: Path):
    LossCurves.read(run).write_csv(tmp_path / "late.csv")
    assert (tmp_path / "late.csv").read_text() == "step,text,pixel\n10,4,\n20,2,8\n30,1,4\n"
    again = LossCurves.read(tmp_path / "late.csv")
    assert math.isnan(again.losses["pixel"][0])
    assert again.smoothed(2).losses["pixel"][1:] == [8, 6]


def test_the_command_plots_and_compares(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "healthy.csv").write_text("step,text,pixel\n10,4,6\n22,3.5,5\n")
    options = ["--reference", "healthy.csv", "--csv", "mine.csv"]
    assert cli.main(["curves", "run", *options]) == 0
    out = capsys.readouterr().out.split("\n")
    assert out[0] == "run, step 30:"
    assert out[1].split() == ["text", "1", "reference", "3.5"]
    assert "the reference ends at step 22" in out[3]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert LossCurves.read(tmp_path / "mine.csv").steps == [10, 20, 30]
    assert cli.main(["curves", "run", "mine.csv", "--output", "two.png"]) == 0
    assert (tmp_path / "two.png").is_file()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "give a run's folder"),
        ("", "has no losses yet"),
        ('{"step": 1}\nnonsense\n{"step": 2}\n', "line 2 is not a line of a run's log"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None, named: str):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(UserError, match=named):
        LossCurves.read(tmp_path)


def test_a_csv_of_another_kind_is_named(tmp_path: Path):
    (tmp_path / "other.csv").write_text("name,text\na,1\n")
    with pytest.raises(UserError, match="no column step"):
        LossCurves.read(tmp_path / "other.csv")


HOSTILE = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        [
            "step,text\nnan,1\n",
            "step,text\n1,inf\n2,1e400\n",
            "step,text\n1,2,3,4\n",
            "step,text\n,2\n",
            'step,text\n1,"' + "x" * 200_000,
            "step,a\0b\n1,2\n",
            "step," + ",".join(f"loss{n}" for n in range(500)) + "\n1" + ",1" * 500,
            '{"step": 1e999, "loss/text": 1}\n',
            '{"step": 1, "loss/text": ' + "9" * 400 + "}\n",
            '{"step": 1, "loss/$x_{": 1e300}\n',
            '{"step": null, "loss/text": 1}\n\n',
            '{"step": 1, "loss/text": NaN}\n',
            '{"step": 1, "loss/text": [[1]]}\n\n',
            "[" * 100_000 + "\n\n",
            "[]\n1\n",
        ]
    ),
    st.dictionaries(st.text(max_size=9).map(lambda name: f"loss/{name}"), st.floats() | st.integers()).map(
        lambda losses: json.dumps({"step": 3, **losses}) + "\n"
    ),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=HOSTILE, suffix=st.sampled_from([".csv", ".jsonl"]))
def test_a_file_of_anything_gives_curves_or_one_line(text: str, suffix: str, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"curves{suffix}"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        curves = LossCurves.read(path)
    except UserError:
        return
    assert len(curves.losses) <= 64
    assert all(abs(value) <= 1e30 or math.isnan(value) for row in curves.losses.values() for value in row)


def test_names_that_look_like_formulas_are_plotted_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name in ("$x_{", "b"):
        Path(name).mkdir()
        Path(name, "log.jsonl").write_text(
            '{"step": 1, "loss/$\\frac{": 2}\n{"step": 2, "loss/$\\frac{": NaN}\n'
        )
    assert cli.main(["curves", "$x_{", "b"]) == 0


def test_a_run_and_a_picture_of_the_users_are_never_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("step,text\n1,2\n")
    (tmp_path / "mine.png").write_bytes(b"mine")
    (tmp_path / "mine.csv").write_text("name,age\n")
    for arguments, message in (
        (["run", "--csv", "run/log.jsonl"], "is also a run to read"),
        (["run", "--reference", "old.csv", "--csv", "old.csv"], "is also a run to read"),
        (["run", "--output", "mine.png"], "not made by dualtoken"),
        (["run", "--csv", "mine.csv"], "not made by dualtoken"),
        (["run", "--output", "/proc/x.png"], "cannot be made"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
        assert cli.main(["curves", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    if importlib.util.find_spec("matplotlib"):
        assert cli.main(["curves", "run"]) == cli.main(["curves", "run"]) == 0


def test_mistakes_are_one_line(run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert cli.main(["curves", str(run), str(run), "--csv", str(run / "a.csv")]) == 2
    assert "--csv writes the losses of one run" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["curves", str(run), "--output", str(run / "a.png")]) == 2
    assert "pip install '.[eval]' in" in capsys.readouterr().err
    assert not (run / "a.png").exists()


@pytest.mark.parametrize("path", sorted(CURVES.glob("*.csv")), ids=lambda path: path.stem)
def test_a_reference_curve_belongs_to_a_recipe_and_falls(path: Path):
    recipe = CURVES.parents[1] / "train" / "recipes" / f"{path.stem}.yaml"
    assert recipe.is_file()
    assert path.with_suffix(".png").is_file()
    curves = LossCurves.read(path)
    assert len(curves.steps) <= MAX_ROWS
    assert curves.steps == sorted(curves.steps)
    falling = [name for name in ("text", "pixel", "semantic", "mse", "contrastive") if name in curves.losses]
    assert falling
    assert all(curves.losses[name][-1] < curves.losses[name][0] for name in falling)
