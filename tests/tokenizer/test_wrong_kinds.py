"""Values of the wrong type given to the tokenizer: every error is one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dualtoken.common.loading.strict import load_tensors
from dualtoken.tokenizer import (
    DualTokenizer,
    DualTokenizerConfig,
    DualTokenizerImageProcessor,
    UserError,
    load_image,
)

PIXELS = torch.zeros(1, 3, 64, 64)
NO_IMAGES: dict[str, Any] = {
    "sparse": PIXELS.to_sparse(),
    "without values": PIXELS.to("meta"),
    "none": PIXELS[:0],
}
NO_IDS: list[Any] = [
    None,
    5,
    "a red circle",
    ["a red circle"],
    torch.zeros(1, 5),
    torch.zeros(5, dtype=torch.long),
    torch.zeros(1, 0, dtype=torch.long),
    torch.zeros(1, 100, dtype=torch.long),
    torch.full((1, 5), 99_999),
    torch.full((1, 5), -1),
]


@pytest.fixture(scope="module")
def nano() -> DualTokenizer:
    return DualTokenizer.from_pretrained("nano")


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_tensors_that_hold_no_images(nano: DualTokenizer, kind: str):
    for call in (nano.encode, nano.get_image_features, nano.initialise_codebooks, nano):
        with pytest.raises(UserError, match="pixel_values"):
            call(NO_IMAGES[kind])


@pytest.mark.parametrize("number", range(len(NO_IDS)))
def test_invalid_token_ids_of_the_text_tower(nano: DualTokenizer, number: int):
    with pytest.raises(UserError, match="input_ids"):
        nano.get_text_features(NO_IDS[number])


@pytest.mark.parametrize("seed", [None, "x", 1.5, -1, [], torch.zeros(2)])
def test_seeds_of_codebooks_are_integers(nano: DualTokenizer, seed: Any):
    with pytest.raises(UserError, match="seed"):
        nano.initialise_codebooks(PIXELS, seed=seed)


def test_image_processors_are_asked_for_tensors_arrays_or_neither():
    processor, image = DualTokenizerImageProcessor(), Image.new("RGB", (8, 8))
    wrong: list[Any] = ["x", "tf", 5, True, [], {}]
    for kind in wrong:
        with pytest.raises(UserError, match="return_tensors"):
            processor(image, return_tensors=kind)
    for kind in ("pt", "np", None):
        assert len(processor(image, return_tensors=kind)["pixel_values"]) == 1
    for tensor in (PIXELS.to_sparse(), PIXELS.to("meta")):
        with pytest.raises(UserError, match="decoded images"):
            processor.to_images(tensor)
        with pytest.raises(UserError, match="sparse"):
            load_image(tensor[0])


@pytest.mark.parametrize("value", [torch.zeros(0), torch.zeros(3), [], "", 0, False])
def test_quantizers_of_a_configuration_are_settings_by_name(value: Any):
    for name in ("pixel_quantizer", "semantic_quantizer"):
        with pytest.raises(UserError, match=name):
            DualTokenizerConfig(**{name: value})


@pytest.mark.parametrize("source", [None, 5, [], 10**30])
def test_sources_that_are_not_models(source: Any):
    with pytest.raises(UserError):
        DualTokenizerConfig.from_pretrained(source)
    with pytest.raises(UserError):
        DualTokenizerImageProcessor.from_pretrained(source)
    with pytest.raises(UserError):
        DualTokenizer.from_official(source, source)


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("content", [b"", b"\0", b"PK\x03\x04", b"\xff" * 20, b"\x80\x02}q\0."])
def test_files_that_hold_no_weights(tmp_path: Path, ending: str, content: bytes):
    (tmp_path / f"weights{ending}").write_bytes(content)
    with pytest.raises(UserError, match="checkpoint"):
        load_tensors(tmp_path / f"weights{ending}")
