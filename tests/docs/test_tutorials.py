"""The tutorials do what they say; their commands are run as printed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs/tutorials"


def run_printed(block: str, folder: Path) -> dict[str, str]:
    """Run every line of a block; returns what the lines with a comment "prints: …" promise and print."""
    promises = {}
    for line in block.splitlines():
        arguments = shlex.split(line.removeprefix("dualtoken "), comments=True)
        # Processes of their own: training makes the one it runs in a member of a process group.
        done = subprocess.run(
            [sys.executable, "-m", "dualtoken.scripts.cli", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if promise := re.search(r"# prints: (.+)$", line):
            promises[promise[1]] = done.stdout.strip()
    return promises


def clone(folder: Path) -> None:
    """What the commands of a tutorial find in the root of a clone."""
    for name in ("docs", "examples", "pretrained", "train"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_your_own_data_teaches_nano_what_its_records_say(tmp_path):
    for package in ("deepspeed", "peft", "tensorboard", "matplotlib"):
        pytest.importorskip(package)
    clone(tmp_path)
    section = (TUTORIALS / "own_data.md").read_text(encoding="utf-8").split("\n## The commands\n")[1]
    (block,) = re.findall(r"^```\n(.*?)^```", section.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    assert run_printed(block, tmp_path) == {"a wug": "a wug"}
    assert (tmp_path / "runs/own/curves.png").is_file()

    from dualtoken.data_pipelines.scenes.checker import find_objects

    images = [Image.open(path) for path in sorted(tmp_path.glob("samples/own/0000_*.png"))]
    found = [find_objects(image) for image in images]
    assert sum(any(item.colour == "purple" for item in objects) for objects in found) >= 3, found


def test_the_example_has_what_the_tutorial_says():
    records = json.loads((ROOT / "examples/llava/llava.json").read_text())
    images = [[entry] if isinstance(entry := r.get("image", []), str) else entry for r in records]
    turns = [[turn["value"] for turn in r["conversations"]] for r in records]
    generated = [any("<image>" in value for value in values[1::2]) for values in turns]
    assert len({r["id"] for r in records}) == len(records) == 20
    assert sum(generated) >= 2
    assert [] in images
    assert any(
        len(names) > 1 and values[0].count("<image>") > 1 for names, values in zip(images, turns, strict=True)
    )
    assert any(len(values) > 2 for values in turns)
    files = {path.name for path in (ROOT / "examples/llava/images").iterdir()}
    assert {name for names in images for name in names} == files
    assert "new.png" not in files


def test_the_notebook_has_outputs_and_no_errors():
    cells = json.loads((TUTORIALS / "first_hour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
