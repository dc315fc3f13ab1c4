"""The pixel decoder's linear map of patches: local, added to the convolutions' image, absent by default."""

import torch

from dualtoken.tokenizer import DecoderConfig
from dualtoken.tokenizer.pixel_decoder import PixelDecoder

SIDE, PATCH = 4, 2


def decoder(patch_skip: bool) -> PixelDecoder:
    torch.manual_seed(0)
    config = DecoderConfig(SIDE, 8, 8, (1, 1), 0, (4,), norm_groups=4, patch_skip=patch_skip)
    return PixelDecoder(config, feature_dim=16).eval()


@torch.no_grad()
def test_a_position_moves_its_own_patch_by_a_linear_map():
    model = decoder(patch_skip=True)
    model.conv_out.weight.zero_()
    features = torch.randn(1, 16, SIDE, SIDE)
    moved = features.clone()
    moved[0, :, 1, 2] += torch.randn(16)
    change = (model(moved) - model(features))[0]
    row, column = 1 * PATCH, 2 * PATCH
    inside = change[:, row : row + PATCH, column : column + PATCH]
    step = model.patch_skip.weight.flatten(1) @ (moved - features)[0, :, 1, 2]
    torch.testing.assert_close(inside, step.view(3, PATCH, PATCH))
    inside.zero_()
    assert change.abs().max() == 0


@torch.no_grad()
def test_the_map_is_added_to_the_image_of_the_convolutions():
    plain, both = decoder(patch_skip=False), decoder(patch_skip=True)
    assert set(both.state_dict()) - set(plain.state_dict()) == {"patch_skip.weight", "patch_skip.bias"}
    both.load_state_dict(plain.state_dict(), strict=False)
    both.patch_skip.weight.zero_()
    both.patch_skip.bias.zero_()
    features = torch.randn(2, 16, SIDE, SIDE)
    torch.testing.assert_close(both(features), plain(features))
