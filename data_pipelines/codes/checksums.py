"""Checksums that bind cached codes to the tokenizer and the preprocessing that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ...common.errors import UserError
from ...tokenizer.modeling import DualTokenizer
from ...tokenizer.processing import DualTokenizerImageProcessor
from ...tokenizer.stored import StoredTokenizer

# Weights that only turn codes into images: training them does not change the codes.
_AFTER_THE_CODES = ("pixel_decoder.", "pixel_post_projection.")


def codes_checksum(tokenizer: DualTokenizer | StoredTokenizer) -> str:
    """SHA-256 of what the codes depend on: the layers used and all weights except the pixel decoder's."""
    config = tokenizer.config
    facts = {name: getattr(config, name) for name in ("pixel_layer", "semantic_layer", "shortcut_layer")}
    facts["shortcut_weight"] = config.shortcut_weight
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    weights = tokenizer.state_dict()
    for name in sorted(weights):
        if not name.startswith(_AFTER_THE_CODES):
            tensor = weights[name]
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_checksum(processor: DualTokenizerImageProcessor) -> str:
    """SHA-256 of the image preprocessing: size, way of resizing and normalisation."""
    facts: dict[str, Any] = {
        "size": processor.side,
        "resample": processor.resample,
        "mean": [float(value) for value in processor.image_mean],
        "std": [float(value) for value in processor.image_std],
    }
    if processor.resize_mode != "squash":  # which codes of earlier versions were all made with
        facts["resize_mode"] = processor.resize_mode
    if processor.resize_mode == "pad":
        facts["pad_colour"] = list(processor.pad_colour)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_codes_belong(
    manifest: Mapping[str, Any],
    checksum: str,
    where: str = "these shards",
    preprocessing: str | None = None,
    precision: str | None = None,
) -> None:
    """Raise UserError if cached codes were made with another `codes_checksum` or `preprocessing_checksum`, or
    in another precision (`encode_precision` of the tokenizer).

    Preprocessing and precision are only compared where both sides know them. Shards of images pass.
    """
    made_by = manifest.get("tokenizer")
    if made_by is None:
        return
    if made_by["checksum"] != checksum:
        raise UserError(
            f"The codes in {where} were made by another tokenizer ({made_by['checksum'][:12]}…): "
            "run `dualtoken tokenize` again with this one."
        )
    known = made_by.get("preprocessing")
    if preprocessing is not None and known is not None and known != preprocessing:
        raise UserError(
            f"The codes in {where} are made from images of another size, resizing or normalisation "
            f"({known[:12]}…): run `dualtoken tokenize` again with this tokenizer."
        )
    made_in = made_by.get("encode_precision")
    if precision is not None and made_in is not None and made_in != precision:
        raise UserError(
            f"The codes in {where} were made in {made_in}, but this model encodes images in {precision}: set "
            f"mllm.encode_precision to {made_in}, or run `dualtoken tokenize --encode-precision {precision}`."
        )
