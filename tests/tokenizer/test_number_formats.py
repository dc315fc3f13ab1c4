"""What stays in fp32 whatever the model is cast to, and that nothing on the device is in fp64."""

from __future__ import annotations

import pytest
import torch

from dualtoken.tokenizer import DualTokenizer

CASTS = {
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "to": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "bfloat16 and back": lambda model: model.bfloat16().float(),
}


def quantizer_state(model: DualTokenizer) -> dict[str, torch.Tensor]:
    """Every tensor of the quantizers, saved or not."""
    branches = model.pixel_quantizer, model.semantic_quantizer
    return {
        f"{i}.{name}": one.clone() for i, each in enumerate(branches) for name, one in each.named_buffers()
    }


@pytest.fixture
def used(tiny, images) -> DualTokenizer:
    """A tokenizer whose statistics are not zero."""
    tiny.train()(images)
    return tiny.eval()


@pytest.mark.parametrize("cast", CASTS)
def test_casts_change_no_bit_of_the_quantizers(used, cast):
    before = quantizer_state(used)
    assert not list(used.pixel_quantizer.parameters())
    CASTS[cast](used)
    after = quantizer_state(used)
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name


def test_loading_in_bf16_keeps_the_quantizers(used, tmp_path):
    used.save_pretrained(tmp_path)
    loaded = DualTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    expected = used.state_dict()
    for name, value in loaded.named_buffers():
        if "quantizer" in name and value.is_floating_point():
            assert value.dtype == torch.float32, name
            assert name not in expected or torch.equal(value, expected[name]), name


def test_nothing_holds_fp64(tiny):
    for name, value in [*tiny.named_buffers(), *tiny.named_parameters()]:
        assert value.dtype != torch.float64, name


def test_no_operation_makes_fp64(tiny, images, no_fp64):
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with no_fp64:
        decoded = tiny.decode(tiny.encode(images))
        tiny.get_image_features(images)
        tiny.get_text_features(ids)
        tiny.train()
        tiny.initialise_codebooks(images)
        output = tiny(images)
        (output.pixel_commitment_loss + output.reconstruction.mean() + output.pooled.mean()).backward()
    assert decoded.dtype == torch.float32


def test_statistics_are_precise_enough_for_many_passes(tiny):
    quantizer = tiny.pixel_quantizer.train()
    inputs = [torch.randn(64, 4, 4, 16) + 3 for _ in range(50)]
    for z in inputs:
        quantizer(z)
    vectors = torch.cat([z.reshape(-1, 16) for z in inputs]).double()
    squares = vectors.square().sum()
    assert float(quantizer.squares[0]) == pytest.approx(float(squares), rel=1e-5)
    health = quantizer.read_health()
    assert health.usage.device.type == "cpu"
    assert health.num_vectors == len(vectors)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "device",
    [
        "cuda",
        pytest.param(
            "mps",
            marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU"),
        ),
    ],
)
def test_statistics_on_a_gpu(tiny, images, device):
    tiny.to(device).train()(images.to(device))
    for quantizer in (tiny.pixel_quantizer, tiny.semantic_quantizer):
        assert quantizer.read_health().num_vectors == 3 * 16
