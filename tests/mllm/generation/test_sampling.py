"""Drawing codes: options, truncation, guidance, random streams."""

import math

import pytest
import torch

from dualtoken.mllm.generation.sampling import (
    ImageSamplingConfig,
    guidance_scales,
    guide,
    gumbel_noise,
    image_uniforms,
    sample_codes,
    truncate,
)
from dualtoken.tokenizer import UserError

PLAIN = ImageSamplingConfig(guidance_scale=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"guidance_scale": -1.0},
        {"guidance_scale": math.nan},
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"truncate_from_level": -1},
        {"guidance_schedule": "rising"},
        {"sampler": "dice"},
    ],
)
def test_options_outside_their_range_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ImageSamplingConfig(**wrong)


@pytest.mark.parametrize(("sampler", "tolerance"), [("inverse_cdf", 1e-3), ("gumbel", 0.015)])
def test_frequencies_follow_the_probabilities(sampler, tolerance):
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    options = ImageSamplingConfig(guidance_scale=1.0, sampler=sampler)
    codes = sample_codes(probabilities.log().expand(20_000, 4), uniforms, options, 0)
    counts = torch.bincount(codes, minlength=4) / 20_000
    torch.testing.assert_close(counts, probabilities, atol=tolerance, rtol=0)


def test_gumbel_noise_is_gumbel_and_its_own_for_each_class():
    noise = gumbel_noise(torch.rand(300), 1000)
    assert noise.isfinite().all()
    # Mean and variance of the standard Gumbel distribution.
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5772), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.var(), torch.tensor(math.pi**2 / 6), atol=0.02, rtol=0)
    columns, rows = torch.corrcoef(noise.t()[:50]), torch.corrcoef(noise[:50])
    for correlations, count in ((columns, 300), (rows, 1000)):
        assert correlations.fill_diagonal_(0).abs().max() < 5 / count**0.5
    assert torch.equal(gumbel_noise(torch.zeros(1), 5), gumbel_noise(torch.zeros(1), 9)[:, :5])


def test_guidance_schedules_end_at_the_scale():
    for schedule, middle in (("constant", 3.0), ("linear", 2.0), ("cosine", 2.0)):
        options = ImageSamplingConfig(guidance_scale=3.0, guidance_schedule=schedule)
        scales = guidance_scales(options, 9)
        assert scales[0] == (3.0 if schedule == "constant" else 1.0)
        torch.testing.assert_close(scales[[4, 8]], torch.tensor([middle, 3.0]))
        assert (scales.diff() >= 0).all()
    assert guidance_scales(options, 1).tolist() == [3.0]


def test_the_extreme_random_numbers_give_possible_codes():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, 4)
    uniforms = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert sample_codes(logits, uniforms, PLAIN, 0).tolist() == [1, 2]


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(6, 9)
    options = ImageSamplingConfig(temperature=0.0)
    assert torch.equal(sample_codes(logits, torch.rand(6), options, 0), logits.argmax(-1))


def test_truncation_keeps_what_it_says():
    logits = torch.tensor([[0.1, 0.5, 0.25, 0.15]]).log()
    assert truncate(logits, 2, 1.0).isfinite().tolist() == [[False, True, True, False]]
    assert truncate(logits, 99, 1.0).isfinite().all()
    assert truncate(logits, 0, 0.5).isfinite().tolist() == [[False, True, False, False]]
    assert truncate(logits, 0, 0.6).isfinite().tolist() == [[False, True, True, False]]
    assert truncate(logits, 0, 1e-9).isfinite().sum() == 1


def test_truncation_starts_at_its_level():
    options = ImageSamplingConfig(top_k=1, truncate_from_level=1)
    logits = torch.tensor([[0.4, 0.6]]).log()
    uniforms = torch.tensor([0.1], dtype=torch.float64)
    assert [sample_codes(logits, uniforms, options, level).item() for level in (0, 1)] == [0, 1]


def test_guidance_formula():
    conditional, unconditional = torch.randn(2, 3, 5)
    logits = torch.cat([conditional, unconditional])
    torch.testing.assert_close(guide(logits, 1.0), conditional)
    torch.testing.assert_close(guide(logits, 0.0), unconditional)
    torch.testing.assert_close(guide(logits, 3.0), unconditional + 3 * (conditional - unconditional))


def test_streams_depend_on_seed_and_index_only():
    one = image_uniforms(7, 2, 4, 6)
    assert torch.equal(one, image_uniforms(7, 2, 4, 6))
    for other in (image_uniforms(7, 3, 4, 6), image_uniforms(8, 2, 4, 6), image_uniforms(2, 7, 4, 6)):
        assert not torch.isclose(one, other).any()
