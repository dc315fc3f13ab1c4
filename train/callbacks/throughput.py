"""How fast a run is and how much memory it takes: tokens/s, images/s, MFU, peak memory."""

from __future__ import annotations

import time

import torch

from ..backend.distributed import World
from ..planning.flops import Work, peak_tflops


class Throughput:
    """Adds up the work of all ranks between two log lines.

    Args:
        peak: TFLOP/s of one GPU; 0 looks it up by the GPU's name. Without one there is no MFU.
    """

    def __init__(self, world: World, peak: float = 0.0) -> None:
        self.world = world
        on_gpu = world.device.type == "cuda"
        known = peak_tflops(torch.cuda.get_device_name(world.device)) if on_gpu else None
        self.peak = peak or known
        self._sums, self._since = [0.0, 0.0, 0.0], time.perf_counter()

    def add(self, work: Work) -> None:
        """Of one local micro-batch."""
        for place, value in enumerate((work.tokens, work.images, work.flops)):
            self._sums[place] += value

    def read(self) -> dict[str, float]:
        """Since the last reading, over all ranks; every rank calls this."""
        sums = torch.tensor(self._sums, dtype=torch.float64, device=self.world.device)
        tokens, images, flops = self.world.sum(sums).tolist()
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        self._sums, self._since = [0.0, 0.0, 0.0], now
        metrics = {}
        if tokens:
            metrics["tokens_per_second"] = tokens / seconds
        if images:
            metrics["images_per_second"] = images / seconds
        if flops and self.peak and self.world.device.type == "cuda":
            metrics["mfu"] = flops / seconds / (self.peak * 1e12 * self.world.size)
        if self.world.device.type == "cuda":
            metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.world.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.world.device)
        return metrics
