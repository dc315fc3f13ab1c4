"""Retrieval, zero-shot accuracy, codebook usage, CLIPScore: against values by hand, merged, on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.eval.metrics.codebook import CodebookUsage
from dualtoken.eval.metrics.retrieval import RetrievalRecall, retrieval_recall
from dualtoken.eval.metrics.zero_shot import ZeroShotAccuracy, zero_shot_classifier
from dualtoken.eval.tokenizer.text_tower import TextIds, TextTower
from dualtoken.tokenizer import UserError


def test_retrieval_by_hand() -> None:
    images = torch.eye(3)
    # Texts 0 and 1 belong to image 0, text 2 to image 1 but nearer to image 2, text 3 to image 2.
    texts = torch.tensor([[1.0, 0, 0], [0, 0.1, 0.9], [0, 0.4, 0.6], [0, 0.2, 0.8]])
    found = retrieval_recall(images, texts, [0, 0, 1, 2], cuts=(1, 2))
    assert found["image_to_text_R@1"] == pytest.approx(100 * 2 / 3)  # image 2's nearest text is text 1
    assert found["image_to_text_R@2"] == pytest.approx(100)
    assert found["text_to_image_R@1"] == pytest.approx(100 * 2 / 4)
    assert found["text_to_image_R@2"] == pytest.approx(100 * 3 / 4)


def test_recall_over_batches_is_that_of_all_at_once() -> None:
    images, texts = torch.randn(6, 4), torch.randn(9, 4)
    numbers = torch.tensor([1, 2, 1, 1, 3, 1])
    recall = RetrievalRecall(4)
    recall.update(images[:2], texts[:3], numbers[:2])
    recall.update(images[2:], texts[3:], numbers[2:])
    expected = retrieval_recall(images, texts, [0, 1, 1, 2, 3, 4, 4, 4, 5])
    assert recall.compute() == {"retrieval_n": 6.0, **expected}
    assert RetrievalRecall(4).compute()["image_to_text_R@1"] is None


def test_retrieval_gives_a_collapsed_model_nothing() -> None:
    found = retrieval_recall(torch.ones(20, 4), torch.ones(20, 4), range(20))
    assert set(found.values()) == {0.0}


def test_retrieval_of_noise_is_that_of_random_ranks() -> None:
    count = 2000
    found = retrieval_recall(torch.randn(count, 8), torch.randn(count, 8), range(count))
    for name, value in found.items():
        chance = 100 * int(name.rpartition("@")[2]) / count
        assert value == pytest.approx(chance, abs=0.6)


def test_retrieval_needs_a_text_for_every_image() -> None:
    with pytest.raises(UserError, match="at least one text for every image"):
        retrieval_recall(torch.eye(3), torch.eye(2, 3), [0, 1])
    with pytest.raises(UserError, match="3 images, 2 texts and 3 links"):
        retrieval_recall(torch.eye(3), torch.eye(2, 3), [0, 1, 2])


def test_zero_shot_accuracy_by_hand_and_merged() -> None:
    classifier = torch.eye(6)
    features = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0], [6, 5, 4, 3, 2, 1]])
    whole, left, right = (ZeroShotAccuracy(classifier) for _ in range(3))
    whole.update(features, [0, 1, 5])
    left.update(features[:1], [0])
    right.update(features[1:], [1, 5])
    left.merge_state(right)
    assert left.compute() == whole.compute()
    assert whole.compute() == {
        "zero_shot_top1": pytest.approx(100 / 3),
        "zero_shot_top5": pytest.approx(200 / 3),
        "zero_shot_n": 3,
    }
    # Equal classes are not correct. Few classes: no top-5.
    assert ZeroShotAccuracy(torch.ones(6, 3)).compute() == {"zero_shot_top1": None, "zero_shot_n": 0}
    collapsed = ZeroShotAccuracy(torch.ones(6, 7))
    collapsed.update(features, [0, 1, 2])
    assert collapsed.compute() == {"zero_shot_top1": 0, "zero_shot_top5": 0, "zero_shot_n": 3}


class WordIds:
    """Each word's number, padded as a text tokenizer of transformers does."""

    words = ("a", "photo", "drawing", "of", "cat", "dog")

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        rows = [[1 + self.words.index(word) for word in text.split()] for text in texts]
        return {"input_ids": torch.tensor([(row + [0] * max_length)[:max_length] for row in rows])}


def test_the_classifier_is_the_mean_over_templates(tiny_tokenizer) -> None:
    pytest.importorskip("open_clip")
    tower, text_ids = TextTower(tiny_tokenizer()), TextIds(WordIds(), 8)
    templates = ["a photo of a {}", "a drawing of {}"]
    with torch.no_grad():
        classifier = zero_shot_classifier(tower, text_ids, ["cat", "dog"], templates)
        own = tower.encode_text(text_ids(["a photo of a dog", "a drawing of dog"]), normalize=True).mean(0)
    assert classifier.shape == (32, 2)
    torch.testing.assert_close(classifier[:, 1], own / own.norm())
    with pytest.raises(UserError, match="at least two classes"):
        zero_shot_classifier(tower, text_ids, ["cat"], templates)


def test_open_clip_brings_imagenets_names_and_80_templates() -> None:
    pytest.importorskip("open_clip")
    from dualtoken.eval.metrics.zero_shot import imagenet_classes, imagenet_templates

    assert len(imagenet_classes()) == 1000
    assert len(imagenet_templates()) == 80


def test_codebook_usage_by_hand_and_merged() -> None:
    codes = torch.tensor([[0, 3], [0, 2], [1, 3], [1, 2]])
    whole, half = CodebookUsage(4, 2), CodebookUsage(4, 2)
    whole.update(codes.view(1, 2, 2, 2))
    half.update(codes[:2])
    other = CodebookUsage(4, 2)
    other.update(codes[2:])
    half.merge_state(other)
    assert torch.equal(half.counts, whole.counts)
    assert whole.compute()["usage"] == [0.5, 0.5]
    assert whole.compute()["perplexity"] == pytest.approx([2, 2])
    assert whole.compute()["usage_all_depths"] == 1
    even = CodebookUsage(16, 1)
    even.update(torch.arange(16).view(-1, 1))
    assert even.compute()["perplexity"] == pytest.approx([16])
    single = CodebookUsage(16, 1)
    single.update(torch.zeros(5, 1, dtype=torch.int64))
    assert single.compute()["perplexity"] == pytest.approx([1])


def tiny_clip(folder: Path) -> Path:
    """A random CLIP of transformers as a saved folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**size, "vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**size, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    vocabulary = {word: n for n, word in enumerate(("<s>", "</s>", "<pad>", *WordIds.words))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
    square = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(folder)
    return folder


def test_clip_score_is_100_cos_clamped(tmp_path: Path) -> None:
    from dualtoken.eval.metrics.clip_score import LocalClip, clip_scores

    clip = LocalClip(tiny_clip(tmp_path / "clip"))
    noise = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)
    images = [Image.fromarray(array) for array in noise]
    texts = ["a cat", "a photo of a dog", "drawing", "cat", "dog", "photo"]
    embedded, spoken = clip.encode_images(images), clip.encode_texts(texts)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(6))
    expected = 100 * (embedded * spoken).sum(-1).clamp_min(0)
    scores = clip_scores(clip, images, texts)
    assert scores == pytest.approx(expected.tolist())
    # Alone or among others, padded or not: the same.
    alone = [clip_scores(clip, [image], [text])[0] for image, text in zip(images, texts, strict=True)]
    assert alone == pytest.approx(scores, abs=1e-4)


def test_what_is_not_a_clip(tmp_path: Path) -> None:
    from dualtoken.eval.metrics.clip_score import LocalClip

    with pytest.raises(UserError, match="is not a folder"):
        LocalClip(tmp_path / "none")
    with pytest.raises(UserError, match="holds no CLIP"):
        LocalClip(tmp_path)
