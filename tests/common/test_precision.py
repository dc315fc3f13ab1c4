"""The switches of TF32 and bf16 inside fp32 operations: what is set inside, and what is left behind."""

import itertools
import threading
import warnings

import pytest
import torch

from dualtoken.common import precision
from dualtoken.common.precision import SWITCHES, fp32_products, read_switches

NEW = hasattr(torch._C, "_get_fp32_precision_getter")
needs_new = pytest.mark.skipif(not NEW, reason="torch before 2.9 has the old switches only")


@pytest.fixture(autouse=True)
def untouched():
    """Every test leaves the switches as torch sets them."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if NEW:
        for backend in ("cuda", "mkldnn"):
            for op in ("matmul", "all"):
                torch._C._set_fp32_precision_setter(backend, op, "none")
            torch._C._set_fp32_precision_setter("mkldnn", "conv", "none")
        torch._C._set_fp32_precision_setter("generic", "all", "none")


def effective() -> set[str]:
    """The precision of every operation; the old switches, which must be readable and agree."""
    old = {torch.get_float32_matmul_precision(), str(torch.backends.cudnn.allow_tf32)}
    old.add(str(torch.backends.cuda.matmul.allow_tf32))
    return old | ({torch._C._get_fp32_precision_getter(*one) for one in SWITCHES} if NEW else set())


EXACT = {"highest", "False"} | ({"ieee"} if NEW else set())


def old_high():
    torch.set_float32_matmul_precision("high")


def old_medium():
    torch.set_float32_matmul_precision("medium")


def old_cudnn_off():
    torch.backends.cudnn.allow_tf32 = False


def new_matmul():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def new_conv_off():
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def new_cudnn_parent():
    torch.backends.cudnn.fp32_precision = "tf32"


def new_everywhere():
    torch.backends.fp32_precision = "tf32"


def new_bf16_on_the_cpu():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


OLD_WAYS = [old_high, old_medium, old_cudnn_off]
NEW_WAYS = [new_matmul, new_conv_off, new_cudnn_parent, new_everywhere, new_bf16_on_the_cpu]
WAYS = [(one,) for one in OLD_WAYS + NEW_WAYS * NEW] + NEW * list(
    itertools.permutations(OLD_WAYS + NEW_WAYS, 2)
)


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "-".join(way.__name__ for way in ways))
def test_inside_all_is_exact_and_afterwards_as_it_was(ways):
    for way in ways:
        way()
    before = read_switches()
    with fp32_products():
        assert effective() == EXACT
        with fp32_products(), fp32_products():
            assert effective() == EXACT
        assert effective() == EXACT
    assert read_switches() == before


@needs_new
def test_a_switch_that_inherits_still_does_afterwards():
    torch.backends.fp32_precision = "tf32"
    with fp32_products():
        pass
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_restored_after_an_error():
    old_high()
    before = read_switches()
    with pytest.raises(ValueError, match="inside"), fp32_products():
        raise ValueError("inside")
    assert read_switches() == before


def test_exact_within_tf32_and_back():
    before = read_switches()
    with fp32_products("tf32"):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        with fp32_products():
            assert effective() == EXACT
            with fp32_products("tf32"):
                assert effective() == EXACT, "exact wins: another thread may rely on it"
        assert torch.backends.cuda.matmul.allow_tf32
        if NEW:
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee", "a CPU has no TF32"
    assert read_switches() == before


def test_threads_that_overlap_stay_exact_and_the_last_restores():
    old_high()
    before = read_switches()
    first_left, second_in, seen = threading.Event(), threading.Event(), []

    def second():
        with fp32_products():
            second_in.set()
            first_left.wait(10)
            seen.append(effective())

    with fp32_products():
        other = threading.Thread(target=second)
        other.start()
        assert second_in.wait(10)
    first_left.set()
    other.join(10)
    assert seen == [EXACT]
    assert read_switches() == before


def test_exact_inside_a_compiled_function():
    old_high()
    seen = []

    def backend(graph, example_inputs):
        def run(*inputs):
            seen.append(effective())
            return graph.forward(*inputs)

        return run

    def product(x):
        return x @ x

    @torch.compile(backend=backend)
    def exact(x):
        with fp32_products():
            return product(x) + 1

    before = read_switches()
    x = torch.eye(2)
    for _ in range(2):
        assert torch.equal(exact(x), x + 1)
    assert read_switches() == before
    assert seen
    assert all(one == EXACT for one in seen), seen


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fp32_products(), fp32_products("tf32"):
            pass


def test_a_cpu_that_is_exact_touches_no_switch(monkeypatch):
    """Other threads may be compiling: their guards hold the switches."""
    monkeypatch.setattr(precision, "_enter", lambda products: pytest.fail("a switch is touched"))
    torch.set_float32_matmul_precision("highest")
    with fp32_products(device=torch.device("cpu")):
        pass
    with pytest.raises(pytest.fail.Exception), fp32_products(device=torch.device("cuda")):
        pass
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(pytest.fail.Exception), fp32_products(device=torch.device("cpu")):
            pass
    finally:
        torch.set_float32_matmul_precision("highest")
