"""Commands of this package as subprocesses, for commands that consist of others."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..common.errors import UserError


def run_process(module: str, words: Sequence[str], log: Path | None = None) -> None:
    """Run a module of `dualtoken.scripts` to its end, its output appended to `log`, if given.

    On Ctrl-C the process is asked to stop (a training saves first) and waited for. UserError, with the last
    line of the log, if it fails.
    """
    command = [sys.executable, "-m", f"dualtoken.scripts.{module}", *words]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext() if log is None else log.open("ab") as out:
        status = _wait(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))
    if status:
        reason = "see its message above"
        if log is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = f"{lines[-1] if lines else 'no output'} (log: {log})"
        raise UserError(f"dualtoken.scripts.{module} ended with status {status}: {reason}")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit status. The process is in its own session, so that Ctrl-C reaches it only through here: a
    training that gets two stop requests does not save."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM (preemption) does what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
