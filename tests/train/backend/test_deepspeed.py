"""Two files know DeepSpeed: nothing else imports it or names its internals, and its version is bounded."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KNOWS = {"train/backend/deepspeed.py", "train/backend/deepspeed_config.py"}
#: Private names of DeepSpeed's optimizers and engine, and keys of its files.
PRIVATE = (
    "bit16_groups",
    "fp16_groups",
    "fp32_partitioned",
    "single_partition_of_fp32",
    "fp32_flat_groups",
    "_hp_mapping",
    "ds_numel",
    "_global_grad_norm",
    "basic_optimizer",
    "clip_grad =",
    "param_slice_mappings",
    "base_optimizer_state",
    "dp_process_group",
    "__compatible_ops__",
    "MuonWithAuxAdam",
    "checkpoint_engine",
    "_do_optimizer_sanity_check",
    "TORCH_AUTOCAST_INITIALIZED",
)


def sources() -> dict[str, str]:
    """The text of every module of the package outside the tests."""
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and (folder / "__init__.py").is_file()]
    files = [file for folder in (*folders, ROOT / "benchmarks") for file in folder.rglob("*.py")]
    relative = {
        file.relative_to(ROOT).as_posix(): file for file in files if ROOT / "tests" not in file.parents
    }
    return {name: file.read_text(encoding="utf-8") for name, file in relative.items()}


def test_only_two_files_import_deepspeed_or_name_its_private_parts() -> None:
    imports = re.compile(r"^\s*(import deepspeed\b|from deepspeed\b)", re.MULTILINE)
    texts = sources()
    assert {name for name, text in texts.items() if imports.search(text)} == KNOWS
    named = {name: [word for word in PRIVATE if word in text] for name, text in texts.items()}
    assert {name: words for name, words in named.items() if words and name not in KNOWS} == {}
    assert {word for name in KNOWS for word in named[name]} == set(PRIVATE)


def test_its_version_is_bounded_and_the_tested_one_is_pinned() -> None:
    bounds = re.search(r'"deepspeed>=([\d.]+),<([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    pinned = re.search(r"^deepspeed==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert bounds is not None
    assert pinned is not None

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:3]]

    assert numbers(bounds[1]) <= numbers(pinned[1]) < numbers(bounds[2])
    assert numbers(bounds[1]) <= numbers(version("deepspeed")) < numbers(bounds[2])
