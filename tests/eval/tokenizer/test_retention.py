"""What a tokenizer keeps of its teacher: the metrics at their limits, and on a known teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipModel

from dualtoken.eval.data.held_out import HeldOut
from dualtoken.eval.tokenizer import retention
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor


@pytest.fixture
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


@pytest.fixture
def processor() -> DualTokenizerImageProcessor:
    return DualTokenizerImageProcessor(size=16)


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> DualTokenizer:
    return tiny_tokenizer()


@pytest.fixture
def teacher(tokenizer: DualTokenizer) -> SiglipModel:
    """The tokenizer's own backbone, so that without quantization nothing is lost."""
    config = tokenizer.config
    siglip = SiglipModel(SiglipConfig(vision_config=config.vision_config, text_config=config.text_config))
    siglip.load_state_dict(tokenizer.backbone.state_dict())
    return siglip.eval()


def test_features_are_those_of_the_forward_pass(tokenizer, processor, images):
    found = retention.student_features(tokenizer, processor, images)
    with torch.no_grad():
        output = tokenizer(processor(images)["pixel_values"])
    torch.testing.assert_close(found.pooled, output.pooled)
    torch.testing.assert_close(found.semantic, output.semantic_features)
    assert found.pixel.shape == (5, 16, 16)


def test_the_teacher_is_identical_to_itself_and_others_are_not(teacher, tokenizer, processor, images):
    known = retention.teacher_features(teacher, 2, processor, images)
    assert list(retention.likeness(known, known).values()) == pytest.approx([1.0, 1.0])
    student = retention.student_features(tokenizer, processor, images)
    assert all(value < 0.99 for value in retention.likeness(student, known).values())


def test_the_teachers_states_are_those_of_the_layer(teacher, tokenizer, processor, images):
    known = retention.teacher_features(teacher, 2, processor, images)
    with torch.no_grad():
        states = tokenizer._encode_states(processor(images)["pixel_values"], 2)
    torch.testing.assert_close(known.semantic, states[2])


def test_features_of_a_frechet_distance_are_the_teachers_pooled_output(teacher, processor, images):
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    found = retention.TeacherFeatures(teacher, processor)(pixels)
    expected = retention.teacher_features(teacher, 2, processor, images).pooled
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_zero_shot_counts_the_nearest_text():
    vectors = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    pooled = torch.tensor([[3.0, 1.0], [0.5, 2.0], [9.0, 1.0], [1.0, 0.1]])

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.stack([vectors[text] for text in texts])

    assert retention.zero_shot_accuracy(pooled, ["a", "b", "b", "a"], embed) == 75.0


def test_a_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (60, 8))
    codes = torch.nn.functional.one_hot(torch.from_numpy(labels), 4).float()
    noise = torch.from_numpy(rng.normal(size=(60, 8, 4))).float()
    # Scale and offset of a feature do not matter to a linear probe.
    assert retention.probe_accuracy(1e3 * codes + 0.1 * noise - 7, labels, train=40) == 100.0
    assert 20 < retention.probe_accuracy(noise, labels, train=40) < 50  # of three classes
    background = np.where(labels == 1, 0, labels)
    assert retention.probe_accuracy(codes, background, train=40) == 100.0
    assert np.isnan(retention.probe_accuracy(codes, np.zeros_like(labels), train=40))


def test_patch_labels_are_those_of_the_scenes():
    scenes = HeldOut().scenes(3)
    labels = retention.patch_labels(scenes, 8)
    assert labels.shape == (3, 64)
    for row, scene in zip(labels, scenes, strict=True):
        assert 0 < len(set(row.tolist()) - {0}) <= len(scene.metadata["scene"]["objects"])
