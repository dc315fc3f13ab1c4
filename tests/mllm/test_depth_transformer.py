"""The depth transformer: causal over depth, cached == uncached, codebooks exact."""

import pytest
import torch

from dualtoken.mllm.depth_transformer import DepthTransformer
from dualtoken.mllm.settings import CodebookConfig, DepthTransformerConfig
from dualtoken.mllm.visual_embedding import FrozenCodebook

T, D, N, C, H = 5, 4, 11, 6, 20


def new_codebook(shared: bool) -> FrozenCodebook:
    codebook = FrozenCodebook(CodebookConfig(N, C, D, shared))
    codebook.assign(torch.randn(codebook.vectors.shape) * 4)
    return codebook


def new_head(shared_classifier: bool = True, condition_dim: int | None = None) -> DepthTransformer:
    head = DepthTransformer(
        DepthTransformerConfig(hidden_size=16, num_layers=3, num_heads=4, intermediate_size=24),
        CodebookConfig(N, C, D),
        state_dim=H,
        shared_classifier=shared_classifier,
        condition_dim=condition_dim,
    )
    head.reset(std=0.5)
    return head


@pytest.mark.parametrize("shared_codebook", [True, False])
@pytest.mark.parametrize("shared_classifier", [True, False])
@pytest.mark.parametrize("conditioned", [True, False])
def test_incremental_equals_teacher_forced(shared_codebook, shared_classifier, conditioned):
    codebook = new_codebook(shared_codebook)
    head = new_head(shared_classifier, C if conditioned else None)
    states, codes = torch.randn(T, H), torch.randint(N, (T, D))
    condition = torch.randn(T, C) if conditioned else None
    outputs = head(states, codes, codebook, condition)
    cache = head.new_cache(T)
    for _ in range(2):  # the cache is reused for the next position
        logits, total = head.first_step(states, condition, cache), torch.zeros(T, C)
        for depth in range(D):
            torch.testing.assert_close(logits, head.classify(outputs[:, depth], depth), rtol=1e-5, atol=1e-5)
            if depth + 1 < D:
                total = total + codebook.embed_depth(codes[:, depth], depth)
                logits = head.next_step(total, depth + 1, cache)


def test_a_depth_sees_only_the_codes_before_it():
    codebook, head = new_codebook(True), new_head()
    states, codes = torch.randn(T, H), torch.randint(N, (T, D))
    before = head(states, codes, codebook)
    changed = codes.clone()
    changed[:, 2] = (changed[:, 2] + 1) % N
    after = head(states, changed, codebook)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_condition_is_required_when_configured():
    head = new_head(condition_dim=C)
    with pytest.raises(ValueError, match="condition"):
        head(torch.randn(T, H), torch.randint(N, (T, D)), new_codebook(True))


@pytest.mark.parametrize("shared", [True, False])
def test_embed_is_the_scaled_sum_of_code_vectors(shared):
    codebook = new_codebook(shared)
    codes = torch.randint(N, (2, 3, D))
    tables = codebook.vectors.expand(D, N, C)
    expected = sum(tables[depth][codes[..., depth]] for depth in range(D)) * codebook.scale
    torch.testing.assert_close(codebook.embed(codes), expected)
    assert codebook.embed_per_depth(codes).shape == (2, 3, D, C)
    assert torch.isclose((codebook.vectors * codebook.scale).square().mean(), torch.tensor(1.0))


def test_codebooks_stay_fp32_and_untrained():
    codebook = new_codebook(False)
    vectors = codebook.vectors.clone()
    for cast in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()):
        cast(torch.nn.Sequential(codebook))
        assert codebook.vectors.dtype == torch.float32
        assert torch.equal(codebook.vectors, vectors)
    assert not list(codebook.parameters())
