"""All that depends on DeepSpeed's internals. Only this file and deepspeed_config.py import DeepSpeed.

setup.py bounds its version, because much of what is used here is private.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial, wraps
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .deepspeed_config import check_config, one_optimizer_for_all_stages, with_buckets

# --- processes ----------------------------------------


def name_accelerator() -> None:
    """Name the CPU as accelerator if there is no GPU; otherwise DeepSpeed warns on stdout."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def join_processes(backend: str, timeout: timedelta) -> None:
    """Join the process group that the launcher's variables describe."""
    name_accelerator()
    import deepspeed

    _without_shared_memory_operator()
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)


def leave_processes() -> None:
    import deepspeed

    deepspeed.comm.destroy_process_group()


def _without_shared_memory_operator() -> None:
    """Keep DeepSpeed from compiling its shared-memory collective, which only tensor-parallel inference uses.

    On CPUs the first start of a run would compile for a minute or more, without a message. An empty table of
    compatible operators prevents it; nothing else uses that table.
    """
    import deepspeed.ops

    vars(deepspeed.ops)["__compatible_ops__"] = {}


# --- engine and optimizer ----------------------------------------


def partition(parameters: Iterable[nn.Parameter], config: dict[str, Any]) -> None:
    """Broadcast each parameter from rank 0 and partition it (ZeRO stage 3) before the next one is taken."""
    from deepspeed.runtime.zero import Init

    # With a module, as when DeepSpeed partitions a complete one: nothing but its parameters would differ.
    Init(module=nn.Module(), config_dict_or_path=config)._convert_to_zero_parameters(parameters)


def full_size(parameter: nn.Parameter) -> int:
    """The number of elements of a parameter, which may be partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def build_engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    config: dict[str, Any],
    read: Callable[[Path], Any],
) -> Any:
    """Wrap the model in DeepSpeed's engine.

    Args:
        read: reads a file of a checkpoint; DeepSpeed itself would unpickle it.
    """
    import deepspeed
    from deepspeed.runtime import torch_autocast

    check_config(config)
    # A process-wide mark of an earlier engine with autocast, by which this one's gradients would be reduced
    # in the format of their parameters.
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    config = with_buckets(config, model)
    with one_optimizer_for_all_stages():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config
        )
    read_by(engine, read)
    return engine


def read_by(engine: Any, read: Callable[[Path], Any]) -> None:
    """Make an engine read all files of checkpoints with this function.

    `load_checkpoint` reads only through the checkpoint engine unless a universal checkpoint is requested,
    which never happens here.
    """
    engine.checkpoint_engine.load = lambda path, map_location=None: read(Path(path))


def build_muon(groups: list[dict[str, Any]], adamw: dict[str, Any]) -> torch.optim.Optimizer:
    """Muon for the groups with ``use_muon``, AdamW with these settings for the others."""
    # Imported here: DeepSpeed prepares Muon's kernels on import.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if not torch.cuda.is_available():
        # DeepSpeed compiles its Newton-Schulz iteration, which on a CPU takes a C++ compiler.
        torch.compiler.set_stance("force_eager")
    return MuonWithAuxAdam(groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs=adamw)


def set_clipping(engine: Any, largest_norm: float) -> None:
    """Clip gradients at this norm; ZeRO otherwise keeps the one from the loaded checkpoint."""
    if engine.zero_optimization():
        engine.optimizer.clip_grad = largest_norm


def ask_before_updates(engine: Any, is_allowed: Callable[[], bool]) -> None:
    """Make the engine's optimizer call `is_allowed` before each update; a refused update does nothing.

    ZeRO computes the gradient norm inside its step, so the hook is in the step of the wrapped optimizer,
    which runs once for each of ZeRO's parameter groups.
    """
    optimizer = engine.basic_optimizer
    update = optimizer.step

    @wraps(update)
    def step(*args: Any, **kwargs: Any) -> Any:
        return update(*args, **kwargs) if is_allowed() else None

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # torch warns without it
    optimizer.step = step


def zero_gradient_norm(engine: Any) -> float | None:
    """The global gradient norm before clipping, available while ZeRO's optimizer steps, or None."""
    norm = engine.optimizer._global_grad_norm
    return None if norm is None else float(norm)


# --- the files of a checkpoint ----------------------------------------

#: Key of a parameter's fp32 master weights, next to the keys of its optimizer state.
MASTER = "fp32"
OPTIMIZER_FILES = "*_optim_states.pt"
MODEL_FILES = "*_model_states.pt"


@dataclass
class WrittenFiles:
    """The files that DeepSpeed wrote, failed to write, or that wait to be written; and its errors."""

    paths: list[Path] = field(default_factory=list)
    waiting: dict[Path, Callable[[], Any]] = field(default_factory=dict)
    errors: list[OSError | RuntimeError] = field(default_factory=list)


@contextmanager
def recorded_writing(engine: Any, snapshot: Callable[[Any], Any] | None = None) -> Iterator[WrittenFiles]:
    """Record the files that DeepSpeed writes in the block; collect errors instead of raising them.

    With `snapshot`, which copies a state, nothing is written: the files wait, as functions that write them.
    A process that left saving early would keep the others waiting.
    """
    writer, written = engine.checkpoint_engine, WrittenFiles()
    save = writer.save

    def save_and_note(state_dict: Any, path: str) -> None:
        try:
            if snapshot is not None:
                written.waiting[Path(path)] = partial(save, snapshot(state_dict), path)
                return
            save(state_dict, path)
        except (OSError, RuntimeError) as error:
            written.errors.append(error)
        written.paths.append(Path(path))

    writer.save = save_and_note
    try:
        yield written
    finally:
        del writer.save


def classes_in_files() -> list[Any]:
    """DeepSpeed's classes in its checkpoint files; none of them executes anything when it is loaded."""
    name_accelerator()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def model_file(folder: Path, stage: int) -> Path:
    """The file with the weights; at stage 3 that of rank 0."""
    return folder / f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt"


def trained_shapes(model_state: dict[str, Any]) -> list[dict[str, torch.Size]]:
    """The shape of every trained parameter by name, for each optimizer group."""
    shapes: list[dict[str, torch.Size]] = model_state["param_shapes"]
    return shapes


def frozen_weights(model_states: list[dict[str, Any]]) -> dict[str, Callable[[], Tensor]]:
    """Readers of the complete frozen parameters at stage 3, from the model files of all ranks."""
    fragments = [state["frozen_param_fragments"] or {} for state in model_states]

    def complete(name: str, shape: torch.Size) -> Tensor:
        flat = torch.cat([fragment[name].flatten() for fragment in fragments])
        return flat[: prod(shape)].view(shape)

    shapes = model_states[0]["frozen_param_shapes"] or {}
    return {name: partial(complete, name, shape) for name, shape in shapes.items()}


Piece = tuple[str, dict[str, Any], int, int]


def optimizer_pieces(
    saved: dict[str, Any], stage: int, shapes: list[dict[str, torch.Size]], ranks: int
) -> Iterator[Piece]:
    """(parameter name, vectors by key, first index, length) of each piece in one rank's optimizer file.

    The indices hold for every vector that is partitioned like the parameter.
    """
    saved = saved["optimizer_state_dict"]
    if stage < 3:  # each group of parameters is one vector, cut at equal distances
        for number, addresses in enumerate(saved["param_slice_mappings"]):
            state = saved["base_optimizer_state"]["state"].get(number, {})
            vectors = {MASTER: saved["single_partition_of_fp32_groups"][number], **state}
            for name, address in addresses.items():
                yield name, vectors, address.start, address.numel
        return
    for number, group in enumerate(shapes):  # each parameter is cut by itself, the last piece padded
        state = saved["optimizer_state_dict"]["state"].get(number, {})
        vectors, start = {MASTER: saved["fp32_flat_groups"][number], **state}, 0
        for name, shape in group.items():
            length = ceil(prod(shape) / ranks)
            yield name, vectors, start, length
            start += length


# --- this rank's partition of the optimizer ----------------------------------------


@dataclass(frozen=True)
class Share:
    """This rank's vector for one parameter group.

    pieces: (index in the vector, parameter name, first index in the parameter, count); the rest is padding.
    """

    shape: torch.Size
    pieces: list[tuple[int, str, int, int]]


def own_shares(engine: Any) -> list[Share]:
    """This rank's partition of the parameter groups under ZeRO stage 1, 2 or 3."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
        return [Share(flat.shape, _pieces_of_stage_3(engine, parameters)) for parameters, flat in groups]
    groups = zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    return [Share(flat.shape, _pieces_of_stage_1_or_2(engine, parameters)) for parameters, flat in groups]


def _pieces_of_stage_1_or_2(engine: Any, parameters: list[Any]) -> list[tuple[int, str, int, int]]:
    pieces = []
    for parameter in parameters:
        mapping = parameter._hp_mapping
        if mapping is not None:  # this rank holds a part of it
            address, within = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
            pieces.append((address.start, engine.param_names[parameter], within.start, within.numel))
    return pieces


def _pieces_of_stage_3(engine: Any, parameters: list[Any]) -> list[tuple[int, str, int, int]]:
    rank, ranks = _rank_and_size(engine.optimizer)
    pieces, start = [], 0
    for parameter in parameters:
        share = ceil(parameter.ds_numel / ranks)
        count = max(0, min(share, parameter.ds_numel - rank * share))
        pieces.append((start, engine.param_names[parameter], rank * share, count))
        start += share
    return pieces


def load_shares(engine: Any, masters: list[Tensor], states: dict[int, dict[str, Any]]) -> None:
    """Load this rank's master weights and optimizer state, by group, into ZeRO."""
    optimizer = engine.optimizer
    saved = optimizer.state_dict()  # in the layout of this run; keeps the settings of its groups
    all_ranks = [saved] * (_rank_and_size(optimizer)[0] + 1)
    if engine.zero_optimization_stage() == 3:
        saved["fp32_flat_groups"] = masters
        saved["optimizer_state_dict"]["state"] = states
        optimizer.load_state_dict(all_ranks)
        return
    saved["single_partition_of_fp32_groups"] = masters
    saved["base_optimizer_state"]["state"] = states
    optimizer.load_state_dict(all_ranks, load_from_fp32_weights=True)
    optimizer.update_lp_params()


def load_untrained(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Load frozen parameters and buffers, one at a time: partitioned ones (stage 3) are gathered for it."""
    from deepspeed.runtime.zero import GatheredParameters

    targets = engine.module.state_dict(keep_vars=True)
    if targets.keys() != weights.keys():
        raise RuntimeError(f"other weights: {sorted(targets.keys() ^ weights.keys())[:3]}")
    for name, target in targets.items():
        if target.requires_grad:
            continue
        partitioned = hasattr(target, "ds_id")
        with GatheredParameters([target], modifier_rank=0, enabled=partitioned), torch.no_grad():
            if not partitioned or torch.distributed.get_rank() == 0:
                values = weights[name]
                if values.shape != target.shape:
                    raise RuntimeError(f"{name} is {tuple(values.shape)}, not {tuple(target.shape)}")
                target.copy_(values)


def load_counters(engine: Any, state: dict[str, Any]) -> None:
    """Load the number of steps, the schedule and its learning rate from the content of a model file."""
    engine.global_steps = state["global_steps"]
    engine.global_samples = state["global_samples"]
    engine.skipped_steps = state["skipped_steps"]
    scheduler = engine.lr_scheduler
    scheduler.load_state_dict(state["lr_scheduler"])
    for group, rate in zip(engine.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _rank_and_size(optimizer: Any) -> tuple[int, int]:
    """This rank and the number of ranks among which the optimizer is partitioned."""
    group = optimizer.dp_process_group
    return torch.distributed.get_rank(group=group), torch.distributed.get_world_size(group=group)
