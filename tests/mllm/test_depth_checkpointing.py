"""Gradient checkpointing covers the depth transformers: the same gradients from less memory."""

from __future__ import annotations

from typing import Any

import torch

from dualtoken.mllm import DualTokenForConditionalGeneration


def step(model: Any, states: torch.Tensor, codes: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """The gradients of a pixel branch's outputs, and the bytes that autograd kept for them."""
    kept: dict[int, int] = {}
    parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    branch = model.branches["pixel"]
    model.zero_grad()
    condition = {"pixel": codes, "semantic": codes}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model.branches.predict("pixel", states, condition)
    outputs.square().sum().backward()
    found = [one.grad.clone() for one in branch.depth_transformer.layers.parameters()]
    return found, sum(kept.values())


def test_the_gradients_are_the_same_and_less_is_kept() -> None:
    model = DualTokenForConditionalGeneration.from_pretrained("nano", load_visual_tokenizer=False).train()
    states = torch.randn(64, model.config.text_config.hidden_size)
    codes = torch.randint(0, 512, (64, 4))
    plain, plain_bytes = step(model, states, codes)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    recomputed, recomputed_bytes = step(model, states, codes)
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)
    assert recomputed_bytes < plain_bytes / 4
    model.gradient_checkpointing_disable()
    assert step(model, states, codes)[1] > recomputed_bytes * 4
