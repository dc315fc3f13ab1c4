"""Packed rows equal separate ones with every attention; depth transformers take any number of positions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ....common.errors import UserError
from ....common.loading.bounded_settings import ATTENTION
from ....mllm import DualTokenPipeline
from .evidence import Evidence, Row, Setting, at_most, evidence, left_out

TEXTS = ("What colour is the circle left of the small green star?", "How many objects are there?", "Yes.")
#: More than the 65,535 rows at which a fused kernel with one row for each position cannot be launched.
MANY_POSITIONS = 70_000
FEW_POSITIONS = 100
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


def prove(setting: Setting) -> Evidence:
    return evidence([*_packed_rows(setting), *_depth_rows(setting)])


def _packed_rows(setting: Setting) -> Iterator[Row]:
    for implementation in ATTENTION:
        for dtype, tolerance in TOLERANCE.items():
            name = f"relative difference of packed from separate rows, {implementation}, {dtype}"
            if implementation.startswith("flash") and dtype == "fp32":
                continue  # its kernels compute in half precision only
            try:
                pipeline = DualTokenPipeline.from_pretrained(
                    "nano", device=setting.device, dtype=dtype, attn_implementation=implementation
                )
            except UserError as error:
                yield left_out(name, str(error))
                continue
            yield at_most(name, round(_difference(pipeline), 5), tolerance)


@torch.no_grad()
def _difference(pipeline: DualTokenPipeline) -> float:
    """Of the logits of texts in one packed row from those of the texts alone, in units of their size."""
    model, tokenizer = pipeline.model, pipeline.processor.tokenizer
    ids = [torch.tensor(tokenizer(text).input_ids, device=model.device) for text in TEXTS]
    separate = torch.cat([_logits(model, one, torch.arange(len(one), device=model.device)) for one in ids])
    positions = torch.cat([torch.arange(len(one), device=model.device) for one in ids])
    packed = _logits(model, torch.cat(ids), positions)
    return float((packed - separate).norm() / separate.norm())


def _logits(model: torch.nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    return output.logits[0].float()


def _depth_rows(setting: Setting) -> Iterator[Row]:
    """Forward and backward pass of a depth transformer at many positions, against its first ones alone."""
    model = DualTokenPipeline.from_pretrained("nano", device=setting.device, dtype="fp32").model
    count = MANY_POSITIONS if setting.on_gpu else 10 * FEW_POSITIONS
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(count, model.config.text_config.hidden_size, generator=generator).to(setting.device)
    codes = {
        name: torch.randint(0, book.num_codes, (count, book.depth), generator=generator).to(setting.device)
        for name, book in model.config.codebooks.items()
    }
    for name in model.branches:
        many_states = states.clone().requires_grad_()
        many = model.branches.predict(name, many_states, codes)
        first = {key: value[:FEW_POSITIONS] for key, value in codes.items()}
        few = model.branches.predict(name, states[:FEW_POSITIONS], first)
        difference = float((many[:FEW_POSITIONS] - few).detach().norm() / few.detach().norm())
        yield at_most(f"relative difference at {count} positions, {name}", difference, 1e-4)
        many.square().mean().backward()
        finite = many_states.grad is not None and bool(many_states.grad.isfinite().all())
        yield Row(f"finite gradients at {count} positions, {name}", finite, "True", finite)
