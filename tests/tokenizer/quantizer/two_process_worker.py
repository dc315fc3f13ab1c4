"""One of two processes that train quantizers together; run by test_residual_vq.py with rank, port and
folder.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from dualtoken.tokenizer import QuantizerConfig, ResidualQuantizer

CASES = {
    "shared": (QuantizerConfig(16, 8, 3, restart_unused_codes=False), 1),
    "separate": (QuantizerConfig(16, 8, 3, shared_codebook=False, restart_every=2, restart_threshold=0.5), 4),
    "staged": (QuantizerConfig(16, 8, 3, restart_every=1, restart_threshold=0.5), 2),
}


def main(rank: int, port: int, folder: str) -> None:
    """Initialise from and train on own vectors, and save the state before and after."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    for name, (config, steps) in CASES.items():
        quantizer = ResidualQuantizer(config).train()
        quantizer.staged = name == "staged"
        z = torch.randn(2, 4, 4, 8)
        quantizer.initialise_from(z)
        torch.save((quantizer.state_dict(), z), f"{folder}/{name}-start-{rank}.pt")
        for _ in range(steps):
            quantizer(z)
        quantizer.apply_updates()
        torch.save(quantizer.state_dict(), f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
