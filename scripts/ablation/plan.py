"""The plan of an ablation, one YAML file: variants are recipes with overrides, groups compare variants.

Overrides are dotted keys with the value that replaces the recipe's (`data.sources: {…}` replaces all sources,
`run.steps: 300` one number). Strings in them may hold `{data:NAME}`, a set of the plan's section `data`, and
`{tokenizer}` and `{codes:NAME}`, a tokenizer's folder and a set as its codes. The tokenizer is the base's, or
for a variant with `tokenizer: OTHER` that of OTHER's run of the same seed.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ...common.errors import UserError, shown
from ...common.limits import in_range, limited, problems
from ...common.paths import plain_name
from ...common.values import LARGEST_SEED
from ...common.yaml_files import read_yaml
from .metrics import METRICS

PLACEHOLDER = re.compile(r"\{(tokenizer|data|codes)(?::([^{}]+))?\}")
KINDS = ("tokenizer", "mllm")
_MOST = 1_000_000
Part = TypeVar("Part")


@dataclass(frozen=True)
class Base:
    """A recipe that variants start from.

    minutes: of one run, training and evaluation, for `--list`. tokenizer: the folder of the tokenizer whose
    codes are read, unless a variant names another one.
    """

    recipe: str
    kind: str
    overrides: dict[str, Any] = field(default_factory=dict)
    minutes: float = limited(0.0, least=0, most=_MOST)
    tokenizer: str | None = None


@dataclass(frozen=True)
class Variant:
    """A base with further overrides; `tokenizer`: the variant whose codes it reads instead of the base's."""

    base: str
    title: str
    overrides: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None


@dataclass(frozen=True)
class Claim:
    """A claim to check: variant `better` is better than variant `than` by this metric."""

    text: str
    metric: str
    better: str
    than: str


@dataclass(frozen=True)
class Group:
    """Variants compared in one table. metrics: columns; "NAME/*" are all parts of NAME."""

    title: str
    variants: list[str]
    metrics: list[str]
    about: str = ""
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """The size of an evaluation: scenes (questions, reconstructions, probes), generated images of one object
    (half as many of other skills), records for the held-out losses, and held-out sets besides the scenes.
    grid: that of the image generation among those records, as in training."""

    scenes: int = limited(300, least=0, most=_MOST)
    drawings: int = limited(60, least=0, most=_MOST)
    records: int = limited(200, least=0, most=_MOST)
    sets: list[str] = field(default_factory=lambda: ["easyvqa", "nlvr", "emoji", "clothing", "caltech"])
    skills: list[str] | None = None
    grid: int | None = limited(None, least=0, most=_MOST)


@dataclass(frozen=True)
class Plan:
    """The plan. inputs: prefix of paths in the recipes that `--inputs` replaces."""

    name: str
    bases: dict[str, Base]
    variants: dict[str, Variant]
    groups: dict[str, Group]
    seeds: list[int] = field(metadata=in_range(least=0, most=LARGEST_SEED))
    inputs: str = "runs/nano"
    about: str = ""
    data: dict[str, list[str]] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def needed(self, groups: list[str]) -> list[str]:
        """The variants of these groups, each after the tokenizer that it uses."""
        variants = [name for group in groups for name in self.groups[group].variants]
        ordered = [one for name in variants for one in (self.variants[name].tokenizer, name)]
        return list(dict.fromkeys(one for one in ordered if one is not None))

    def base(self, variant: str) -> Base:
        return self.bases[self.variants[variant].base]

    def used_sets(self, variant: str, what: str) -> list[str]:
        """Names of the plan's data sets that a variant reads as images ("data") or as codes ("codes")."""
        names: set[str] = set()

        def note(text: str) -> str:
            names.update(name for kind, name in PLACEHOLDER.findall(text) if kind == what)
            return text

        map_texts([self.base(variant).overrides, self.variants[variant].overrides], note)
        return sorted(names)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with `change` applied to every string in it."""
    if isinstance(value, dict):
        return {key: map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def load_plan(path: Path) -> Plan:
    """Read a plan strictly; UserError for an unknown key, variant, base, data set or metric."""
    given = read_yaml(path)
    for section, kind in (("bases", Base), ("variants", Variant), ("groups", Group)):
        entries = given.get(section) or {}
        if not isinstance(entries, dict):
            raise UserError(f"{section} is {shown(entries)}; expected a mapping of names")
        given[section] = {
            plain_name(name, f"{section}: the name"): _part(kind, entry, f"{section}.{name}")
            for name, entry in entries.items()
        }
    for name, base in given["bases"].items():
        given["bases"][name] = replace(base, recipe=str(_recipe_path(path, base.recipe)))
    for name, group in given["groups"].items():
        claims = [_part(Claim, claim, f"groups.{name}.claims") for claim in group.claims]
        given["groups"][name] = replace(group, claims=claims)
    evaluation = given.get("evaluation")
    given["evaluation"] = _part(Evaluation, {} if evaluation is None else evaluation, "evaluation")
    plan = _part(Plan, given, "the plan")
    if mistakes := list(_problems(plan)):
        raise UserError(f"plan {plan.name}: " + "; ".join(mistakes))
    return plan


def _recipe_path(plan: Path, recipe: str) -> Path:
    found = plan.parent / recipe
    if not found.is_file():
        raise UserError(f"the plan {plan} names the recipe {recipe}, which is not there (looked at {found})")
    return found


def _part(kind: type[Part], given: Any, where: str) -> Part:
    """A part of the plan; UserError for an unknown key, and for a value of another type."""
    hints = typing.get_type_hints(kind)
    allowed = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in given if name not in allowed] if isinstance(given, dict) else [given]
    if unknown:
        raise UserError(f"{where}: unknown {shown(unknown)}; allowed are {', '.join(allowed)}")
    for name, value in given.items():
        if not _fits(hints[name], value):
            raise UserError(f"{where}.{name} is {shown(value)}; expected {_in_words(hints[name])}")
    try:
        return kind(**given)
    except TypeError as error:
        raise UserError(f"{where} is not complete: {error}") from None


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value from YAML has the type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(one, value) for one in arguments)
    if origin is list:
        # Parts in a list are still mappings.
        part = isinstance(arguments[0], type) and is_dataclass(arguments[0])
        return isinstance(value, list) and all(_fits(dict if part else arguments[0], one) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _fits(arguments[1], one) for key, one in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _in_words(hint: Any) -> str:
    words = {str: "a string", float: "a number", int: "an integer", type(None): "null"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(one) for one in arguments)
    if origin is list:
        return f"a list, each {_in_words(arguments[0])}"
    return words.get(hint, "a mapping")


def _problems(plan: Plan) -> Iterator[str]:
    if not plan.seeds:
        yield "seeds is empty; give at least one"
    yield from problems(plan)
    for name in (*plan.data, *(plan.evaluation.skills or []), *plan.evaluation.sets):
        plain_name(name, "the name")
    for name, base in plan.bases.items():
        if base.kind not in KINDS:
            yield f"bases.{name}.kind is {base.kind!r}; allowed: {', '.join(KINDS)}"
    for name, variant in plan.variants.items():
        yield from _variant_problems(plan, name, variant)
    for name, group in plan.groups.items():
        claimed = [one for claim in group.claims for one in (claim.better, claim.than)]
        for one in {*group.variants, *claimed} - set(plan.variants):
            yield f"groups.{name} names the variant {one!r}, which is not in variants"
        for one in set(claimed) & set(plan.variants) - set(group.variants):
            yield f"groups.{name} has a claim about {one!r}, which is not among its variants"
        for metric in (*group.metrics, *(claim.metric for claim in group.claims)):
            if metric.split("/")[0] not in METRICS:
                yield f"groups.{name}: metric {metric!r} is unknown; there are {', '.join(METRICS)}"


def _variant_problems(plan: Plan, name: str, variant: Variant) -> Iterator[str]:
    if variant.base not in plan.bases:
        yield f"variants.{name}.base {variant.base!r} is not in bases"
        return
    for what in ("data", "codes"):
        for one in set(plan.used_sets(name, what)) - set(plan.data):
            yield f"variants.{name} reads {{{what}:{one}}}, which is not in the section data"
    other = variant.tokenizer
    if other is None:
        reads = plan.used_sets(name, "codes") or plan.used_sets(name, "tokenizer")
        if reads and plan.base(name).tokenizer is None:
            yield f"variants.{name} reads codes, and neither it nor its base names the tokenizer"
    elif other not in plan.variants:
        yield f"variants.{name}.tokenizer {other!r} is not in variants"
    elif plan.variants[other].base in plan.bases and plan.base(other).kind != "tokenizer":
        yield f"variants.{name}.tokenizer {other!r} does not train a tokenizer"
