"""The recipe of each run of a plan, and the folders of its files."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...train.config.compose import composed
from .plan import PLACEHOLDER, Plan, map_texts

# Settings that scale with the number of steps.
SCALED = ("run.steps", "schedule.warmup_steps", "tokenizer.unquantized_steps")


@dataclass(frozen=True)
class Folders:
    """The folders of a plan's runs and data, and of the inputs of its recipes."""

    runs: Path
    inputs: Path

    def run(self, variant: str, seed: int) -> Path:
        return self.runs / variant / f"seed-{seed}"

    def data(self, plan: Plan, name: str) -> Path:
        """The folder of a set, with a hash of how it is made: a changed plan never reads old data."""
        digest = hashlib.sha256(json.dumps(plan.data[name]).encode()).hexdigest()
        return self.runs / "data" / f"{name}-{digest[:8]}"

    def moved(self, plan: Plan, text: str) -> str:
        """A string of a recipe; a path in the plan's inputs is moved to `inputs`."""
        if text == plan.inputs or text.startswith(plan.inputs + "/"):
            return str(self.inputs) + text.removeprefix(plan.inputs)
        return text

    def tokenizer(self, plan: Plan, variant: str, seed: int) -> Path:
        """The folder of the tokenizer whose codes a variant reads."""
        other, given = plan.variants[variant].tokenizer, plan.base(variant).tokenizer
        if other is not None:
            return self.run(other, seed) / "model"
        assert given is not None  # load_plan checks it
        return Path(self.moved(plan, given))

    def codes(self, plan: Plan, variant: str, seed: int, name: str) -> Path:
        """A set as codes of that tokenizer; variants that read the same codes share the folder."""
        chosen = plan.variants[variant]
        if chosen.tokenizer is not None:
            return self.run(chosen.tokenizer, seed) / "codes" / name
        return self.runs / "codes" / chosen.base / self.data(plan, name).name


def resolve(plan: Plan, folders: Folders, variant: str, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """The complete recipe of one run, as a mapping for YAML."""
    chosen = plan.variants[variant]
    base = plan.base(variant)
    recipe = composed([base.recipe])
    for key, value in {**base.overrides, **chosen.overrides}.items():
        set_key(recipe, key, copy.deepcopy(value))
    for key in SCALED:
        value = get_key(recipe, key)
        if value:
            set_key(recipe, key, max(1, round(value * scale)))

    def folder(found: re.Match[str]) -> str:
        what, name = found.groups()
        if what == "tokenizer":
            return str(folders.tokenizer(plan, variant, seed))
        return str(folders.data(plan, name) if what == "data" else folders.codes(plan, variant, seed, name))

    def fill(text: str) -> str:
        return PLACEHOLDER.sub(folder, folders.moved(plan, text))

    recipe = map_texts(recipe, fill)
    return {**recipe, "output": str(folders.run(variant, seed)), "seed": seed}


def get_key(recipe: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def set_key(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, creating its sections."""
    *path, last = key.split(".")
    for part in path:
        if not isinstance(recipe.get(part), dict):
            recipe[part] = {}
        recipe = recipe[part]
    recipe[last] = value
