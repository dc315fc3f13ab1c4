"""Where to tap a backbone: the measures, the cuts and the suggestion."""

from __future__ import annotations

import pytest
import torch
from transformers import SiglipConfig

from dualtoken.tokenizer import UserError
from dualtoken.tokenizer.backbone import TappedSiglip
from dualtoken.tokenizer.layer_split import change_points, linear_cka, recovered_share, split_layers


def centred(rows: int, columns: int) -> torch.Tensor:
    features = torch.randn(rows, columns)
    return features - features.mean(0)


def test_cka_ignores_rotation_and_scale_and_separates_unrelated_features() -> None:
    a = centred(500, 12)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12))
    torch.testing.assert_close(linear_cka(a, a), torch.tensor(1.0))
    torch.testing.assert_close(linear_cka(a, 3.0 * a @ rotation), torch.tensor(1.0))
    assert linear_cka(a, centred(500, 12)) < 0.1
    b = centred(500, 7)
    torch.testing.assert_close(linear_cka(a, b), linear_cka(b, a))


def test_recovered_share_is_one_for_a_linear_map_and_none_for_noise() -> None:
    features = torch.randn(2000, 10)
    assert recovered_share(features, features @ torch.randn(10, 4)) > 0.97
    assert recovered_share(features, torch.randn(2000, 4)) < 0.05
    half = features @ torch.randn(10, 4)
    noisy = half + half.std() * torch.randn(2000, 4)
    assert recovered_share(features, noisy) == pytest.approx(0.5, abs=0.1)


def blocks(*lengths: int, inside: float = 0.95, outside: float = 0.2) -> torch.Tensor:
    """The similarity matrix of segments of these lengths."""
    which = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = which.unsqueeze(0) == which.unsqueeze(1)
    return torch.where(same, inside, outside).fill_diagonal_(1.0)


@pytest.mark.parametrize("lengths", [(7, 14, 7), (3, 2, 2), (5, 5, 1)])
def test_change_points_find_blocks(lengths: tuple[int, int, int]) -> None:
    cuts, confidence = change_points(blocks(*lengths), 3)
    assert cuts == (lengths[0], lengths[0] + lengths[1])
    assert confidence > 0.3


def test_layers_without_structure_are_not_cut_with_confidence() -> None:
    _, confidence = change_points(torch.full((12, 12), 0.8).fill_diagonal_(1.0), 3)
    assert confidence < 0.1


@pytest.fixture(scope="module")
def backbone() -> TappedSiglip:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    torch.manual_seed(0)
    return TappedSiglip(
        SiglipConfig(
            vision_config={**size, "num_hidden_layers": 6, "image_size": 16, "patch_size": 4},
            text_config={**size, "num_hidden_layers": 1, "vocab_size": 40, "max_position_embeddings": 8},
        )
    ).eval()


def test_the_suggestion_fits_the_backbone_and_repeats(backbone: TappedSiglip) -> None:
    images = torch.rand(64, 3, 16, 16) * 2 - 1
    split = split_layers(backbone, images.split(16))
    assert split.cosine.shape == split.cka.shape == (7, 7)
    torch.testing.assert_close(split.cka, split.cka.t())
    torch.testing.assert_close(split.cka.diagonal(), torch.ones(7))
    shortcut = 0 if split.shortcut_layer is None else split.shortcut_layer
    assert 0 <= shortcut < split.pixel_layer < split.boundaries[0]
    assert split.pixel_layer <= split.semantic_layer < 6
    assert 0 <= split.confidence <= 1
    assert split_layers(backbone, images.split(16)).reasons == split.reasons


def test_too_few_images_or_layers_are_an_error(backbone: TappedSiglip) -> None:
    with pytest.raises(UserError, match="too few, 512 are needed"):
        split_layers(backbone, [torch.rand(4, 3, 16, 16)])
    with pytest.raises(UserError, match="too few for 9 segments"):
        split_layers(backbone, torch.rand(64, 3, 16, 16).split(16), segments=9)
