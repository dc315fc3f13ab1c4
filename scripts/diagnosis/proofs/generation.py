"""Generated images do not depend on compilation, and compiled steps really run as CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ....mllm import DualTokenPipeline
from .evidence import Evidence, Row, Setting, at_least, at_most, evidence, left_out

PROMPTS = ("a red circle", "two blue squares and a small green star")
IMAGES = 8


def prove(setting: Setting) -> Evidence:
    return evidence(_rows(setting))


def _rows(setting: Setting) -> Iterator[Row]:
    for dtype in ("fp32", "bf16"):
        pipeline = DualTokenPipeline.from_pretrained("nano", device=setting.device, dtype=dtype)
        plain, seconds = _timed(pipeline)
        yield Row(f"seconds for {len(PROMPTS)} images, {dtype}", round(seconds, 3))
        again, _ = _timed(pipeline)
        yield at_least(f"share of codes equal when repeated, {dtype}", _agreement(again, plain), 1.0)
        if not setting.on_gpu:
            yield left_out(f"compiled, {dtype}", "CUDA graphs need a GPU")
            continue
        yield from _compiled_rows(pipeline, plain, seconds, dtype)


def _compiled_rows(pipeline: DualTokenPipeline, plain: Tensor, seconds: float, dtype: str) -> Iterator[Row]:
    from torch._dynamo.utils import counters

    counters.clear()
    for _ in range(3):  # compiled, recorded, replayed
        compiled, faster = _timed(pipeline, compile=True)
    # In bf16 a fused step rounds less often, and one other code changes all that follow.
    agreement = _agreement(compiled, plain)
    if dtype == "fp32":
        yield at_least("share of codes equal when compiled, fp32", agreement, 0.999)
    else:
        yield Row("share of codes equal when compiled, bf16", round(agreement, 4))
    skips = sum(counters["inductor"].get(name, 0) for name in ("cudagraph_skips",))
    yield at_most(f"steps that were not CUDA graphs, {dtype}", skips, 0)
    yield at_least(f"times as fast when compiled, {dtype}", round(seconds / faster, 2), 1.0)


def _timed(pipeline: DualTokenPipeline, **options: bool) -> tuple[Tensor, float]:
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    inputs = pipeline.processor.apply_chat_template(conversations, add_generation_prompt=True)
    inputs = inputs.to(pipeline.device)
    start = time.perf_counter()
    tokens = pipeline.model.generate(**inputs, generation_mode="image", seed=5, guidance_scale=2.0, **options)
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize()
    return tokens.cpu(), time.perf_counter() - start


def _agreement(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())
