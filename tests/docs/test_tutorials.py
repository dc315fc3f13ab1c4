"""The README and the tutorials do what they say; their commands and examples are run as printed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs/tutorials"


def run_printed(block: str, folder: Path) -> dict[str, str]:
    """Run every line of a block; returns what the lines with a comment "prints: …" promise and print."""
    promises = {}
    for line in block.splitlines():
        printed = run_line(line, folder)
        if promise := re.search(r"# prints: (.+)$", line):
            promises[promise[1]] = printed
    return promises


def run_line(line: str, folder: Path) -> str:
    """Run one command line in a process of its own, as training needs it; returns what it prints."""
    arguments = shlex.split(line.removeprefix("dualtoken "), comments=True)
    done = subprocess.run(
        [sys.executable, "-m", "dualtoken.scripts.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout.strip()


def clone(folder: Path) -> None:
    """What the commands of a tutorial find in the root of a clone."""
    for name in ("docs", "examples", "pretrained", "train"):
        (folder / name).symlink_to(ROOT / name)


def commands(page: str, heading: str) -> str:
    """The block of commands in a section of a tutorial."""
    section = (TUTORIALS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_runs_after_quickstart(tmp_path, monkeypatch):
    """Its Python example, and every command but the fine-tuning, which is that of "Your own data"."""
    clone(tmp_path)
    run_line("dualtoken quickstart", tmp_path)
    (tmp_path / "scene.png").symlink_to("quickstart/scene.png")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(example, names)
    assert names["codes"].pixel.shape == (1, 8, 8, 4)
    assert names["images"].shape == (1, 3, 64, 64)
    printed = {}
    for line in re.findall(r"^dualtoken .*$", text, re.MULTILINE):
        if "nano_sft" not in line:
            printed[line.split()[1]] = run_line(line, tmp_path)
    assert set(printed) == {"train", "chat", "sample", "eval"}
    assert "GiB on each GPU" in printed["train"]
    assert printed["chat"] == "square"
    assert len(list((tmp_path / "samples").glob("0000_*.png"))) == 4
    assert "easyvqa (heldout): accuracy 99.50" in printed["eval"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_your_own_data_teaches_nano_what_its_records_say(tmp_path):
    for package in ("deepspeed", "peft", "tensorboard", "matplotlib"):
        pytest.importorskip(package)
    clone(tmp_path)
    assert run_printed(commands("own_data.md", "The commands"), tmp_path) == {"a wug": "a wug"}
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


@pytest.mark.slow
def test_your_own_benchmark_is_its_example_and_its_command_prints_what_it_says(tmp_path):
    page = (TUTORIALS / "own_benchmark.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert task in (ROOT / "examples/colours/colours.py").read_text(encoding="utf-8")
    clone(tmp_path)
    (line,) = commands("own_benchmark.md", "3. Run it").splitlines()
    (printed,) = re.findall(r"is `(colours .*?)`", page)
    assert run_line(line, tmp_path).splitlines()[-1] == printed
    samples = (tmp_path / "results/colours/colours/test/samples.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["score"] for line in samples.splitlines()] == [1.0] * 6


def test_the_notebook_has_outputs_and_no_errors():
    cells = json.loads((TUTORIALS / "first_hour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
