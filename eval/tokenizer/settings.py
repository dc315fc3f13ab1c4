"""The settings that a tokenizer's metrics depend on, for the report."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from ...common.files import file_checksum
from ...tokenizer import DualTokenizerImageProcessor
from .family import Subject

_PACKAGES = ("torch", "lpips", "torchmetrics", "torch-fidelity", "open_clip_torch")


def measure_settings(
    subject: Subject, metrics: Sequence[str], processor: DualTokenizerImageProcessor
) -> dict[str, Any]:
    """JSON values: images, metrics, sizes, checksums of weights, versions."""
    sources, options = subject.images, subject.options
    return {
        "images": sources.source,
        "metrics": list(metrics),
        "image_size": processor.side,
        "crop": options.crop,
        "resize_mode": processor.resize_mode,
        "resample": processor.resample,
        "dtype": str(subject.tokenizer.dtype).removeprefix("torch."),
        "lpips_weights_sha256": options.lpips_weights and file_checksum(options.lpips_weights),
        "fid_weights_sha256": options.fid_weights and file_checksum(options.fid_weights),
        "classes": len(options.classes or sources.classes or []) if "zero_shot" in metrics else None,
        "templates": len(options.templates) if options.templates else "open_clip OPENAI_IMAGENET_TEMPLATES",
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
