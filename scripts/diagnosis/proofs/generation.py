"""Compiled generation is the plain one in CUDA graphs; an image does not depend on the rest of its batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from ....mllm import DualTokenPipeline
from ....mllm.gpu_proof import prove_batch_invariance, prove_cuda_graphs
from .evidence import Evidence, Row, Setting, at_least, evidence, left_out, proved

PROMPT, IMAGES = "a red circle", 16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prove(setting: Setting) -> Evidence:
    return evidence(_rows(setting))


def _rows(setting: Setting) -> Iterator[Row]:
    for name, dtype in DTYPES.items():
        yield proved(f"batch_invariant, {name}", partial(prove_batch_invariance, setting.device, dtype))
        if not setting.on_gpu:
            yield left_out(f"CUDA graphs, {name}", "needs a GPU")
            continue
        yield proved(
            f"batch_invariant and compiled, {name}",
            partial(prove_batch_invariance, setting.device, dtype, compile=True),
        )
        yield proved(f"CUDA graphs, {name}", partial(prove_cuda_graphs, setting.device, dtype))
        yield at_least(f"nano, times as fast when compiled, {name}", _speedup(setting.device, name), 1.0)


def _speedup(device: str, dtype: str) -> float:
    """Of compiled generation over the plain loop."""
    pipeline = DualTokenPipeline.from_pretrained("nano", device=device, dtype=dtype)
    inputs = pipeline.processor.apply_chat_template(
        [[{"role": "user", "content": PROMPT}]], add_generation_prompt=True
    ).to(device)
    options = {"generation_mode": "image", "num_return_sequences": IMAGES, "guidance_scale": 2.0, "seed": 0}
    seconds = {}
    for compiled in (False, True):
        for _ in range(4):  # compiled, warmed up, recorded, replayed
            start = time.perf_counter()
            pipeline.model.generate(**inputs, **options, compile=compiled)
            torch.cuda.synchronize()
            seconds[compiled] = time.perf_counter() - start
    return round(seconds[False] / seconds[True], 2)
