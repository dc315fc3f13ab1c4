"""A tiny model with all its parts: 4 x 4 positions, 3 codes per branch, 2 LLM layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from dualtoken.mllm import (
    DualTokenForConditionalGeneration,
    DualTokenProcessor,
    build_model,
    build_processor,
    save_model,
    train_text_tokenizer,
)
from dualtoken.tokenizer import DualTokenizer

ModelFactory = Callable[..., DualTokenForConditionalGeneration]
WORDS = "a red green blue circle square above below left of the how many colour what is it Two. no yes"


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_tokenizer")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS.split(), size=rng.integers(1, 9))) for _ in range(500)]
    train_text_tokenizer(texts, 320, folder)
    return folder


@pytest.fixture
def text_tokenizer(text_folder: Path):
    return AutoTokenizer.from_pretrained(text_folder)


@pytest.fixture(scope="session")
def visual_tokenizer(tiny_tokenizer: Callable[..., DualTokenizer]) -> DualTokenizer:
    return tiny_tokenizer(
        seed=1,
        pixel_quantizer={"num_codes": 24, "code_dim": 8, "depth": 3, "shared_codebook": False},
        semantic_quantizer={"num_codes": 16, "code_dim": 8, "depth": 3, "shared_codebook": True},
    )


@pytest.fixture
def processor(visual_tokenizer: DualTokenizer, text_folder: Path) -> DualTokenProcessor:
    return build_processor(visual_tokenizer, text_folder)


@pytest.fixture
def make_model(visual_tokenizer: DualTokenizer, text_folder: Path) -> ModelFactory:
    """Model factory; weights are enlarged, so that outputs differ clearly from place to place."""

    def make(llm_changes: dict[str, Any] | None = None, **settings: Any) -> DualTokenForConditionalGeneration:
        llm = {
            "model_type": "llama",
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            **(llm_changes or {}),
        }
        heads = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
        torch.manual_seed(2)
        model = build_model(llm, visual_tokenizer, text_folder, **{"depth_transformer": heads, **settings})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3.0)
        return model.eval()

    return make


@pytest.fixture
def model(make_model: ModelFactory) -> DualTokenForConditionalGeneration:
    return make_model(pixel_condition="semantic", visual_position="learned")


@pytest.fixture
def saved(model: DualTokenForConditionalGeneration, processor: DualTokenProcessor, tmp_path: Path) -> Path:
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def other_image() -> Image.Image:
    return Image.new("RGB", (16, 16), (20, 200, 40))


@pytest.fixture
def cached_image() -> Callable[[int], dict[str, Any]]:
    """An image part of cached codes, as a shard holds them."""

    def make(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {
            "type": "image",
            "pixel_codes": rng.integers(0, 24, (4, 4, 3), dtype=np.uint16),
            "semantic_codes": rng.integers(0, 16, (4, 4, 3), dtype=np.uint16),
        }

    return make


@pytest.fixture
def records(cached_image) -> dict[str, list[dict[str, Any]]]:
    """One record of every kind, on cached codes."""
    say = lambda role, *parts: {"role": role, "content": list(parts)}  # noqa: E731
    return {
        "text_to_image": [say("user", "a red circle"), say("assistant", cached_image(0))],
        "question": [say("user", cached_image(1), "how many"), say("assistant", "Two.")],
        "text": [say("user", "what is it"), say("assistant", "a square")],
        "interleaved": [
            say("user", cached_image(2), "and", cached_image(3)),
            say("assistant", "yes", cached_image(4), "a circle", cached_image(5)),
            say("user", "no"),
            say("assistant", "blue"),
        ],
    }
