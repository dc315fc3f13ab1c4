"""What a check of the installation found, and how checks are run so that none ends the others."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...common.errors import first_line, one_line

#: "ok"; "note": works, good to know; "warning": works, but worse than it could; "failure": does not work.
Level = Literal["ok", "note", "warning", "failure"]
WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        topic: what was examined, in a few words.
        text: what was found.
        remedy: what to do about it; empty where nothing needs to be done.
    """

    topic: str
    level: Level
    text: str
    remedy: str = ""


#: Examines one part of the installation. It may raise: the error becomes a finding.
Check = Callable[[], Iterable[Finding]]


def findings(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """Run checks, given by topic, in order. An error in one is a failure of that topic."""
    for topic, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            reason = first_line(error) or "no message"
            yield Finding(topic, "failure", one_line(f"{type(error).__name__}: {reason}"))


def in_lines(finding: Finding) -> str:
    """A finding as text: level, topic and text in columns, the remedy below."""
    head = f"{finding.level:<8} {finding.topic:<18} "
    indent = " " * len(head)
    lines = textwrap.wrap(finding.text, WIDTH, initial_indent=head, subsequent_indent=indent)
    if finding.remedy:
        label = f"{indent}remedy: "
        lines += textwrap.wrap(finding.remedy, WIDTH, initial_indent=label, subsequent_indent=indent)
    return "\n".join(lines)


def summary(found: Iterable[Finding]) -> str:
    """How many findings of which level: "2 failures, 1 warning"."""
    counts = {"failure": 0, "warning": 0}
    for finding in found:
        if finding.level in counts:
            counts[finding.level] += 1
    words = [f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items() if n]
    return ", ".join(words) or "everything works"


def as_json(found: Iterable[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in found]
