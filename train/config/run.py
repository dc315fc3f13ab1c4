"""Section `run`: length of the run, numerical settings, logging and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...common.limits import limited
from ...common.machine import has_fast_bf16


@dataclass(frozen=True)
class RunConfig:
    """Length of the run, numerical settings, logging and checkpoints.

    Args:
        steps: optimizer steps.
        precision: "bf16" keeps bf16 weights with fp32 masters in the optimizer (DeepSpeed),
            "bf16_autocast" keeps fp32 weights and does the matrix products in bf16 (quantization stays
            fp32 in all of them), and "auto" is bf16_autocast where the GPU, or without one the processor,
            multiplies matrices in bf16, else fp32; to resume on a machine of the other kind, name it.
        attention: implementation that transformers uses in training. On a CPU "eager" is up to 1.4 times as
            fast, because the backward pass of torch's fused kernel is slow there. "flash_attention_2" needs
            the package flash-attn, "flash_attention_3" flash-attn-3 and a Hopper GPU, "flex_attention" a GPU.
        gradient_checkpointing: recompute layers of the LLM, vision tower and depth transformers in the
            backward pass, for less memory. Quantizers are never recomputed.
        weight_average: export an exponential moving average of the weights with this decay (0.999 is usual)
            instead of the last ones; checkpoints hold both. None exports the last.
        zero_stage: DeepSpeed ZeRO stage, 0-3. Divided among the GPUs are: nothing, the optimizer's state (1),
            gradients too (2), weights too (3). bf16 needs a stage >= 1 (its optimizer at stage 0 drifts).
        deepspeed: further keys of DeepSpeed's configuration, merged into the trainer's at every depth, for
            example ``{zero_optimization: {reduce_bucket_size: 100000000}}``. Keys that the trainer sets are
            refused. With precision bf16, gradients are summed over micro-batches and processes in fp32, which
            takes 4 bytes for each trained parameter (at stages 2 and 3 divided among the GPUs);
            ``{data_types: {grad_accum_dtype: bf16}, communication_data_type: bf16}`` saves half of that, and
            loses small gradients among large ones.
        offload: what ZeRO keeps in the machine's memory instead of the GPU's: the optimizer's state and step
            (stage 1-3), or the weights too ("all", stage 3).
        threads: CPU threads per process; 0 is torch's choice, but one for a small model whose threads would
            spin while they wait for one another.
        save_every: steps between checkpoints; 0 writes only the last one.
        async_save: write checkpoints in the background. Training waits only for a copy of its state in host
            memory, which takes as much of it as the process's files take on disk; the last checkpoint is
            waited for. False writes them while training waits.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        keep_best: also keep the checkpoint with the lowest loss (the validation loss where there is one, else
            the mean training loss since the checkpoint before); ``checkpoints/best.json`` names it.
        export_dtype: number format of the exported weights. Codes depend on the weights' last bits, so a
            tokenizer that is to ship in bf16 must be exported in bf16 before codes are cached with it.
        spike_factor: a step whose gradient norm is above this many times the median of the last steps' norms
            is skipped (10 is usual); 0 lets every finite step pass. A step with a non-finite loss or norm is
            always skipped.
        max_skipped: the run stops with an error after this many skipped steps in a row.
        timeout_minutes: a process that waits longer than this for the others, or for data, ends with an error
            that names its rank and what it was doing.
        peak_tflops: of one GPU in the run's precision, for the model FLOPs utilisation in the log; 0 looks
            the GPU up by its name.
        wandb_project: also log to this project of Weights & Biases (the package wandb must be installed).
        stop_after: stop cleanly, with a checkpoint, once this many steps are done; 0 runs to the end. The
            schedule is that of the complete run, so the same recipe without it resumes as if it had never
            stopped.
    """

    steps: int = limited(least=1, most=10**9)
    gradient_accumulation_steps: int = limited(1, least=1, most=65_535)
    precision: Literal["fp32", "bf16", "bf16_autocast", "auto"] = "fp32"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    gradient_checkpointing: bool = False
    weight_average: float | None = limited(None, above=0.0, below=1.0)
    zero_stage: int = limited(0, least=0, most=3)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    offload: Literal["none", "optimizer", "all"] = "none"
    threads: int = limited(0, least=0, most=1024)
    log_every: int = limited(10, least=1, most=10**9)
    save_every: int = limited(500, least=0, most=10**9)
    async_save: bool = False
    keep_checkpoints: int = limited(2, least=1, most=10_000)
    keep_best: bool = True
    export_dtype: Literal["fp32", "bf16"] = "fp32"
    spike_factor: float = limited(0.0, least=0.0, most=1e9)
    max_skipped: int = limited(10, least=1, most=10**9)
    timeout_minutes: float = limited(30.0, above=0.0, most=100_000.0)
    peak_tflops: float = limited(0.0, least=0.0, most=1e9)
    wandb_project: str | None = None
    stop_after: int = limited(0, least=0, most=10**9)

    def __post_init__(self) -> None:
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16_autocast" if has_fast_bf16() else "fp32")
