"""The tokenizer as a model: round trips, batching, saving, loading, checkpointing, configuration."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, SiglipConfig, SiglipModel

from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig, UserError

from .conftest import tiny_config


def test_decoding_the_codes_gives_the_reconstruction(tiny, images):
    with torch.no_grad():
        out = tiny(images)
    codes = tiny.encode(images)
    assert codes.pixel.shape == codes.semantic.shape == (3, 4, 4, 3)
    assert codes.pixel.dtype == torch.int64
    assert torch.equal(codes.pixel, out.codes.pixel)
    assert torch.equal(codes.semantic, out.codes.semantic)
    torch.testing.assert_close(tiny.decode(codes.pixel), out.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiny.get_image_features(images), out.pooled)
    assert out.reconstruction.shape == images.shape
    assert tiny(images, reconstruct=False).reconstruction is None


def test_a_batch_equals_single_images(tiny, images):
    with torch.no_grad():
        whole = tiny(images)
        for index in range(3):
            one = tiny(images[index : index + 1])
            assert torch.equal(one.codes.pixel[0], whole.codes.pixel[index])
            assert torch.equal(one.codes.semantic[0], whole.codes.semantic[index])
            torch.testing.assert_close(
                one.reconstruction[0], whole.reconstruction[index], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(one.pooled[0], whole.pooled[index], atol=1e-5, rtol=1e-5)


def test_without_quantization_features_pass_and_gradients_flow(tiny, images):
    tiny.train().set_quantization(False)
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    out = tiny(images, return_hidden_states=True)
    assert out.pixel_commitment_loss == 0
    assert len(out.hidden_states) == 5
    (out.reconstruction.sum() + out.pooled.sum()).backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    image_parts = [name for name, p in tiny.named_parameters() if p.grad is None and "text_model" not in name]
    assert image_parts == ["backbone.logit_scale", "backbone.logit_bias"]
    tiny.set_quantization(True)
    tiny.initialise_codebooks(images)
    assert tiny(images).pixel_commitment_loss > 0


def test_encode_never_moves_the_codebooks(tiny, images):
    tiny.train()
    before = tiny.pixel_quantizer.codebook_tensor()
    tiny.encode(images)
    assert torch.equal(tiny.pixel_quantizer.codebook_tensor(), before)
    tiny(images)
    assert not torch.equal(tiny.pixel_quantizer.codebook_tensor(), before)


def test_images_that_are_no_numbers_are_refused(tiny, images):
    with pytest.raises(UserError, match="pixel_values hold"):
        tiny.eval().encode(images * float("nan"))


def test_gradient_checkpointing_changes_nothing(tiny, images):
    other = DualTokenizer(tiny_config())
    other.load_state_dict(tiny.state_dict())
    other.gradient_checkpointing_enable()
    for model in (tiny.train(), other.train()):
        out = model(images)
        (
            out.reconstruction.square().mean() + out.pooled.square().mean() + out.pixel_commitment_loss
        ).backward()
    for (name, ours), theirs in zip(tiny.named_parameters(), other.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.pixel_quantizer.codebooks.num_updates == 1


def test_save_and_load_are_equal(tmp_path, tiny, images):
    tiny.train()(images)
    tiny.eval().save_pretrained(tmp_path / "model")
    loaded = DualTokenizer.from_pretrained(tmp_path / "model")
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.pixel_quantizer.usage_counts.sum() == 0
    with torch.no_grad():
        assert torch.equal(loaded(images).reconstruction, tiny(images).reconstruction)
    again = AutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(again, DualTokenizer)
    assert loaded.config.to_dict() == again.config.to_dict()


def test_saving_in_bf16_keeps_the_codebooks(tmp_path, tiny, images):
    books = tiny.pixel_quantizer.codebook_tensor()
    tiny.to(torch.bfloat16).save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}):
        loaded = DualTokenizer.from_pretrained(tmp_path, **options)
        assert loaded.dtype == options.get("dtype", torch.float32)
        assert loaded.pixel_quantizer.codebook_tensor().dtype == torch.float32
        assert torch.equal(loaded.pixel_quantizer.codebook_tensor(), books)
        codes = loaded.encode(images)
        assert loaded.decode(codes.pixel).dtype == loaded.dtype
    assert torch.equal(loaded.encode(images).pixel, tiny.encode(images).pixel)


def test_loading_is_strict(tmp_path, tiny):
    with pytest.raises(UserError, match="is not a tokenizer"):
        DualTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dualtoken"}))
    with pytest.raises(UserError, match="visual_tokenizer"):
        DualTokenizer.from_pretrained(tmp_path)
    tiny.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    broken = dict(weights)
    broken.pop("pixel_decoder.conv_in.bias")
    save_file(broken, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: pixel_decoder\.conv_in\.bias"):
        DualTokenizer.from_pretrained(tmp_path)
    save_file({**weights, "extra": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="unexpected keys: extra"):
        DualTokenizer.from_pretrained(tmp_path)
    save_file(
        {**weights, "pixel_decoder.conv_in.bias": torch.zeros(3)},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match="cannot load"):
        DualTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):
        DualTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot load"):
        DualTokenizer.from_pretrained(tmp_path)


def test_from_backbone_copies_siglip(tmp_path, images):
    config = tiny_config()
    siglip = SiglipModel(
        SiglipConfig(vision_config=config.vision_config, text_config=config.text_config)
    ).eval()
    siglip.save_pretrained(tmp_path)
    for source in (siglip, tmp_path):
        model = DualTokenizer.from_backbone(source, config).eval()
        with torch.no_grad():
            states = model(images, return_hidden_states=True).hidden_states
            expected = siglip.vision_model(images, output_hidden_states=True).hidden_states
        for ours, theirs in zip(states[:4], expected[:4], strict=True):
            torch.testing.assert_close(ours, theirs)
        ids = torch.randint(40, (2, 8))
        torch.testing.assert_close(model.get_text_features(ids), siglip.get_text_features(ids).pooler_output)
    wider = {**config.vision_config.to_dict(), "intermediate_size": 64}
    with pytest.raises(UserError, match="does not fit"):
        DualTokenizer.from_backbone(siglip, tiny_config(vision_config=wider))
    with pytest.raises(UserError, match="cannot load a SigLIP"):
        DualTokenizer.from_backbone(tmp_path / "none", config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_layer": 9, "semantic_layer": 9}, "pixel_layer is 9"),
        ({"pixel_layer": 9}, "shallower than pixel_layer 9"),
        ({"semantic_layer": 1}, "semantic_layer 1 is shallower"),
        ({"decoder": {"latent_size": 5, "in_channels": 32, "ch": 32, "ch_mult": [1, 1, 2]}}, "20 px"),
        ({"decoder": {"latent": 5}}, "unknown decoder setting 'latent'"),
        ({"pixel_quantizer": {"num_codes": 8}}, "pixel_quantizer lacks code_dim, depth"),
        ({"pixel_quantizer": {"num_codes": 8, "code_dim": 5, "depth": 2}}, "does not divide"),
    ],
)
def test_contradicting_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def test_configuration_round_trip(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    assert DualTokenizerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config.grid_size == (4, 4)
    assert config.num_positions == 16
    assert config.image_size == 16
    assert DualTokenizerConfig().grid_size == (8, 8)


def test_without_shortcut_and_at_the_last_layer(images):
    model = DualTokenizer(tiny_config(shortcut_layer=None, semantic_layer=4))
    assert model(images).pooled.shape == (3, 32)


def test_wrong_shapes_are_named(tiny):
    with pytest.raises(UserError, match="3, 16, 16"):
        tiny(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="4, 4, 3"):
        tiny.decode(torch.zeros(1, 16, 3, dtype=torch.int64))


def test_saved_settings_are_complete_and_tell_no_paths(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "first")
    DualTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    text = (tmp_path / "second" / "config.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["vision_config"]["layer_norm_eps"] == 1e-6
