"""All that the metrics of a tokenizer depend on, for the report."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from ..data.image_sets import ImageSet
from .family import MetricOptions

_PACKAGES = ("torch", "lpips", "torchmetrics", "torch-fidelity", "open_clip_torch")


def measure_settings(
    tokenizer: DualTokenizer,
    sources: ImageSet,
    metrics: Sequence[str],
    options: MetricOptions,
    processor: DualTokenizerImageProcessor,
) -> dict[str, Any]:
    """JSON values: images, metrics, sizes, checksums of weights, versions."""
    return {
        "images": sources.source,
        "metrics": list(metrics),
        "image_size": processor.side,
        "crop": options.crop,
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
        "lpips_weights_sha256": _sha256(options.lpips_weights),
        "fid_weights_sha256": _sha256(options.fid_weights),
        "classes": len(options.classes or sources.classes or []) if "zero_shot" in metrics else None,
        "templates": len(options.templates) if options.templates else "open_clip OPENAI_IMAGENET_TEMPLATES",
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
