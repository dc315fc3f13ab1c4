"""The chunked cross-entropy equals the plain one in value and gradients, alone and in the whole model."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dualtoken.mllm import losses
from dualtoken.mllm.assembly import liger
from dualtoken.mllm.linear_cross_entropy import Classifier, linear_cross_entropy
from dualtoken.mllm.losses import soft_capped, text_losses

T, W, N = 23, 12, 31


def inputs(dtype=torch.float64, rows=T, with_bias=True):
    """States, weight, bias, targets and row weights, some of them zero."""
    states, weight, bias = torch.randn(rows, W), torch.randn(N, W), torch.randn(N)
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (states, weight, bias)]
    row_weights = torch.rand(rows) * (torch.arange(rows) % 4 != 3)
    return *tensors[: 2 + with_bias], *([] if with_bias else [None]), torch.randint(N, (rows,)), row_weights


def plain(states, weight, bias, targets, row_weights=None, softcap=None):
    logits = soft_capped(functional.linear(states, weight, bias), softcap)
    losses = functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )
    return (losses if row_weights is None else losses * row_weights).sum(), losses


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, [tensor for tensor in tensors if tensor is not None])


@pytest.mark.parametrize("chunk_rows", [1, 5, T, 100, None])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_gradients_equal_the_plain_ones(chunk_rows, weighted, softcap, with_bias):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        *tensors, targets, row_weights = inputs(dtype, with_bias=with_bias)
        row_weights = row_weights if weighted else None
        ours, ours_each = linear_cross_entropy(
            tensors[0],
            tensors[1],
            targets,
            bias=tensors[2],
            row_weights=row_weights,
            softcap=softcap,
            chunk_rows=chunk_rows,
        )
        expected, expected_each = plain(*tensors, targets, row_weights, softcap)
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(ours, expected, **close)
        torch.testing.assert_close(ours_each, expected_each.detach(), **close)
        # The scale that a trainer puts on a loss: accumulation, a loss weight, one over a count.
        torch.testing.assert_close(
            gradients(ours * 0.37, *tensors), gradients(expected * 0.37, *tensors), **close
        )


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("chunk_rows", [7, None])
def test_bf16_is_as_good_as_the_plain_loss_in_bf16(autocast, chunk_rows):
    states, weight, _, targets, row_weights = inputs(torch.float32)
    exact = plain(states, weight, None, targets, row_weights)[0]
    exact_gradients = gradients(exact, states, weight)
    if not autocast:
        states, weight = (tensor.detach().bfloat16().requires_grad_() for tensor in (states, weight))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, each = linear_cross_entropy(
            states, weight, targets, row_weights=row_weights, chunk_rows=chunk_rows
        )
        rough, _ = plain(states, weight, None, targets, row_weights)
    assert (ours.dtype, each.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(ours, rough, rtol=1e-3, atol=0)
    for own, other, right in zip(
        gradients(ours, states, weight), gradients(rough, states, weight), exact_gradients, strict=True
    ):
        assert own.dtype == other.dtype == states.dtype
        assert (own - right).norm() < 1.5 * (other - right).norm()


def test_sums_over_many_chunks_keep_their_digits_in_bf16():
    """A thousand equal chunks: adding them up in bf16 would stop growing after 256."""
    states, weight = torch.ones(1000, 1).bfloat16(), torch.zeros(2, 1).bfloat16().requires_grad_()
    total, _ = linear_cross_entropy(states, weight, torch.zeros(1000, dtype=torch.long), chunk_rows=1)
    total.backward()
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[-500.0], [500.0]]))


def test_no_more_logits_than_a_chunk(monkeypatch):
    sizes = []
    linear = functional.linear

    def counted(*args):
        sizes.append(len(args[0]))
        return linear(*args)

    monkeypatch.setattr(functional, "linear", counted)
    states, weight, _, targets, _ = inputs()
    linear_cross_entropy(states, weight, targets, chunk_rows=9)
    assert sizes == [9, 9, 5]


def test_without_rows_every_gradient_is_zero():
    states, weight, bias, targets, row_weights = inputs(rows=0)
    total, each = linear_cross_entropy(states, weight, targets, bias=bias, row_weights=row_weights)
    total.backward()
    assert total == 0
    assert each.shape == (0,)
    assert states.grad.shape == (0, W)
    assert not weight.grad.any()
    assert not bias.grad.any()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_tensor_gets_no_gradient_and_the_other_the_same(frozen):
    states, weight, _, targets, _ = inputs()
    expected = gradients(plain(states, weight, None, targets)[0], states, weight)
    pair = [states.detach(), weight.detach()]
    pair[1 - frozen].requires_grad_()
    total, _ = linear_cross_entropy(*pair, targets, chunk_rows=5)
    total.backward()
    assert pair[frozen].grad is None
    torch.testing.assert_close(pair[1 - frozen].grad, expected[1 - frozen])


def test_without_gradients_the_losses_are_the_same():
    states, weight, _, targets, _ = inputs()
    with torch.no_grad():
        total, each = linear_cross_entropy(states, weight, targets, chunk_rows=5)
    assert not total.requires_grad
    torch.testing.assert_close(each, plain(states, weight, None, targets)[1].detach())
    assert not linear_cross_entropy(states.detach(), weight.detach(), targets)[0].requires_grad


def test_gradients_add_up_over_micro_batches():
    states, weight, _, targets, _ = inputs()
    plain(states, weight, None, targets)[0].backward()
    expected, weight.grad = weight.grad, None
    for part in (slice(0, 9), slice(9, T)):
        total, _ = linear_cross_entropy(states[part], weight, targets[part], chunk_rows=4)
        (total / 2).backward()
    torch.testing.assert_close(weight.grad * 2, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpoint(reentrant):
    states, weight, _, targets, _ = inputs()
    expected = gradients(plain(states, weight, None, targets)[0], states, weight)
    loss = checkpoint(
        lambda x, w: linear_cross_entropy(x, w, targets, chunk_rows=5)[0] * 3.0,
        states,
        weight,
        use_reentrant=reentrant,
    )
    loss.backward()
    torch.testing.assert_close([states.grad / 3, weight.grad / 3], list(expected))


def test_a_second_backward_pass_is_refused_not_wrong():
    states, weight, _, targets, _ = inputs()
    total, _ = linear_cross_entropy(states, weight, targets)
    (total * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()


# ---- modules


def test_the_classifier_is_a_linear_layer_with_a_loss():
    classifier = Classifier(W, N, bias=False)
    assert list(classifier.state_dict()) == ["weight"]
    states, targets = torch.randn(T, W), torch.randint(N, (T,))
    assert torch.equal(classifier(states), functional.linear(states, classifier.weight))
    total, _ = classifier(states, targets)
    torch.testing.assert_close(total, plain(states, classifier.weight, None, targets)[0])


def test_a_head_that_is_more_than_its_weight_is_called():
    """An adapter around the head, or a hook that changes its output, is part of the loss."""
    states, targets = torch.randn(T, W), torch.randint(N, (T,))
    head = nn.Linear(W, N)
    expected = plain(states, head.weight, head.bias * 2, targets)[0]

    class Adapter(nn.Linear):
        def forward(self, x):
            return super().forward(x) + self.bias

    adapter = Adapter(W, N)
    adapter.load_state_dict(head.state_dict())
    torch.testing.assert_close(text_losses(adapter, states, targets)[0], expected)
    head.register_forward_hook(lambda module, _, logits: logits + module.bias)
    torch.testing.assert_close(text_losses(head, states, targets)[0], expected)
    classifier = Classifier.of(nn.Linear(W, N))
    classifier.load_state_dict(adapter.state_dict())
    classifier.register_forward_hook(lambda module, _, logits: logits + module.bias)
    torch.testing.assert_close(text_losses(classifier, states, targets)[0], expected)


@pytest.mark.parametrize("kinds", [["text", "text_to_image", "interleaved"], ["text"], ["image only"]])
@pytest.mark.parametrize("shared_classifier", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_model_learns_as_with_plain_logits(
    make_model, processor, records, cached_image, monkeypatch, kinds, shared_classifier, softcap
):
    model = make_model(
        shared_classifier=shared_classifier, pixel_depth_weights=[1.0, 0.5, 0.0], text_loss_weight=2.0
    ).train()
    model.config.text_config.final_logit_softcapping = softcap
    records["image only"] = records["text_to_image"]
    batch = processor.collate([processor.encode_record(records[kind]) for kind in kinds])
    if kinds == ["image only"]:  # no text target at all
        batch["labels"] = batch["labels"].where(batch["labels"] == model.config.image_token_id, -100)

    def step():
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        return output, {name: parameter.grad for name, parameter in model.named_parameters()}

    def with_logits(head, states, targets, row_weights=None, softcap=None, num_classes=None):
        assert num_classes in (None, len(head.weight))  # no padding here
        total, each = plain(states, head.weight, None, targets, row_weights, softcap)
        return total, each.detach()

    output, learned = step()
    monkeypatch.setattr(losses, "cross_entropy", with_logits)
    expected, expected_gradients = step()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.pixel_depth_losses, expected.pixel_depth_losses)
    torch.testing.assert_close(output.semantic_depth_losses, expected.semantic_depth_losses)
    torch.testing.assert_close(learned, expected_gradients, rtol=1e-4, atol=1e-5)


# ---- Liger-Kernel, played by a fake: what is tested is when it is used


def install_liger(monkeypatch, function):
    package, middle, module = (ModuleType(name) for name in ("liger_kernel", "transformers", "functional"))
    module.liger_fused_linear_cross_entropy = function
    for name, part in (("", package), (".transformers", middle), (".transformers.functional", module)):
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", part)


def select():
    return liger.liger_cross_entropy.__wrapped__(torch.device("cpu"))


def test_a_liger_that_agrees_is_used(monkeypatch):
    def fake(states, weight, targets, bias, softcap, reduction, accum_dtype):
        assert (reduction, accum_dtype) == ("sum", torch.float32)
        return plain(states, weight, bias, targets, softcap=softcap)[0]

    install_liger(monkeypatch, fake)
    loss = select()
    states, weight, bias, targets, _ = inputs(torch.float32)
    torch.testing.assert_close(
        loss(states, weight, bias, targets, 2.0), plain(states, weight, bias, targets, None, 2.0)[0]
    )


def test_a_liger_that_disagrees_or_fails_gives_way(monkeypatch):
    install_liger(monkeypatch, lambda *args, bias, **options: 2 * plain(*args[:2], bias, args[2])[0])
    with pytest.warns(UserWarning, match="disagrees"):
        assert select() is None

    def older(states, weight, targets, bias, softcap, reduction):
        raise AssertionError("never reached")

    install_liger(monkeypatch, older)
    with pytest.warns(UserWarning, match="accum_dtype"):
        assert select() is None


def test_no_liger_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert select() is None
