"""The folder of a run: nothing that others made is overwritten, and one run at a time works in it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from dualtoken.common.locks import only_process
from dualtoken.common.outputs import MARK
from dualtoken.scripts.cli import run_command
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives.contrastive import ContrastiveObjective
from dualtoken.train.run_folder import inputs_of

from .conftest import Chain, _command, _environment, train_here


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that must not begin."""
    capsys.readouterr()
    assert train_here(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.fixture
def own_chain(chain: Chain, tmp_path: Path) -> Chain:
    return Chain(Path(shutil.copytree(chain.folder, tmp_path / "chain")))


@pytest.mark.parametrize(
    ("name", "output", "key"),
    [
        ("contrastive", "t2i", "data.sources.scenes.path"),
        ("contrastive", "text", "contrastive.text_tokenizer"),
        ("contrastive", ".", "data.sources.scenes.path"),
        ("tokenizer", "siglip", "tokenizer.teacher"),
        ("mllm", "tokenizer", "mllm.visual_tokenizer"),
        ("mllm", "codes_t2i", "data.sources.t2i.path"),
    ],
)
def test_a_run_does_not_write_over_what_it_reads(
    name: str, output: str, key: str, own_chain: Chain, tmp_path: Path, capsys: Any
) -> None:
    before = content(own_chain.folder)
    recipe = own_chain.recipe(name, tmp_path / "run")
    line = refused([*recipe, "--output", str(own_chain.folder / output)], capsys)
    assert f"{key}" in line
    assert "give another folder" in line
    assert content(own_chain.folder) == before


def test_every_folder_that_a_recipe_names_is_among_its_inputs(chain: Chain, tmp_path: Path) -> None:
    model = str(chain.folder / "tokenizer")
    for name in ("contrastive", "tokenizer", "mllm"):
        recipe = chain.recipe(name, tmp_path / name, init_from=model)
        paths = {str(path) for path in inputs_of(parse_recipe(recipe)).values()}
        written = Path(recipe[0]).read_text()
        named = {word.strip() for word in written.split() if word.startswith(str(chain.folder))}
        assert named == paths


@pytest.mark.parametrize("taken", ["model", "recipe.yaml", "log.jsonl", "tensorboard"])
def test_a_folder_that_no_run_made_stays_as_it_is(
    taken: str, chain: Chain, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "mine"
    (output / "model").mkdir(parents=True) if taken == "model" else output.mkdir()
    (output / taken / "weights" if taken == "model" else output / taken).write_text("mine")
    before = content(output)
    line = refused([*chain.recipe("contrastive", tmp_path / "run"), "--output", str(output)], capsys)
    assert taken in line
    assert content(output) == before


@pytest.mark.parametrize("kind", ["a file", "below a file", "a loop", "too long", "unwritable"])
def test_an_output_that_cannot_be_is_refused_at_the_start(
    kind: str, chain: Chain, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    output = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "run",
        "a loop": tmp_path / "loop" / "run",
        "too long": tmp_path / ("x" * 300),
        "unwritable": Path("/proc/run"),
    }[kind]
    assert "output" in refused(
        [*chain.recipe("contrastive", tmp_path / "r"), "--output", str(output)], capsys
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_mount_point_in_place_of_the_model_is_refused_at_the_start(
    chain: Chain, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualtoken.train import run_folder

    monkeypatch.setattr(run_folder, "is_mount_point", lambda path: path.name == "model")
    assert "mount point" in refused(chain.recipe("contrastive", tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder_gets_one_line(chain: Chain, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    with only_process(output, "output"):
        before = content(output)
        line = refused(chain.recipe("contrastive", output), capsys)
        assert "is in use by process" in line
        assert content(output) == before
    assert train_here([*chain.recipe("contrastive", output), "--run.steps", "1"]) == 0


@pytest.mark.slow
def test_a_second_run_of_two_processes_ends_at_once_and_a_killed_one_does_not_block(
    chain: Chain, tmp_path: Path
) -> None:
    """Both of its ranks get the error; neither waits for the other."""
    output = tmp_path / "run"
    code = "import sys, time; from pathlib import Path; from dualtoken.common.locks import only_process\n"
    code += "with only_process(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True, env=_environment()
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        command = _command([*chain.recipe("contrastive", output), "--run.steps", "1"], processes=2)
        second = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=120)
        assert second.returncode != 0
        assert 1 <= second.stderr.count(f"is in use by process {holder.pid}") <= 2
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        third = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=200)
        assert third.returncode == 0, third.stderr[-2000:]
    finally:
        holder.kill()
        holder.wait()


# ---- the end of a run


@pytest.fixture(scope="module")
def finished(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train_here([*chain.recipe("contrastive", run), "--run.steps", "2"]) == 0
    return run


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("StorageFull"), OSError(16, "busy")]
)
def test_a_disk_full_at_the_export_costs_no_training(
    error: Exception, finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model").rename(tmp_path / "expected")

    def fail(*arguments: Any) -> None:
        raise error

    again = [str(run / "recipe.yaml"), "--output", str(run)]
    with monkeypatch.context() as patched:
        patched.setattr(ContrastiveObjective, "export", fail)
        line = refused(again, capsys)
    assert "Training is complete and saved in step-" in line
    assert "the model could not be written" in line
    assert not (run / "model").exists()
    assert not list(run.glob(".model*"))
    assert train_here(again) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "expected" / "model.safetensors"
    ).read_bytes()


def test_convert_replaces_only_its_own_output(finished: Path, tmp_path: Path, capsys: Any) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "runs" / "run"))
    before = content(run)

    def convert(output: Path, *more: str) -> tuple[int, str]:
        status = run_command("convert", ["checkpoint", str(run), "--output", str(output), *more])
        return status, capsys.readouterr().err

    inside = [run, run / "model", run / "checkpoints", run / "new", run / "checkpoints" / "new"]
    for output in (*inside, tmp_path / "runs"):
        status, error = convert(output, "--overwrite")
        assert status == 2, output
        assert "--output" in error
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    assert convert(mine)[0] == convert(mine, "--overwrite")[0] == 2
    assert (mine / "notes.txt").read_text() == "mine"
    assert convert(tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / MARK).is_file()
    assert convert(tmp_path / "out")[0] == 2
    assert convert(tmp_path / "out", "--overwrite")[0] == 0
    assert content(run) == before
