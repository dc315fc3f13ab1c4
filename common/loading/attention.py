"""The attention implementations of transformers that may be chosen, and whether they run here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from ..errors import UserError, first_line, shown
from .bounded_settings import ATTENTION

#: What the packages need, by implementation. Kernels are never loaded from the hub: they are code.
_NEEDED = {
    "flash_attention_2": "a CUDA device and the package flash-attn (extra 'gpu')",
    "flash_attention_3": "a Hopper GPU (H100) and the package flash-attn-3 (flash-attention's folder hopper)",
}


def check_attention(implementation: Any, name: str = "attn_implementation", training: bool = False) -> None:
    """Raise UserError for an attention that is unknown, not installed or cannot train here.

    None is transformers' choice. `name` is that of the setting.
    """
    if implementation is None:
        return
    if not (isinstance(implementation, str) and implementation in ATTENTION):
        raise UserError(f"{name} is {shown(implementation)}; allowed: {', '.join(ATTENTION)}")
    if not _installed(implementation):
        raise UserError(
            f"{name} {implementation!r} needs {_NEEDED[implementation]}; install it, or use 'sdpa'"
        )
    if implementation == "flex_attention" and training and not torch.cuda.is_available():
        raise UserError(
            f"{name} 'flex_attention' trains on GPUs only (torch has no backward pass of it for CPUs); use "
            "'sdpa'"
        )


def set_attention(model: PreTrainedModel, implementation: str, name: str = "attn_implementation") -> None:
    """Change the attention of a model's layers. UserError where one of its parts does not support it."""
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise UserError(f"{name} {implementation!r} is not for this model: {first_line(error)}") from error


def _installed(implementation: str) -> bool:
    if implementation == "flash_attention_2":
        return is_flash_attn_2_available()
    return implementation != "flash_attention_3" or is_flash_attn_3_available()
