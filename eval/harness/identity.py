"""The identity of a run: checkpoint, data, prompts, settings and versions, with checksums."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from PIL import Image

from ... import __version__
from ...common.errors import UserError
from ...common.files import write_text
from ...common.json_files import read_json_object, take, take_count
from ...mllm import resolve_model
from ..data.encoded_image import EncodedImage
from ..data.files import ImageSource
from .task import Item

MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
# Fields that must be equal in a resumed run; versions may differ.
FIXED = ("benchmark", "split", "limit", "model", "checkpoint", "data", "prompts", "generation", "seed")


def versions() -> dict[str, str]:
    """Versions of this package and of those that results may depend on."""
    found = {"dualtoken": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass(frozen=True)
class ModelIdentity:
    """The model of a run: its name as given, the checksum of its folder, and the type of device."""

    model: str = ""
    checkpoint: str = ""
    device: str = ""

    @classmethod
    def of(cls, model: str, device: str) -> Self:
        """The identity of a model, named as for `--model`, on a device such as "cuda:1"."""
        folder = Path(resolve_model(model))
        checkpoint = checkpoint_checksum(folder) if folder.is_dir() else model
        return cls(model, checkpoint, device.partition(":")[0])


@dataclass(frozen=True)
class RunIdentity:
    """Everything that a run's predictions depend on; `to_dict` is the content of `manifest.json`."""

    benchmark: str
    split: str
    model: str
    checkpoint: str
    data: str
    data_source: str
    prompts: str
    generation: Mapping[str, Any]
    seed: int
    limit: int | None
    n: int
    n_expected: int | None
    device: str
    versions: Mapping[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    def differences(self, other: Self) -> list[str]:
        """The names of the fields that differ and must be equal in a resumed run."""
        one, two = self.to_dict(), other.to_dict()
        return [name for name in FIXED if one[name] != two[name]]

    def open(self, folder: Path) -> None:
        """Write the manifest of a new run, or compare with that of the run that is resumed.

        UserError for predictions of another run, naming the fields that differ, and for a folder of others.
        """
        path = folder / MANIFEST
        if path.exists():
            if changed := self.differences(RunIdentity.read(folder)):
                raise UserError(
                    f"{folder} holds predictions of another run ({', '.join(changed)} differ); give another "
                    "--output, or remove the folder"
                )
            return
        if foreign := sorted(one.name for one in folder.iterdir() if not one.name.startswith(".")):
            raise UserError(
                f"{folder} holds {foreign[0]!r} and no {MANIFEST}, so it is not a folder of predictions; "
                "give another --output, or move that away"
            )
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The identity in a folder of predictions. UserError without a valid manifest."""
        path = folder / MANIFEST
        if not path.exists():
            raise UserError(f"{folder} holds no {MANIFEST}; make predictions first: dualtoken eval predict")
        given = read_json_object(path)
        texts = ("benchmark", "split", "model", "checkpoint", "data", "prompts", "device")
        fields: dict[str, Any] = {name: take(given, name, str, path) for name in texts}
        fields |= {name: take(given, name, dict, path) for name in ("generation", "versions")}
        for name, default in (("seed", ...), ("n", ...), ("limit", None), ("n_expected", None)):
            fields[name] = take_count(given, name, path, default, most=2**63)
        return cls(**fields, data_source=take(given, "data_source", str, path, ""))


def data_checksum(items: Iterable[Item]) -> str:
    """SHA-256 over ids, targets, choices and images (files by name and size, others by content)."""
    digest = hashlib.sha256()
    for item in items:
        content = [item.id, dict(item.target), list(item.choices), [_image_content(i) for i in item.images]]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def prompts_checksum(items: Iterable[Item]) -> str:
    """SHA-256 over the ids and prompts, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.prompt]).encode())
    return digest.hexdigest()


def checkpoint_checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's configurations, vocabularies and weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".model", ".txt", ".jinja"):
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _image_content(image: ImageSource) -> list[Any]:
    if isinstance(image, EncodedImage):
        return [list(image.size), image.checksum]
    if isinstance(image, Image.Image):
        return [list(image.size), hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()]
    return [image.name, image.stat().st_size if image.exists() else None]
