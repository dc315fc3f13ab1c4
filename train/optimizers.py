"""Parameter groups, AdamW and Muon, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..common.errors import UserError
from .backend.deepspeed import build_muon
from .config.optimizer import OptimizerConfig
from .config.schedule import ScheduleConfig

# Part of the name of every parameter in a stack of transformer layers, in all models.
TRANSFORMER_LAYERS = ".layers."
# Part of the name of every low-rank factor (peft). They stay with AdamW: Muon makes the update of each matrix
# orthogonal, but not that of the product of two.
LOW_RANK_FACTOR = ".lora_"


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups by (Muon or AdamW, learning rate, weight decay or not) of all trained parameters, AdamW first.

    The longest key of ``config.lr_scale`` in a parameter's name sets the factor on its rate, which is that of
    its group in ``config.group_lr``. Matrices decay, vectors do not. With ``config.muon_lr`` every parameter
    and group has ``use_muon``, by which DeepSpeed chooses its optimizer.
    """
    members: dict[tuple[bool, float, bool], list[nn.Parameter]] = defaultdict(list)
    group_of = _named_groups(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matches = [key for key in config.lr_scale if key in name]
            scale = config.lr_scale[max(matches, key=len)] if matches else 1.0
            is_matrix = parameter.ndim == 2 and TRANSFORMER_LAYERS in name and LOW_RANK_FACTOR not in name
            by_muon = config.muon_lr is not None and is_matrix
            rate = config.muon_lr if by_muon else config.group_lr.get(group_of(name, parameter), config.lr)
            assert rate is not None
            members[by_muon, rate * scale, parameter.ndim >= 2].append(parameter)
    groups = []
    for (by_muon, rate, decays), parameters in sorted(members.items(), key=lambda item: item[0][0]):
        group: dict[str, Any] = {
            "params": parameters,
            "lr": rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        if config.muon_lr is not None:
            group["use_muon"] = by_muon
            group |= (
                # "gram" saves time on wide matrices only and needs fp16, which CPUs lack.
                {"momentum": config.muon_momentum, "ns_method": "standard"}
                if by_muon
                else {"betas": config.betas, "eps": config.eps}
            )
            for parameter in parameters:
                parameter.use_muon = by_muon  # type: ignore[attr-defined]
        groups.append(group)
    return groups


def _named_groups(model: nn.Module, config: OptimizerConfig) -> Callable[[str, nn.Parameter], str]:
    """A function for the group name of a parameter. UserError for rates of groups the model does not have."""
    require_groups(config, tuple(getattr(model, "GROUPS", ())))
    return getattr(model, "group_of", None) or (lambda name, parameter: "")


def require_groups(config: OptimizerConfig, allowed: tuple[str, ...]) -> None:
    """Raise UserError for learning rates of groups that are not allowed."""
    unknown = sorted(set(config.group_lr) - set(allowed))
    if unknown:
        raise UserError(
            f"optimizer.group_lr names {', '.join(unknown)}; this model has the groups "
            f"{', '.join(allowed) or 'none (use optimizer.lr_scale)'}"
        )


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, or DeepSpeed's Muon together with AdamW; both work at every ZeRO stage."""
    groups = parameter_groups(model, config)
    adamw: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.muon_lr is None:
        return torch.optim.AdamW(groups, **adamw)
    return build_muon(groups, adamw)


def has_same_groups(model: nn.Module, one: OptimizerConfig, other: OptimizerConfig) -> bool:
    """Whether both configurations make the same parameter groups, so that their states are compatible."""
    groups = [
        [[id(parameter) for parameter in group["params"]] for group in parameter_groups(model, config)]
        for config in (one, other)
    ]
    return groups[0] == groups[1] and (one.muon_lr is None) == (other.muon_lr is None)


class GroupSettings:
    """The settings of a new optimizer's groups, as given by the recipe.

    Loading a checkpoint overwrites them with those of its run; `use` restores them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]

    def use(self, optimizer: Any, scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
        """Apply these settings to `optimizer`, with the learning rates at the current step of `scheduler`."""
        scheduler.base_lrs = [settings["lr"] for settings in self._groups]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        rates = [peak * factor for peak, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, settings, rate in zip(optimizer.param_groups, self._groups, rates, strict=True):
            group.update({**settings, "initial_lr": settings["lr"], "lr": rate})
        scheduler._last_lr = rates


def learning_rate_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """The factor on the peak learning rate at optimizer step ``step``, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    if config.kind == "wsd":
        decay_steps = max(1, round(total_steps * config.decay_share))
        left = min(1.0, max(0, total_steps - step) / decay_steps)
        return config.final_ratio + (1 - config.final_ratio) * left
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    shape = 1 - progress if config.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_ratio + (1 - config.final_ratio) * shape


def build_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, config: ScheduleConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total_steps, config)
    )
