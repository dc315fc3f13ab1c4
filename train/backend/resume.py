"""Changes to the recipe of a resumed run: allowed ones are reported and applied, others are refused.

Every checkpoint holds its recipe. Model, data and seed must stay, because weights, moments and the position
in the data belong to them; learning rates, length and logging may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from ...common.errors import UserError, shown
from ...common.yaml_files import read_yaml
from ..config.deepspeed_keys import LAYOUT
from ..config.keys import default_of, defaults
from ..config.optimizer import OptimizerConfig
from ..config.recipe import Recipe, plain_recipe
from ..optimizers import has_same_groups
from .checkpoint_files import RECIPE, SavedState

#: Keys that may change when a run is resumed.
APPLIED = (
    "run.*",
    "optimizer.*",
    "schedule.*",
    "validation",
    "validation.*",
    "data.num_workers",
    "data.cache",
    "data.cache_gb",
    "data.micro_batch_size",  # together with the accumulation: records per step are compared
)
#: Exceptions, which may not change.
KEPT = ("run.precision", *(f"run.deepspeed.{key}" for key in LAYOUT))
#: Keys of folders and files, which may have been moved.
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
    """One key of a recipe whose value has changed."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        now, before = (
            value if isinstance(value, str) and len(value) < 60 else shown(value, 60)
            for value in (self.now, self.before)
        )
        return f"{self.key} {now} (was {before})"


def allowed_changes(checkpoint: Path, recipe: Recipe, data: Mapping[str, str]) -> list[Change]:
    """The changes of `recipe` against the run that wrote `checkpoint`.

    Args:
        data: a digest of the records by source, as in `Checkpoints`.

    Errors:
        UserError for a change that a resumed run cannot apply.
    """
    written = written_recipe(checkpoint)
    saved = SavedState.read(checkpoint).data
    changed = [] if written is None else changes(written, plain_recipe(recipe))
    refused = [str(change) for change in changed if not _is_allowed(change, data, saved)]
    if refused:
        raise UserError(
            f"{checkpoint} cannot be resumed with {'; '.join(refused)}: set that back, or start another "
            "run (another output, and init_from for the weights)"
        )
    other = [name for name in saved if name in data and saved[name] != data[name]]
    if other:
        raise UserError(
            f"{checkpoint} cannot be resumed: the records of data.sources.{other[0]} are not those that it "
            "was trained on (another manifest.json); restore them, or start another run (another output)"
        )
    return [change for change in changed if change.key != "output"]


def require_same_groups(checkpoint: Path, model: nn.Module, config: OptimizerConfig) -> None:
    """Raise UserError if `config` makes other parameter groups than the checkpoint's run had.

    The optimizer state of a group is stored as one.
    """
    section = (written_recipe(checkpoint) or {}).get("optimizer")
    try:
        same = not isinstance(section, dict) or has_same_groups(model, OptimizerConfig(**section), config)
    except (TypeError, AttributeError, UserError):  # of another version, or damaged
        return
    if not same:
        raise UserError(
            f"{checkpoint} cannot be resumed with other parameter groups: learning rates of "
            "optimizer.group_lr, lr_scale and muon_lr that were equal must stay equal, and different ones "
            "different"
        )


def written_recipe(checkpoint: Path) -> dict[str, Any] | None:
    """The recipe stored with a checkpoint, unchecked; None for an old one without."""
    path = recipe_file(checkpoint)
    return None if path is None else read_yaml(path)


def recipe_file(checkpoint: Path) -> Path | None:
    """The file of a checkpoint's recipe, in its own folder or in its run's."""
    folders = (checkpoint, checkpoint.parent.parent)
    return next((folder / RECIPE for folder in folders if (folder / RECIPE).is_file()), None)


def named_paths(recipe: Recipe) -> dict[str, str]:
    """Every folder, file, hub id or URL that a recipe reads from, by the key that names it."""
    keys = (*PATHS, "validation.sources.*.path")
    leaves = _leaves(plain_recipe(recipe))
    return {key: value for key, value in leaves if value and isinstance(value, str) and _fits(key, keys)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The dotted keys that differ.

    A key missing in a section that is there counts as its default: another version may not know it.
    """
    one, other, default = dict(_leaves(before)), dict(_leaves(now)), dict(defaults(Recipe))

    def value(side: Mapping[str, Any], key: str) -> Any:
        section = key.rpartition(".")[0]
        has_section = not section or any(known.startswith(f"{section}.") for known in side)
        return side.get(key, default_of(key, default, _ABSENT) if has_section else _ABSENT)

    found = []
    for key in sorted(one.keys() | other.keys()):
        a, b = value(one, key), value(other, key)
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
            return saved[source] == data.get(source)  # the same records, moved
        return _has_moved(change)
    return _fits(change.key, APPLIED) and not _fits(change.key, KEPT)


def _has_moved(change: Change) -> bool:
    """Whether only the new path exists."""
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
    """(dotted key, value) of everything but mappings in nested mappings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, value
