"""Changes to the recipe of a resumed run: allowed ones are reported and applied, others are refused.

Every checkpoint holds its recipe. Model, data and seed must stay, because weights, moments and the position
in the data belong to them; learning rates, length and logging may change (`resume_keys` lists every key).
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
from ..config.keys import default_of, defaults
from ..config.optimizer import OptimizerConfig
from ..config.recipe import Recipe, plain_recipe
from ..optimizers import has_same_groups
from .checkpoint_files import RECIPE, SavedState
from .resume_keys import PATHS, Rule, is_named, rule_of

_ABSENT = "not set"
VOCABULARY_MULTIPLE = "vocabulary_multiple"
#: What runs did before a key existed, where that was not its default.
EARLIER = {f"mllm.{VOCABULARY_MULTIPLE}": 1}


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


def allowed_changes(
    checkpoint: Path, recipe: Recipe, data: Mapping[str, str], named: Sequence[str] = ()
) -> list[Change]:
    """The changes of `recipe` against the run that wrote `checkpoint`.

    Args:
        data: a digest of the records by source, as in `Checkpoints`.
        named: keys, sections or shell patterns of keys that may change although they should not.

    Errors:
        UserError for a change that a resumed run cannot apply, and for a name that fits no key.
    """
    written, present, names = written_recipe(checkpoint), plain_recipe(recipe), tuple(named)
    _check_names(names, dict(_leaves(written or {})) | dict(_leaves(present)))
    saved = SavedState.read(checkpoint).data
    changed = [] if written is None else changes(written, present)
    refused = [
        change for change in changed if not (_is_allowed(change, data, saved) or is_named(change.key, names))
    ]
    if refused:
        raise UserError(
            f"{checkpoint} cannot be resumed with {'; '.join(map(str, refused))}: set that back, take "
            "another output, or name the keys by --resume-with-changes"
        )
    keys = {name: f"data.sources.{name}.path" for name in saved if saved[name] != data.get(name, saved[name])}
    other = [name for name, key in keys.items() if not is_named(key, names)]
    if other:
        raise UserError(
            f"{checkpoint} cannot be resumed: the records of data.sources.{other[0]} are not those that it "
            "was trained on (another manifest.json); restore them, or start another run (another output)"
        )
    records = [Change(f"{key} (records)", saved[name][:8], data[name][:8]) for name, key in keys.items()]
    return [change for change in changed if change.key != "output"] + records


def _check_names(names: tuple[str, ...], keys: Mapping[str, Any]) -> None:
    """Raise UserError for a name of --resume-with-changes that fits no key of both recipes."""
    for name in names:
        if not any(is_named(key, (name,)) for key in keys):
            raise UserError(
                f"--resume-with-changes names {shown(name)}, which is not a key of this recipe; give dotted "
                "keys, such as data.sources.chat.weight, or sections"
            )


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
    if one.get("init_from") is None and any(key.startswith("mllm.") for key in one):
        one = EARLIER | one

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
    rule = rule_of(change.key)
    if rule is Rule.PATH:
        source = change.key.split(".")[2] if change.key.startswith("data.sources.") else ""
        if source in saved:
            return saved[source] == data.get(source)  # the same records, moved
        return _has_moved(change)
    return rule is Rule.FREE


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
