"""DeepSpeed's configuration: what it refuses, and what it would choose for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...common.errors import UserError, one_line

#: Most gradients that are reduced at once, in numbers.
REDUCE_BUCKET = 200_000_000


def with_buckets(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The configuration with buckets no larger than the gradients: DeepSpeed allocates them completely."""
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    zero = {"reduce_bucket_size": max(1, min(REDUCE_BUCKET, trained)), **config["zero_optimization"]}
    return {**config, "zero_optimization": zero}


@contextmanager
def one_optimizer_for_all_stages() -> Iterator[None]:
    """Keep ZeRO's optimizer at stage 1 with bf16 weights and fp32 sums of gradients.

    DeepSpeed would choose its BF16_Optimizer, which has other checkpoints and takes a step with zero
    gradients when it is built.
    """
    from deepspeed.runtime.constants import BFLOAT16
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    choose = DeepSpeedEngine._do_optimizer_sanity_check

    def choose_zero(engine: Any, optimizer: Any) -> Any:
        choice = choose(engine, optimizer)
        return ZERO_OPTIMIZATION if choice == BFLOAT16 else choice

    DeepSpeedEngine._do_optimizer_sanity_check = choose_zero
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = choose


class _ReadKeys(dict[str, Any]):
    """A mapping that records which of its keys are read, also in its copies."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.seen: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.seen.add(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)


def check_config(config: dict[str, Any]) -> None:
    """Raise UserError for keys that DeepSpeed does not know, and for values that it refuses."""
    from deepspeed.runtime.config import DeepSpeedConfig

    keys = _ReadKeys(config)
    try:
        DeepSpeedConfig(keys)
    except Exception as error:  # pydantic's, assertions, and DeepSpeed's
        raise UserError(f"run.deepspeed: DeepSpeed refuses it: {one_line(str(error))}") from error
    unknown = sorted(set(config) - keys.seen)
    if unknown:
        raise UserError(
            f"run.deepspeed.{unknown[0]} is not a key of DeepSpeed's configuration; see "
            "https://www.deepspeed.ai/docs/config-json"
        )
