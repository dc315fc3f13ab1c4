"""YAML from elsewhere: a mapping of plain values, of bounded size also where parts of it are repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, shown
from .json_files import DEEPEST, read_text

LARGEST_YAML = 1_000_000  # bytes
#: Values of a file with every alias (`*name`) written out: a few lines of aliases of aliases are billions.
MOST_VALUES = 100_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. UserError for anything else, and for more than settings are."""
    text = read_text(path, LARGEST_YAML)
    check_yaml(text, path)
    try:
        found = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that does not exist, a list as a key
        raise UserError(f"{path} is not YAML: {error}") from None
    assert isinstance(found, dict)  # check_yaml saw that it is one
    return found


def check_yaml(text: str, path: Path) -> None:
    """Raise UserError unless `text` is one YAML mapping of bounded depth and size; builds nothing."""
    no_mapping = UserError(f"{path} holds no keys; expected a YAML mapping, such as output: runs/mine")
    open_nodes = [_Node(None)]  # the document, then what is nested in it
    sizes: dict[str, int] = {}  # of each finished anchor
    try:
        for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            if number == 2 and not isinstance(event, yaml.MappingStartEvent):
                raise no_mapping
            if isinstance(event, yaml.NodeEvent):
                _refuse_key_twice(open_nodes[-1], event, path)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append(_Node(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent):
                node = open_nodes.pop() if isinstance(event, yaml.CollectionEndEvent) else _Node(event.anchor)
                if node.anchor is not None:
                    sizes[node.anchor] = node.size
                open_nodes[-1].size += node.size
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise UserError(f"{path}: *{shown(event.anchor)} refers to itself or to nothing above")
                open_nodes[-1].size += sizes[event.anchor]
            if len(open_nodes) > DEEPEST:
                raise UserError(f"{path} is nested deeper than {DEEPEST} levels")
            if open_nodes[-1].size > MOST_VALUES:
                raise UserError(f"{path} holds more than {MOST_VALUES} values, aliases written out")
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if open_nodes[0].size == 1:
        raise no_mapping


class _Node:
    """A part of the text: its anchor's name, how many values it is, and of a mapping the keys so far."""

    def __init__(self, anchor: str | None, is_mapping: bool = False) -> None:
        self.anchor, self.size = anchor, 1
        self.is_mapping, self.children = is_mapping, 0
        self.keys: set[str] = set()


def _refuse_key_twice(parent: _Node, event: yaml.NodeEvent, path: Path) -> None:
    """Raise UserError where a mapping names a key again: YAML readers pass over the first without a word."""
    parent.children += 1
    if not parent.is_mapping or parent.children % 2 == 0 or not isinstance(event, yaml.ScalarEvent):
        return
    if event.value in parent.keys:
        place = "" if event.start_mark is None else f", line {event.start_mark.line + 1}"
        raise UserError(f"{path}{place}: the key {shown(event.value)} comes a second time")
    parent.keys.add(event.value)
