"""Commands as subprocesses: stopped together with this process, and their failures reported in one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.scripts.processes import run_process, sigterm_interrupts

# Saves when it is asked to stop and then ends well, as a run at its last step does.
SAVING = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({folder!r}, "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path({folder!r}, "ready").touch()
time.sleep(60)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes every process that is started run this code of Python."""

    def use(code: str) -> None:
        script = tmp_path / "child"
        script.write_text(f"#!{sys.executable}\n{code.format(folder=str(tmp_path))}")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return use


def test_the_process_is_told_to_stop_and_waited_for(child, tmp_path: Path) -> None:
    child(SAVING)
    before = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        run_process("train", ["recipe.yaml"], tmp_path / "log")
    stopper.join()
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_failures_are_named_with_the_last_line(
    child, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    child("import sys\nprint(sys.argv[2], 'starts')\nsys.exit('no such recipe')")
    with pytest.raises(UserError, match=r"scripts\.train ended with status 1: no such recipe \(log: "):
        run_process("train", ["recipe.yaml"], tmp_path / "logs" / "log")
    assert "dualtoken.scripts.train starts" in (tmp_path / "logs" / "log").read_text()
    with pytest.raises(UserError, match="ended with status 1: see its message above"):
        run_process("train", ["recipe.yaml"])
    assert "no such recipe" in capfd.readouterr().err


def test_what_a_process_prints_goes_through(capfd: pytest.CaptureFixture[str]) -> None:
    run_process("cli", ["--version"])
    assert capfd.readouterr().out.startswith("dualtoken ")
