"""Strict reading of untrusted YAML: a mapping of plain values of bounded size, aliases included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, shown
from .json_files import DEEPEST, read_text

LARGEST_YAML = 1_000_000  # bytes
#: Limit with every alias (`*name`) expanded: a few lines of nested aliases can be billions of values.
MOST_VALUES = 100_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file. UserError for anything else, and for one that is too big."""
    text = read_text(path, LARGEST_YAML)
    check_yaml(text, path)
    try:
        found = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that does not exist, a list as a key
        raise UserError(f"{path} is not YAML: {error}") from None
    assert isinstance(found, dict)  # check_yaml made sure
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
                    raise UserError(
                        f"{path}: *{shown(event.anchor)} refers to itself or to no anchor above it"
                    )
                open_nodes[-1].size += sizes[event.anchor]
            if len(open_nodes) > DEEPEST:
                raise UserError(f"{path} is nested deeper than {DEEPEST} levels")
            if open_nodes[-1].size > MOST_VALUES:
                raise UserError(f"{path} holds more than {MOST_VALUES} values, with aliases expanded")
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if open_nodes[0].size == 1:
        raise no_mapping


class _Node:
    """A node: its anchor, its number of values, and of a mapping the keys so far."""

    def __init__(self, anchor: str | None, is_mapping: bool = False) -> None:
        self.anchor, self.size = anchor, 1
        self.is_mapping, self.children = is_mapping, 0
        self.keys: set[str] = set()


def _refuse_key_twice(parent: _Node, event: yaml.NodeEvent, path: Path) -> None:
    """Raise UserError for a repeated key of a mapping: YAML readers silently ignore the first one."""
    parent.children += 1
    if not parent.is_mapping or parent.children % 2 == 0 or not isinstance(event, yaml.ScalarEvent):
        return
    if event.value in parent.keys:
        place = "" if event.start_mark is None else f", line {event.start_mark.line + 1}"
        raise UserError(f"{path}{place}: the key {shown(event.value)} is given twice")
    parent.keys.add(event.value)
