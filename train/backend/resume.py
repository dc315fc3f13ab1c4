"""What a resumed run may change of its recipe: that is reported and used, anything else is refused.

Every checkpoint holds the recipe that it was written by. Weights, moments and the position in the data belong
to its model, its data and its seed, so these stay; how fast it learns, how long, and what it logs may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from ...common.errors import UserError, shown
from ...common.yaml_files import read_yaml
from ..config.keys import defaults
from ..config.optimizer import OptimizerConfig
from ..config.recipe import Recipe, plain_recipe
from ..optimizers import divides_alike
from .checkpoint_files import RECIPE, SavedState

#: Keys that a resumed run takes from its present recipe.
APPLIED = (
    "run.*",
    "optimizer.*",
    "schedule.*",
    "validation",
    "validation.*",
    "data.num_workers",
    "data.micro_batch_size",  # together with the accumulation: records per step are compared
)
#: Among them, keys that it keeps.
KEPT = ("run.precision",)
#: Keys that name a folder or a file: it may have moved.
PATHS = (
    "data.sources.*.path",
    "init_from",
    "mllm.llm",
    "mllm.visual_tokenizer",
    "mllm.text_tokenizer",
    "tokenizer.teacher",
    "tokenizer.perceptual_weights",
    "contrastive.text_tokenizer",
)
_ABSENT = "not set"


@dataclass(frozen=True)
class Change:
    """One key of a recipe whose value is not what it was."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} {_worded(self.now)} (was {_worded(self.before)})"


def agreed_changes(checkpoint: Path, recipe: Recipe, data: Mapping[str, str]) -> list[Change]:
    """What `recipe` changes for the run that wrote `checkpoint`, all of which can be used.

    data: a digest of the records of every source, as `Checkpoints` keeps it.

    Errors:
        UserError for a change that would make another run of it.
    """
    written = written_recipe(checkpoint)
    saved = SavedState.read(checkpoint).data
    changed = [] if written is None else changes(written, plain_recipe(recipe))
    refused = [str(change) for change in changed if not _is_allowed(change, data, saved)]
    if refused:
        raise UserError(
            f"{checkpoint} cannot be resumed with {'; '.join(refused)}: set that back, or begin another "
            "run (another output, and init_from for the weights)"
        )
    other = [name for name in saved if name in data and saved[name] != data[name]]
    if other:
        raise UserError(
            f"{checkpoint} cannot be resumed: the records of data.sources.{other[0]} are not those that it "
            "was trained on (another manifest.json); put them back, or begin another run (another output)"
        )
    return [change for change in changed if change.key != "output"]


def resuming_with(changed: Sequence[Change], step: int) -> list[str]:
    """A line for every key that a run resumed from ``step`` changes."""
    return [f"resuming from step {step} with {change}" for change in changed]


def require_same_groups(checkpoint: Path, model: nn.Module, config: OptimizerConfig) -> None:
    """UserError where `config` divides the model's parameters into other groups than the run that wrote
    `checkpoint` did: each group's state is stored as one."""
    section = (written_recipe(checkpoint) or {}).get("optimizer")
    try:
        before = OptimizerConfig(**section) if isinstance(section, dict) else None
        alike = before is None or divides_alike(model, before, config)
    except (TypeError, AttributeError, UserError):  # of another version, or damaged
        return
    if not alike:
        raise UserError(
            f"{checkpoint} cannot be resumed with other groups of parameters: rates by optimizer.group_lr, "
            "lr_scale and muon_lr that were equal must stay equal, and different ones different"
        )


def written_recipe(checkpoint: Path) -> dict[str, Any] | None:
    """The recipe that a checkpoint was written by, unchecked; None for an old one without."""
    path = recipe_file(checkpoint)
    return None if path is None else read_yaml(path)


def recipe_file(checkpoint: Path) -> Path | None:
    """Where the recipe is that a checkpoint was written by: kept in it, or in its run's folder."""
    folders = (checkpoint, checkpoint.parent.parent)
    return next((folder / RECIPE for folder in folders if (folder / RECIPE).is_file()), None)


def named_paths(recipe: Recipe) -> dict[str, str]:
    """Every folder, file, hub id or URL that a recipe reads from, by the key that names it."""
    keys = (*PATHS, "validation.sources.*.path")
    leaves = _leaves(plain_recipe(recipe))
    return {key: value for key, value in leaves if value and isinstance(value, str) and _fits(key, keys)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The keys that differ, by their dotted names. A key that only one of them has counts unless it has its
    default there: another version of the package may not know it."""
    one, other, default = dict(_leaves(before)), dict(_leaves(now)), dict(defaults(Recipe))
    found = []
    for key in sorted(one.keys() | other.keys()):
        a, b = (side.get(key, default.get(key, _ABSENT)) for side in (one, other))
        nothing = a in (None, _ABSENT) and b in (None, _ABSENT)
        if a != b and not nothing and not (_is_path(key) and _is_same_path(a, b)):
            found.append(Change(key, a, b))
    return found


def _is_allowed(change: Change, data: Mapping[str, str], saved: Mapping[str, str]) -> bool:
    if change.key == "output":
        return True
    if _is_path(change.key):
        source = change.key.split(".")[2] if change.key.startswith("data.sources.") else ""
        if source in saved:
            return saved[source] == data.get(source)  # the same records elsewhere
        return _has_moved(change)
    return _fits(change.key, APPLIED) and not _fits(change.key, KEPT)


def _has_moved(change: Change) -> bool:
    """Whether nothing is at the old path any more, and something at the new one."""
    both = isinstance(change.before, str) and isinstance(change.now, str)
    return both and not Path(change.before).exists() and Path(change.now).exists()


def _is_path(key: str) -> bool:
    return _fits(key, PATHS)


def _is_same_path(one: Any, other: Any) -> bool:
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    try:
        return Path(one).resolve() == Path(other).resolve()
    except (OSError, RuntimeError, ValueError):
        return False


def _fits(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is not itself a mapping."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, value


def _worded(value: Any) -> str:
    return str(value) if isinstance(value, str) and len(value) < 60 else shown(value, 60)
