"""Speed and memory of a run: tokens/s, images/s, MFU, peak memory."""

from __future__ import annotations

import time

import torch

from ..backend.distributed import World
from ..planning.flops import peak_tflops
from .base import Callback, TrainState


class Throughput(Callback):
    """Measures the work of all processes between two log lines.

    Args:
        peak: TFLOP/s of one GPU; 0 looks it up by the GPU's name. No MFU is logged for an unknown GPU.
    """

    def __init__(self, world: World, peak: float = 0.0) -> None:
        self.device, self.size = world.device, world.size
        self.on_gpu = world.device.type == "cuda"
        self.peak = peak or (peak_tflops(torch.cuda.get_device_name(world.device)) if self.on_gpu else None)
        self._since = time.perf_counter()

    def after_loading(self, state: TrainState) -> None:
        for batch in state.micro_batches:
            for name, value in vars(state.objective.work(batch.inputs)).items():
                state.metrics.record(name, value, reduce="sum")

    def on_log(self, state: TrainState) -> None:
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated(self.device) / 2**30
            state.metrics.record("peak_memory_gib", peak, reduce="max")
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now
        tokens, images, flops = (metrics.pop(name) for name in ("tokens", "images", "flops"))
        if tokens:
            metrics["tokens_per_second"] = tokens / seconds
        if images:
            metrics["images_per_second"] = images / seconds
        if flops and self.peak and self.on_gpu:
            metrics["mfu"] = flops / seconds / (self.peak * 1e12 * self.size)
