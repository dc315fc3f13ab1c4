"""What DeepSpeed has to be told before it is imported."""

from __future__ import annotations

import os

import torch


def name_accelerator() -> None:
    """Say that the CPU is meant where there is no GPU; else DeepSpeed warns on stdout that it found none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
