"""The variants for ablations: one quantizer for both branches, and two encoders side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig, UserError

from .conftest import tiny_config

QUANTIZER = {"num_codes": 24, "code_dim": 16, "depth": 3, "shared_codebook": False, "restart_every": 1000}
BOTH = {"pixel_quantizer": QUANTIZER, "semantic_quantizer": QUANTIZER}
VARIANTS: dict[str, dict[str, Any]] = {
    "shared": {**BOTH, "shared_quantizer": True, "pixel_layer": 3, "shortcut_layer": None},
    "separate": {**BOTH, "separate_encoders": True},
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> DualTokenizer:
    torch.manual_seed(1)
    return DualTokenizer(tiny_config(**VARIANTS[request.param])).eval()


def test_a_saved_variant_gives_the_same_codes_and_images(variant, images, tmp_path):
    variant.save_pretrained(tmp_path)
    loaded = DualTokenizer.from_pretrained(tmp_path)
    for name in ("shared_quantizer", "separate_encoders"):
        assert getattr(loaded.config, name) == getattr(variant.config, name)
    assert set(loaded.state_dict()) == set(variant.state_dict())
    with torch.no_grad():
        before, after = variant(images), loaded(images)
    assert torch.equal(before.codes.pixel, after.codes.pixel)
    assert torch.equal(before.codes.semantic, after.codes.semantic)
    torch.testing.assert_close(before.reconstruction, after.reconstruction)
    torch.testing.assert_close(before.pooled, after.pooled)


def test_a_variants_codes_encode_and_decode_as_in_the_forward_pass(variant, images):
    with torch.no_grad():
        out = variant(images)
        part = variant(images, num_semantic=2)
    codes = variant.encode(images)
    assert torch.equal(codes.pixel, out.codes.pixel)
    assert torch.equal(codes.semantic, out.codes.semantic)
    assert torch.equal(part.codes.pixel, out.codes.pixel)
    assert torch.equal(part.codes.semantic, out.codes.semantic[:2])
    torch.testing.assert_close(variant.decode(codes.pixel), out.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variant.get_image_features(images), out.pooled)


def test_a_variant_trains_every_image_part(variant, images):
    variant.train()
    variant.initialise_codebooks(images)
    out = variant(images, num_semantic=2)
    losses = (
        out.reconstruction.sum(),
        out.pooled.sum(),
        out.pixel_commitment_loss,
        out.semantic_commitment_loss,
    )
    torch.stack(losses).sum().backward()
    left_out = [n for n, p in variant.named_parameters() if p.grad is None and "text_model" not in n]
    assert left_out == ["backbone.logit_scale", "backbone.logit_bias"]


def test_a_shared_quantizer_counts_every_vector_once(images):
    model = DualTokenizer(tiny_config(**VARIANTS["shared"])).train()
    out = model(images)
    assert torch.equal(out.codes.pixel, out.codes.semantic)
    assert out.semantic_commitment_loss == 0 < out.pixel_commitment_loss
    assert model.semantic_quantizer.read_health().num_vectors == out.codes.pixel[..., 0].numel()
    assert not [
        name for name in model.state_dict() if name.startswith(("pixel_quantizer", "pixel_projection"))
    ]


def test_separate_encoders_share_no_gradient(images):
    model = DualTokenizer(tiny_config(**VARIANTS["separate"])).train()
    model(images).reconstruction.sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.pixel_encoder.parameters())
    model.zero_grad()
    model(images).pooled.sum().backward()
    assert all(p.grad is None for p in model.pixel_encoder.parameters())


def test_separate_encoders_start_as_copies_of_the_backbone(images):
    config = tiny_config(**VARIANTS["separate"])
    siglip = SiglipModel(SiglipConfig(vision_config=config.vision_config, text_config=config.text_config))
    model = DualTokenizer.from_backbone(siglip, config).eval()
    with torch.no_grad():
        own, backbone = model.pixel_encoder(images), model._encode_states(images, 2)
    for one, other in zip(own, backbone, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_is_set_in_both_encoders():
    model = DualTokenizer(tiny_config(**VARIANTS["separate"]))
    model.set_attn_implementation("eager")
    assert model.pixel_encoder.layers[0].self_attn.config._attn_implementation == "eager"


def test_a_configuration_without_the_new_settings_is_the_plain_tokenizer():
    settings = tiny_config().to_diff_dict()
    for name in ("shared_quantizer", "separate_encoders"):
        assert settings.pop(name) is False
    assert DualTokenizerConfig(**settings).to_diff_dict() == tiny_config().to_diff_dict()


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel_layer": 2},
        {"shortcut_layer": 1},
        {"separate_encoders": True},
        {"pixel_quantizer": {**QUANTIZER, "depth": 2}},
    ],
)
def test_parts_that_a_shared_quantizer_cannot_serve_are_refused(wrong):
    with pytest.raises(UserError, match="shared_quantizer"):
        tiny_config(**{**VARIANTS["shared"], **wrong})
