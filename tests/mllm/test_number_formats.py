"""What of the unified model stays in fp32 whatever it is cast to, and that nothing makes fp64."""

import pytest
import torch

from dualtoken.mllm import DualTokenForConditionalGeneration, save_model
from dualtoken.mllm.generation.sampling import gumbel_noise


def codebooks(model: DualTokenForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if ".codebook." in name}


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_casts_change_no_bit_of_the_codebooks(make_model, cast):
    model = make_model()
    before = codebooks(model)
    getattr(model, cast)()
    after = codebooks(model)
    assert before
    for name, value in before.items():
        assert after[name].dtype == torch.float32, name
        assert torch.equal(after[name], value), name


def test_loading_in_bf16_keeps_the_codebooks(make_model, processor, tmp_path):
    model = make_model()
    save_model(model, processor, tmp_path / "model")
    loaded = DualTokenForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    after = codebooks(loaded)
    for name, value in codebooks(model).items():
        assert after[name].dtype == torch.float32, name
        assert torch.equal(after[name], value), name


def test_generating_makes_no_fp64(make_model, no_fp64):
    model = make_model().eval()
    ids = torch.tensor([[5, 6, 7, model.config.image_start_token_id]])
    with no_fp64:
        tokens = model.generate(ids, generation_mode="image", seed=0)
        model.decode_image_tokens(tokens)
        model.generate(ids[:, :3], max_new_tokens=3)


def test_noise_needs_no_fp64(no_fp64):
    uniforms = torch.tensor([0.0, 0.1, 0.5, 1 - 2**-24])
    with no_fp64:
        noise = gumbel_noise(uniforms, 7)
    assert torch.equal(noise, gumbel_noise(uniforms.double(), 7))
