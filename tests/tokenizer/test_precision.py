"""Codes are made in the precision that the tokenizer names, whatever the program around it allows."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dualtoken.common.precision import fp32_products, read_switches
from dualtoken.tokenizer import DualTokenizer, UserError, VisualCodes

from .conftest import tiny_config

PRODUCTS = ("conv", "mm", "addmm", "bmm", "scaled_dot_product")
ENTRIES = ["encode", "forward", "get_image_features"]


@pytest.fixture
def tf32():
    """A program that allows TF32 in every way, as training scripts do."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision("highest")


class Seen(TorchDispatchMode):
    """The number formats of the operands of every product, and whether TF32 was allowed in it."""

    def __init__(self):
        super().__init__()
        self.products = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in func.__name__ for word in PRODUCTS):
            dtypes = {one.dtype for one in args if isinstance(one, torch.Tensor)}
            tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            self.products |= {(dtype, *tf32) for dtype in dtypes}
        return func(*args, **(kwargs or {}))


def products_of(model: DualTokenizer, images: torch.Tensor, entry: str) -> set:
    """Those up to the codes: `forward` and the embedding end where the semantic quantizer is done."""

    class Done(Exception):
        pass

    def stop(*_):
        raise Done

    with torch.no_grad(), Seen() as seen:
        if entry == "encode":
            model.encode(images)
            return seen.products
        hook = model.semantic_post_projection.register_forward_pre_hook(stop)
        with pytest.raises(Done):
            getattr(model, entry)(images)
        hook.remove()
    return seen.products


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("around", ["plain", "autocast"])
def test_fp32_is_fp32(tiny, images, entry, around):
    before = read_switches()
    with torch.autocast("cpu", torch.bfloat16, enabled=around == "autocast"):
        assert products_of(tiny, images, entry) == {(torch.float32, False, False)}
        assert torch.is_autocast_enabled("cpu") == (around == "autocast")
    assert read_switches() == before


@pytest.mark.parametrize("entry", ENTRIES)
def test_tf32_is_allowed_where_it_is_named_and_not_in_the_search(tiny, images, entry):
    tiny.config.encode_precision = "tf32"
    before = read_switches()
    seen = products_of(tiny, images, entry)
    # The search for the nearest code is the exact one.
    assert seen == {(torch.float32, True, True), (torch.float32, False, False)}
    assert read_switches() == before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("entry", ENTRIES)
def test_bf16_is_bf16_but_for_the_search(tiny, images, entry):
    tiny.config.encode_precision = "bf16"
    assert products_of(tiny, images, entry) == {(torch.bfloat16, False, False), (torch.float32, False, False)}
    output = tiny(images)
    assert output.pooled.dtype == output.reconstruction.dtype == torch.float32
    assert tiny.get_image_features(images).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_forward_in_eval_mode_gives_the_codes_of_encode(tiny, images, precision):
    tiny.config.encode_precision = precision
    for around in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=around):
            codes, encoded = tiny(images).codes, tiny.encode(images)
        assert torch.equal(codes.pixel, encoded.pixel)
        assert torch.equal(codes.semantic, encoded.semantic)


@pytest.mark.usefixtures("tf32")
def test_training_keeps_the_precision_of_the_program(tiny, images):
    with torch.autocast("cpu", torch.bfloat16):
        tiny.train()
        assert (torch.bfloat16, True, True) in products_of(tiny, images, "forward")


@pytest.mark.slow
@pytest.mark.usefixtures("tf32")
def test_compiled_encoding_is_exact(tiny, images):
    allowed = []

    def backend(graph, example_inputs):
        def run(*inputs):
            allowed.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return graph.forward(*inputs)

        return run

    expected, before = tiny.encode(images), read_switches()
    torch._dynamo.reset()
    codes = torch.compile(tiny.encode, backend=backend)(images)
    torch._dynamo.reset()
    assert torch.equal(codes.pixel, expected.pixel)
    assert torch.equal(codes.semantic, expected.semantic)
    assert set(allowed) == {(False, False)}
    assert read_switches() == before


def test_restored_after_images_that_are_refused(tiny):
    before = read_switches()
    with pytest.raises(UserError):
        tiny.encode(torch.zeros(1, 3, 5, 5))
    assert read_switches() == before


def test_the_setting_is_saved_and_can_be_overridden(tiny, tmp_path):
    tiny.config.encode_precision = "bf16"
    tiny.save_pretrained(tmp_path)
    assert DualTokenizer.from_pretrained(tmp_path).config.encode_precision == "bf16"
    loaded = DualTokenizer.from_pretrained(tmp_path, encode_precision="tf32")
    assert loaded.config.encode_precision == "tf32"
    with pytest.raises(UserError, match="encode_precision"):
        tiny_config(encode_precision="fp16")


def check_codes_on_a_gpu(model: DualTokenizer, images: torch.Tensor, device: torch.device) -> VisualCodes:
    """Codes made on a GPU in fp32, which do not depend on the program's switches."""
    model = model.to(device)
    exact = model.encode(images.to(device))
    with fp32_products("tf32"), torch.autocast(device.type, torch.bfloat16):
        again = model.encode(images.to(device))
    assert torch.equal(exact.pixel, again.pixel)
    assert torch.equal(exact.semantic, again.semantic)
    return exact


@pytest.mark.gpu
@pytest.mark.usefixtures("tf32")
def test_codes_of_a_gpu_are_those_of_the_cpu():
    model = DualTokenizer.from_pretrained("nano")
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model.encode(images)
    codes = check_codes_on_a_gpu(model, images, torch.device("cuda"))
    for name in ("pixel", "semantic"):
        same = getattr(codes, name).cpu() == getattr(expected, name)
        assert same.float().mean() > 0.98, "fp32 sums in another order move single codes, TF32 a tenth"
