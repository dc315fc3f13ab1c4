"""What every test gets: one thread, fixed seeds, no network."""

import os
import random
import sys

# Read when torch and the hub client are imported, so they are set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, alone or among others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the legacy stream is what some libraries draw from)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
