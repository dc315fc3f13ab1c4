"""Installed packages against the versions that this package allows, and pairs known to break."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import Marker
from packaging.requirements import Requirement

from ... import __version__
from ...common.packages import install_command
from .finding import Finding, Level

DISTRIBUTION = "dualtoken"
#: What each extra is for; an extra that is not listed is for developers.
PURPOSE = {
    "train": "training",
    "eval": "evaluation",
    "gpu": "flash attention, 4-bit and 8-bit weights",
    "gguf": "language models in GGUF",
    "lmms": "lmms-eval's tasks",
    "serve": "the server",
    "bench": "comparisons of dualtoken bench",
}
_EXTRA = re.compile(r"extra\s*==\s*[\"']([^\"']+)[\"']")


@dataclass(frozen=True)
class Installed:
    """A requirement of this package and the version that is installed, or None."""

    requirement: Requirement
    extra: str
    version: str | None

    @property
    def allowed(self) -> bool:
        return self.version is not None and self.requirement.specifier.contains(
            self.version, prereleases=True
        )


def requirements() -> list[Installed]:
    """This package's requirements, from its metadata. PackageNotFoundError if it is not installed."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        extra = _EXTRA.search(str(requirement.marker or ""))
        name = extra.group(1) if extra else ""
        if requirement.marker is None or Marker(str(requirement.marker)).evaluate({"extra": name}):
            found.append(Installed(requirement, name, version_of(requirement.name)))
    return found


def version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_versions() -> Iterator[Finding]:
    """The core's packages, and each extra of PURPOSE."""
    yield Finding(
        "dualtoken",
        "ok",
        f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    try:
        found = requirements()
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages",
            "warning",
            "dualtoken runs from a folder and is not installed, so no versions are known to be required",
            install_command(""),
        )
        return
    for extra, purpose in {"": "", **PURPOSE}.items():
        members = [one for one in found if one.extra == extra]
        if members:
            topic = f"extra {extra}" if extra else "core packages"
            yield _group(topic, members, required=not extra, purpose=purpose)


def _group(topic: str, members: list[Installed], required: bool, purpose: str) -> Finding:
    missing = [str(one.requirement.name) for one in members if one.version is None]
    wrong = [one for one in members if one.version is not None and not one.allowed]
    extra = members[0].extra
    command = install_command(extra)
    if wrong:
        names = ", ".join(
            f"{one.requirement.name} {one.version} (allowed: {one.requirement.specifier})" for one in wrong
        )
        return Finding(topic, "failure" if required else "warning", f"not supported: {names}", command)
    if missing and (required or len(missing) < len(members)):
        level: Level = "failure" if required else "note"
        return Finding(topic, level, f"missing: {', '.join(missing)}{_for(purpose)}", command)
    if missing:
        return Finding(topic, "note", f"not installed{_for(purpose)}", f"{command}, where it is needed")
    versions = ", ".join(f"{one.requirement.name} {one.version}" for one in members)
    return Finding(topic, "ok", versions)


def _for(purpose: str) -> str:
    return f" (for {purpose})" if purpose else ""


def check_torchvision() -> Iterator[Finding]:
    """torchvision of another build than torch's breaks transformers' image processors and open_clip."""
    import torch

    if version_of("torchvision") is None:
        return
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Finding(
            "torchvision",
            "failure",
            f"{version_of('torchvision')} does not work with torch {torch.__version__}: "
            f"{str(error).splitlines()[0]}",
            "install both from one place: pip install --force-reinstall torch torchvision",
        )
        return
    yield Finding("torchvision", "ok", f"{version_of('torchvision')} works with torch {torch.__version__}")
