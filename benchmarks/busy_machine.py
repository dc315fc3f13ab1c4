"""Small models next to processes that keep every core busy, and alone: image generation and the quickstart.

The package chooses threads by the size of the work, and its commands have them sleep while they wait. The
reference of each case is the same call with torch's own choice: a thread for every core, spinning. With a
core for every thread it may be faster; next to busy processes each operation waits for a time slice.

Examples:
  python benchmarks/busy_machine.py
  python benchmarks/busy_machine.py --reference      # torch's choice too: minutes, where it stalls
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from measure import argument_parser, report

IMAGES = {"small": 4, "full": 16}
GENERATE = """
import sys, time
import torch
from dualtoken.common import machine
from dualtoken.mllm import DualTokenPipeline
if sys.argv[1] == "torch":
    machine.LARGE_MODEL = 0  # all threads for any work
pipeline = DualTokenPipeline.from_pretrained("nano")
pipeline.generate_images("a red circle", 1, seed=0)
start = time.perf_counter()
pipeline.generate_images("a red circle", int(sys.argv[2]), seed=0)
print(time.perf_counter() - start)
"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run this many processes that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    """This process's environment without its thread settings, whose choice is measured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "GOMP_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def image_generation(whose: str, images: int, limit: float) -> float | None:
    """Seconds for nano to generate `images` images in a Python session; None if that exceeds `limit`."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", GENERATE, whose, str(images)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=limit,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout.split()[-1])


def quickstart(whose: str, images: int, limit: float) -> float | None:
    """Seconds of the command `dualtoken quickstart`; None if they exceed `limit`."""
    command = [sys.executable, "-m", "dualtoken.scripts.cli", "quickstart", "--num-images", str(images)]
    waiting = {"OMP_WAIT_POLICY": "active"} if whose == "torch" else {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            subprocess.run(
                [*command, "--output", f"{folder}/quickstart"],
                env={**environment(), **waiting},
                capture_output=True,
                timeout=limit,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return None
    return time.perf_counter() - start


def main() -> None:
    parser = argument_parser(__doc__, IMAGES, "runs", repeats=3)
    parser.add_argument("--reference", action="store_true", help="measure torch's own choice too")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a run is stopped")
    args = parser.parse_args()
    cores, images = os.cpu_count() or 1, IMAGES[args.size]
    cases: list[dict[str, Any]] = []
    for name, run in (("image generation", image_generation), ("quickstart", quickstart)):
        for whose in ("package", "torch") if args.reference else ("package",):
            alone: list[float] = []
            busy_seconds: list[float] = []
            for _ in range(args.repeats):  # in turns, so that other load hits both
                alone.append(run(whose, images, args.limit) or args.limit)
                with busy(cores):
                    busy_seconds.append(run(whose, images, args.limit) or args.limit)
            cases.append(
                {
                    "name": f"{name}, {images} images, threads chosen by {whose}",
                    "against": f"next to {cores} busy processes",
                    "speed": round(min(busy_seconds) / min(alone), 3),
                    "seconds": round(min(alone), 3),
                    "seconds_busy": round(min(busy_seconds), 3),
                }
            )
    report("busy_machine", cases)


if __name__ == "__main__":
    main()
