"""Codebook health during training: metrics for the log, and alarms with cause and remedy."""

from __future__ import annotations

import math

from ....tokenizer import QuantizerConfig
from ....tokenizer.quantizer.residual_vq import CodebookHealth

#: Inputs per code that are needed before unused codes are meaningful.
_ENOUGH = 10
_LOW_USAGE = 0.5
_LOW_EVENNESS = 0.1
_USELESS_DEPTH = 0.95
_BLOWN_UP = 1.5


def health_metrics(branch: str, health: CodebookHealth) -> dict[str, float]:
    """Scalars for the log, named `BRANCH_WHAT/DEPTH`."""
    columns = {"usage": health.usage, "perplexity": health.perplexity, "error": health.error}
    metrics = {
        f"{branch}_{name}/{depth}": value
        for name, column in columns.items()
        for depth, value in enumerate(column.tolist(), start=1)
    }
    if health.rank_difference is not None:
        metrics[f"{branch}_rank_difference"] = health.rank_difference
    return metrics | {f"{branch}_restarts": float(health.restarts.sum())}


def health_summary(branch: str, health: CodebookHealth) -> str:
    """A short summary for the console, with the worst depth of each metric."""
    usage, error = float(health.usage.min()), float(health.error[-1])
    return f"{branch} codes {usage:.0%} used, error {error:.3f}"


def health_alarms(branch: str, health: CodebookHealth, config: QuantizerConfig) -> dict[str, str]:
    """Problems of a branch's codebooks: a message by a stable key for each."""
    alarms: dict[str, str] = {}
    errors = health.error.tolist()
    if health.rank_difference:
        alarms[f"{branch}/ranks"] = (
            f"{branch} codebooks differ between processes by {health.rank_difference:.3g} and will drift "
            "apart: stop and start again, which resumes from the newest checkpoint with equal ones"
        )
    if any(not math.isfinite(error) or error > _BLOWN_UP for error in errors):
        alarms[f"{branch}/blown-up"] = (
            f"{branch} codebooks diverged from the features (error {max(errors):.3g} of their variance): "
            "start them by k-means (tokenizer.unquantized_steps) and lower optimizer.lr"
        )
        return alarms
    for depth, (usage, perplexity, error) in enumerate(
        zip(health.usage.tolist(), health.perplexity.tolist(), errors, strict=True), start=1
    ):
        name = f"{branch} codebook, depth {depth}"
        if health.num_vectors < _ENOUGH * config.num_codes:
            continue
        if usage < _LOW_USAGE:
            remedy = (
                f"raise restart_threshold (now {config.restart_threshold:g}) or lower num_codes"
                if config.restart_unused_codes
                else "set restart_unused_codes"
            )
            alarms[f"{branch}/usage/{depth}"] = f"{name}: only {usage:.0%} of the codes are used: {remedy}"
        elif perplexity < _LOW_EVENNESS * usage * config.num_codes:
            alarms[f"{branch}/evenness/{depth}"] = (
                f"{name}: its codes carry no more than {perplexity:.0f} evenly used ones of "
                f"{config.num_codes}: the images hold much of the same, or the features vary too little "
                f"(lower tokenizer.{branch}_commitment_weight)"
            )
        before = 1.0 if depth == 1 else errors[depth - 2]
        if error > _USELESS_DEPTH * before:
            alarms[f"{branch}/error/{depth}"] = (
                f"{name}: takes away only {1 - error / max(before, 1e-12):.0%} of the error: its codes do "
                "not follow the features; lower decay, or start by k-means (tokenizer.unquantized_steps)"
            )
    return alarms
