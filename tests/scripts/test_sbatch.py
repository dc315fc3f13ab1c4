"""The batch script for Slurm gives the processes of a run the time that it states to save after a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm" / "train.sbatch"


def test_one_time_is_stated_everywhere_and_the_launcher_does_not_end_it() -> None:
    text = SCRIPT.read_text()
    (seconds,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", text, re.MULTILINE)  # no B:, to the processes
    assert int(seconds) >= 300
    assert f"--wait={seconds} " in text
    assert f"- {seconds}))" in text
    launcher = text[text.index("srun ") :]
    assert launcher.index('trap "" TERM') < launcher.index("exec torchrun")
    assert "--signals-to-handle SIGINT " in launcher
    assert "--kill-on-bad-exit=0" in launcher
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.slow
def test_processes_that_save_slowly_are_not_killed(tmp_path: Path) -> None:
    """The chain of the script, with a time-out of torchrun's that would be too short."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        "folder, rank = pathlib.Path(sys.argv[1]), os.environ['RANK']\n"
        "def save(*given):\n"
        "    time.sleep(40)\n"
        "    (folder / f'saved-{rank}').touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(folder / f'ready-{rank}').touch()\n"
        "time.sleep(300)\n"
    )
    chain = SCRIPT.read_text().split("bash -c '")[1].split("' train")[0]
    chain = re.sub(r"-m dualtoken\.scripts\.train", str(program), chain)
    chain = chain.replace("exec torchrun", f"exec {sys.executable} -m torch.distributed.run")
    environment = {
        **os.environ,
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_GPUS_ON_NODE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29771",
    }
    running = subprocess.Popen(["bash", "-c", chain, "train", str(tmp_path)], env=environment)
    try:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("ready-*"))) < 2:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        launcher = psutil.Process(running.pid)
        for process in [launcher, *launcher.children(recursive=True)]:  # as Slurm signals all of a step
            process.send_signal(signal.SIGTERM)
        assert running.wait(timeout=200) != 0  # so that the job is known not to be complete
    finally:
        for process in psutil.Process().children(recursive=True):
            if process.pid == running.pid:
                process.kill()
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
