"""A model folder that is tiny and untrained, for the commands that load one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[..., Any]) -> Path:
    """A saved unified model: 2 x 2 positions, 2 codes of 24 in each branch, a Llama of two layers."""
    from dualtoken.mllm import build_model, build_processor, save_model, train_text_tokenizer

    root = tmp_path_factory.mktemp("tiny")
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    quantizer = {"num_codes": 24, "code_dim": 16, "depth": 2}
    visual_tokenizer = tiny_tokenizer(patch_size=8, pixel_quantizer=quantizer, semantic_quantizer=quantizer)
    texts = ["a red circle", "What colour is the circle?", "How many objects are there?", "two blue stars"]
    text_tokenizer = train_text_tokenizer(texts, 300, root / "text")
    model = build_model(
        {**size, "model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 256},
        visual_tokenizer,
        text_tokenizer,
        depth_transformer={"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 48},
        image_sampling={"guidance_scale": 1.5},
    )
    save_model(model, build_processor(visual_tokenizer, text_tokenizer), root / "model")
    return root / "model"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image file larger than the model's own size."""
    from PIL import Image

    path = tmp_path / "image.png"
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(path)
    return path
