"""Section `contrastive`: a SigLIP from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.limits import limited
from ...tokenizer.resizing import Resample, ResizeMode
from .paths import locate

#: No loss has a greater weight.
MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class ContrastiveConfig:
    """A SigLIP from scratch.

    Image and caption towers, sigmoid loss, optional dense supervision by scene patches.

    Args:
        vision_config: fields of ``SiglipVisionConfig``.
        text_config: fields of ``SiglipTextConfig``; ``vocab_size`` is taken from the text tokenizer.
        text_tokenizer: folder of the text tokenizer.
        contrastive_weight: weight of open_clip's SigLIP loss.
        patch_weight: weight of the per-patch class loss at ``patch_layer``; records without a scene are
            left out of it.
        patch_layer: encoder layer whose states are classified (the tokenizer's semantic layer).
        background_weight: weight of a patch without an object in that loss; most patches have none.
        consistency_weight: weight of pulling together the states of repeated backgrounds at that layer.
        max_text_length: caption length in tokens; captions are padded to it, as SigLIP expects.
        resize_mode, resample: how images become square, as in ``tokenizer.model``.
    """

    vision_config: dict[str, Any]
    text_config: dict[str, Any]
    text_tokenizer: str
    contrastive_weight: float = limited(1.0, least=0.0, most=MOST_WEIGHT)
    patch_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    patch_layer: int = limited(-1, least=-1000, most=1000)
    background_weight: float = limited(1.0, least=0.0, most=MOST_WEIGHT)
    consistency_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    max_text_length: int = limited(32, least=1, most=65_536)
    resize_mode: ResizeMode = "squash"
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        locate(self, "text_tokenizer")
