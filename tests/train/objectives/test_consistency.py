"""Equal pixels: which patches count as equal, and what the consistency loss rewards."""

from __future__ import annotations

import pytest
import torch

from dualtoken.train.objectives.tokenizer.consistency import (
    BACKGROUND_SHARE,
    content_groups,
)
from dualtoken.train.objectives.tokenizer.consistency import consistency_loss as loss_of_groups

GRID, SIDE = 4, 32


def consistency_loss(features: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return loss_of_groups(features, groups, int(groups.max()) + 1)


@pytest.fixture
def graphics() -> torch.Tensor:
    """Two white images with the same red patch at different positions, and one of noise; (3, 3, 32, 32)."""
    images = torch.ones(3, 3, SIDE, SIDE)
    red = torch.tensor([0.7, -0.8, -0.8]).view(3, 1, 1)
    images[0, :, 8:16, 8:16] = red
    images[1, :, 16:24, 0:8] = red
    images[2] = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return images


def test_groups_are_equal_exactly_where_the_pixels_are(graphics: torch.Tensor) -> None:
    groups = content_groups(graphics, GRID)
    patches = graphics.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(48, -1)
    equal_pixels = (patches.unsqueeze(0) == patches.unsqueeze(1)).all(-1)
    numbers = groups.flatten()
    assert torch.equal(numbers.unsqueeze(0) == numbers.unsqueeze(1), equal_pixels)
    assert groups[0, 5] == groups[1, 8] != groups[0, 0]


def test_the_background_share_leaves_objects_and_photos_out(graphics: torch.Tensor) -> None:
    groups = content_groups(graphics, GRID, BACKGROUND_SHARE)
    assert groups[0, 5] == -1
    assert groups[1, 8] == -1
    assert (groups[0] >= 0).sum() == 15
    assert (groups[0] >= 0).equal(groups[0] == groups[0, 0])
    assert (groups[2] == -1).all()


def test_loss_is_zero_for_features_of_the_content_alone(graphics: torch.Tensor) -> None:
    groups = content_groups(graphics, GRID)
    by_content = torch.randn(int(groups.max()) + 1, 6)[groups]
    assert consistency_loss(by_content, groups) < 1e-3
    noise = torch.randn(3, GRID**2, 6)
    loss = consistency_loss(by_content + noise, groups)
    assert loss > 0.2
    torch.testing.assert_close(consistency_loss(10.0 * (by_content + noise), groups), loss)


def test_gradient_reaches_only_what_repeats(graphics: torch.Tensor) -> None:
    groups = content_groups(graphics, GRID, BACKGROUND_SHARE)
    features = torch.randn(3, GRID**2, 6, requires_grad=True)
    unused = features.detach().clone().requires_grad_()
    spread = (unused.flatten(0, 1) - unused.flatten(0, 1).mean(0)).square().sum(1).mean().sqrt()
    value = consistency_loss(features, groups)
    value.backward()
    assert features.grad is not None
    # What is left for the others is the derivative of the spread that the loss is measured by.
    (from_spread,) = torch.autograd.grad(-(value.detach() / spread.detach()) * spread, unused)
    torch.testing.assert_close(features.grad[groups == -1], from_spread[groups == -1])
    assert not torch.allclose(features.grad[groups >= 0], from_spread[groups >= 0])


def test_no_repeated_content_costs_nothing() -> None:
    noise = torch.randn(2, 3, SIDE, SIDE)
    features = torch.randn(2, GRID**2, 6)
    assert consistency_loss(features, content_groups(noise, GRID)) == 0.0
