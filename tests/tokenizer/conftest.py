"""A tiny tokenizer, images for it, and the tensors of the released code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 5e-5  # absolute, in fp32


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny_config(**changes) -> DualTokenizerConfig:
    """4 x 4 positions, 4 layers of width 32, 3 codes of 24 in dimension 16."""
    quantizer = {"num_codes": 24, "code_dim": 16, "depth": 3, "shared_codebook": False}
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    settings = {
        "vision_config": {**size, "num_hidden_layers": 4, "image_size": 16, "patch_size": 4},
        "text_config": {**size, "num_hidden_layers": 1, "vocab_size": 40, "max_position_embeddings": 8},
        "pixel_layer": 2,
        "semantic_layer": 3,
        "shortcut_layer": 1,
        "pixel_quantizer": quantizer,
        "semantic_quantizer": {**quantizer, "shared_codebook": True},
        "decoder": {
            "latent_size": 4,
            "in_channels": 32,
            "ch": 32,
            "ch_mult": [1, 1, 2],
            "attn_resolutions": [4],
        },
    }
    return DualTokenizerConfig(**{**settings, **changes})


@pytest.fixture
def tiny() -> DualTokenizer:
    torch.manual_seed(1)
    return DualTokenizer(tiny_config()).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture(scope="session")
def golden_io() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "A" / "io.safetensors")


@pytest.fixture(scope="session")
def golden_train() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "A" / "train.safetensors")


@pytest.fixture
def official() -> DualTokenizer:
    return DualTokenizer.from_official(GOLDEN / "A" / "state_dict.safetensors", GOLDEN / "A" / "config.json")
