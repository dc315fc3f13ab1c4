"""What a device computes: bf16, attention, the code search, compiled code, and the small model end to end."""

from __future__ import annotations

import importlib.util
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ...common.devices import resolve_device
from ...common.errors import UserError, first_line
from ...common.packages import missing_package
from ..options import load_pipeline
from .finding import Finding, Level

if TYPE_CHECKING:
    from PIL import Image

SIZE = 1024  # of the square matrices that are multiplied
#: Relative error of a product of bf16 matrices with terms of both signs, summed in fp32.
BF16_ERROR = 0.02


def check_bf16() -> Iterator[Finding]:
    """Products in bf16: whether they are right, and how fast against fp32."""
    import torch

    device = resolve_device("auto")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator).to(device) for _ in range(2))
    exact = left @ right
    error = float(((left.bfloat16() @ right.bfloat16()).float() - exact).norm() / exact.norm())
    if not error < BF16_ERROR:
        yield Finding(
            "bf16",
            "failure",
            f"matrix products on {device} are wrong: relative error {error:.3f}",
            "run.precision: fp32",
        )
        return
    full = _seconds(lambda: left @ right)
    left, right = left.bfloat16(), right.bfloat16()
    ratio = full / _seconds(lambda: left @ right)
    text = f"matrix products on {device} are {ratio:.1f} times as fast as in fp32"
    remedy = "run.precision: fp32 is faster here" if ratio < 0.9 else ""
    yield Finding("bf16", "note" if remedy else "ok", text, remedy)


def _seconds(step: Callable[[], object], repeats: int = 5) -> float:
    import torch

    def once() -> float:
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(repeats))


def check_attention() -> Iterator[Finding]:
    """flash-attn, where there is a GPU, against torch's attention."""
    import torch

    if not torch.cuda.is_available():
        yield Finding("attention", "ok", "sdpa and eager; flash-attn needs a GPU")
        return
    if importlib.util.find_spec("flash_attn") is None:
        text = "sdpa and eager; flash-attn is faster for long rows"
        yield Finding("attention", "note", text, missing_package("flash_attn"))
        return
    from flash_attn import flash_attn_func

    query, key, value = torch.randn(3, 1, 256, 4, 64, device="cuda", dtype=torch.bfloat16).unbind()
    theirs = flash_attn_func(query, key, value, causal=True)
    query, key, value = (one.transpose(1, 2) for one in (query, key, value))
    ours = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    difference = float((theirs - ours).abs().max())
    if difference < 0.05:
        yield Finding("attention", "ok", f"sdpa and flash-attn, which differ by {difference:.4f} at most")
    else:
        yield Finding(
            "attention",
            "failure",
            f"flash-attn differs from torch's attention by {difference:.2f}",
            "run.attention: sdpa; reinstall flash-attn for this version of torch",
        )


def check_code_search() -> Iterator[Finding]:
    """The fused code search against the plain one, on every GPU."""
    import torch

    if not torch.cuda.is_available():
        yield Finding("code search", "ok", "the plain one; the fused kernel needs a GPU")
        return
    from ...tokenizer.quantizer.codebook import nearest_codes_in_chunks

    try:
        from ...tokenizer.quantizer.nearest_kernel import nearest_codes_fused
    except ImportError:
        yield Finding(
            "code search", "warning", "the plain one: Triton is not installed", "pip install triton"
        )
        return
    for index in range(torch.cuda.device_count()):
        vectors, book = (torch.randn(count, 32, device=f"cuda:{index}") for count in (2000, 16384))
        fused, plain = nearest_codes_fused(vectors, book), nearest_codes_in_chunks(vectors, book)
        share = float((fused == plain).float().mean())
        level: Level = "ok"
        remedy = ""
        if share < 0.999:
            level, remedy = "failure", "report it with the output of python -m torch.utils.collect_env"
        text = f"the fused kernel on GPU {index} chooses the plain search's code for {share:.2%} of vectors"
        yield Finding("code search", level, text, remedy)


def check_compiled_code() -> Iterator[Finding]:
    """torch.compile: a C++ compiler on the CPU; Triton and CUDA graphs on a GPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        yield Finding("compiled code", "note", "no C++ compiler: generation cannot be compiled (--compile)")
        return
    try:
        step = torch.compile(lambda x: (x * 2 + 1).relu(), mode="reduce-overhead" if on_gpu else None)
        x = torch.randn(64, device="cuda" if on_gpu else "cpu")
        for _ in range(3):  # compiled, recorded, replayed
            right = torch.allclose(step(x), (x * 2 + 1).relu())
    except Exception as error:  # the compiler's own errors are of many types
        reason = first_line(error)
        yield Finding(
            "compiled code", "warning", f"torch.compile fails: {reason}", "leave out --compile; see torch"
        )
        return
    what = "compiled code and CUDA graphs work" if on_gpu else "torch.compile works"
    yield Finding("compiled code", "ok" if right else "failure", what if right else "wrong results")


def _green_circle() -> Image.Image:
    from ...data_pipelines.scenes.scene import Scene, SceneObject, render

    return render(Scene(objects=(SceneObject("circle", "green", 0.5, 0.5, 0.3),)), 256)


def check_small_model() -> Iterator[Finding]:
    """nano, end to end on the chosen device: one answer and one image."""
    question, device = "What colour is the circle?", str(resolve_device("auto"))
    start = time.perf_counter()
    try:
        pipeline = load_pipeline("nano", device)
    except UserError as error:
        yield Finding("small model", "failure", f"nano cannot be loaded: {error}", "reinstall dualtoken")
        return
    answer = pipeline.answer(_green_circle(), question)
    image = pipeline.generate_images("a red circle", num_images=1, seed=0, progress=False)[0]
    seconds = time.perf_counter() - start
    right = "green" in answer.lower() and math.prod(image.size) > 0
    text = (
        f"nano on {device}: {question!r} about a green circle: {answer!r}; an image of "
        f"{image.size[0]} x {image.size[1]}; {seconds:.1f} s in all"
    )
    yield Finding("small model", "ok" if right else "failure", text)
