"""The noise of a tokenizer's codes on white patches, against a count by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.eval.tokenizer.white_patches import white_patch_entropy, white_patches
from dualtoken.tokenizer import DualTokenizerImageProcessor

PATCH, GRID = 4, 4


@pytest.fixture
def processor() -> DualTokenizerImageProcessor:
    return DualTokenizerImageProcessor(size=PATCH * GRID)


@pytest.fixture
def images() -> list[Image.Image]:
    """Noise with white rows of patches, one more in each image; one patch all but white."""
    pixels = np.random.default_rng(0).integers(0, 250, (3, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        image[: PATCH * (number + 1)] = 255
    pixels[2, 0, 0, 1] = 254
    return [Image.fromarray(image) for image in pixels]


def test_only_patches_white_all_over_count(processor, images):
    found = white_patches(processor(images)["pixel_values"], processor, (GRID, GRID))
    wanted = torch.zeros(3, GRID, GRID, dtype=torch.bool)
    for number in range(3):
        wanted[number, : number + 1] = True
    wanted[2, 0, 0] = False
    assert torch.equal(found, wanted)


def test_entropy_is_that_of_the_codes_counted_one_by_one(
    tiny_tokenizer: Callable[..., Any], processor, images
):
    tokenizer = tiny_tokenizer()
    found = white_patch_entropy(tokenizer, processor, images)
    pixels = processor(images)["pixel_values"]
    codes = tokenizer.encode(pixels)
    white = white_patches(pixels, processor, (GRID, GRID))
    for branch in ("pixel", "semantic"):
        levels = getattr(codes, branch)[white].T.tolist()
        shares = [count / len(level) for level in levels for count in Counter(level).values()]
        assert found[branch] == pytest.approx(-sum(share * math.log(share) for share in shares))
        assert found[branch] > 0, "what surrounds a patch is in its codes"


def test_patches_with_equal_codes_have_no_entropy(tiny_tokenizer: Callable[..., Any], processor):
    tokenizer = tiny_tokenizer()
    for quantizer in (tokenizer.pixel_quantizer, tokenizer.semantic_quantizer):
        quantizer.codebooks.vectors.zero_()  # all codes are equally near: the first is taken
    white = [Image.new("RGB", (16, 16), "white")]
    assert white_patch_entropy(tokenizer, processor, white) == {"pixel": 0.0, "semantic": 0.0}


def test_no_white_patch_gives_nan(tiny_tokenizer: Callable[..., Any], processor):
    found = white_patch_entropy(tiny_tokenizer(), processor, [Image.new("RGB", (16, 16), "black")])
    assert all(math.isnan(value) for value in found.values())
