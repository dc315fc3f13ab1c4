"""What produced a set of predictions: checkpoint, data, prompts, settings and versions, with checksums."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from ... import __version__
from ...common.errors import UserError
from ...common.files import atomic_file
from ...common.json_files import read_json_object, take, take_count
from ..data.encoded_image import EncodedImage
from .task import Benchmark, ImageSource, Item

MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
# A resumed run must agree on these; versions may differ, and are listed.
FIXED = ("benchmark", "split", "limit", "model", "checkpoint", "data", "prompts", "generation", "seed")


def describe(
    benchmark: Benchmark,
    split: str,
    items: Sequence[Item],
    data_source: str,
    model: str,
    checkpoint: str,
    generation: Mapping[str, Any],
    seed: int,
    limit: int | None,
    device: str,
) -> dict[str, Any]:
    """The manifest of a run."""
    return {
        "benchmark": benchmark.name,
        "split": split,
        "model": model,
        "checkpoint": checkpoint,
        "data": data_checksum(items),
        "data_source": data_source,
        "prompts": prompts_checksum(items),
        "generation": dict(generation),
        "seed": seed,
        "limit": limit,
        "n": len(items),
        "n_expected": benchmark.splits[split],
        "device": device,
        "versions": versions(),
    }


def open_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a new run; compare with that of one that goes on.

    Raises:
        UserError: the folder's predictions were made by something else; names what differs.
    """
    path = folder / MANIFEST
    if path.exists():
        before = read_manifest(folder)
        changed = [name for name in FIXED if before.get(name) != json.loads(json.dumps(manifest[name]))]
        if changed:
            raise UserError(
                f"{folder} holds predictions of another run ({', '.join(changed)} differ); give another "
                "--output, or remove the folder"
            )
        return
    foreign = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]!r} and no {MANIFEST}, so it is not a folder of predictions; give "
            "another --output, or move that away"
        )
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of predictions. UserError if there is none, or it cannot be read."""
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} holds no {MANIFEST}; make predictions first: dualtoken eval predict")
    manifest = read_json_object(path)
    for name in ("benchmark", "split", "model", "checkpoint", "data", "prompts", "device"):
        take(manifest, name, str, path)
    for name in ("generation", "versions"):
        take(manifest, name, dict, path)
    for name, default in (("seed", ...), ("n", ...), ("limit", None), ("n_expected", None)):
        take_count(manifest, name, path, default, most=2**63)
    return {"limit": None, "n_expected": None, **manifest}


def data_checksum(items: Iterable[Item]) -> str:
    """SHA-256 over ids, targets, choices and images (files by name and size, others by content)."""
    digest = hashlib.sha256()
    for item in items:
        facts = [item.id, dict(item.target), list(item.choices), [_image_facts(one) for one in item.images]]
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def prompts_checksum(items: Iterable[Item]) -> str:
    """SHA-256 over what the model is asked, word for word and in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.prompt]).encode())
    return digest.hexdigest()


def checkpoint_checksum(folder: Path) -> str:
    """SHA-256 over a model folder's configurations and weights; what only describes it is left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".model", ".txt", ".jinja"):
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the package and of those that results may depend on."""
    found = {"dualtoken": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _image_facts(image: ImageSource) -> list[Any]:
    if isinstance(image, EncodedImage):
        return [list(image.size), image.checksum]
    if isinstance(image, Image.Image):
        return [list(image.size), hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()]
    return [image.name, image.stat().st_size if image.exists() else None]
