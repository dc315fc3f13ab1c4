"""The calculated memory: parameters counted right, activations as autograd keeps them, stages in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dualtoken.common.errors import UserError
from dualtoken.mllm.depth_transformer import DepthTransformer
from dualtoken.mllm.settings import CodebookConfig, DepthTransformerConfig
from dualtoken.mllm.visual_embedding import FrozenCodebook
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.planning.estimate import (
    GPUS,
    SETTINGS,
    Estimate,
    depth_head_bytes,
    llm_config,
    llm_layer_bytes,
)
from dualtoken.train.planning.flops import ModelFlops, peak_tflops

from ..conftest import Chain

RECIPES = Path(__file__).parents[3] / "train" / "recipes"


def kept_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "kv_heads"), [("llama", 4), ("qwen2", 2)])
def test_activations_of_a_layer_are_those_that_autograd_keeps(
    kind: str, kv_heads: int, dtype: torch.dtype
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "vocab_size": 100}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    kept = []
    for layers in (1, 3):
        config = AutoConfig.for_model(
            kind, **sizes, **ids, num_key_value_heads=kv_heads, num_hidden_layers=layers
        )
        model = AutoModelForCausalLM.from_config(config).to(dtype).train()
        inputs = torch.randn(2, 64, 256, dtype=dtype, requires_grad=True)
        kept.append(kept_bytes(model, partial(model.base_model, inputs_embeds=inputs, use_cache=False)))
    per_token = (kept[1] - kept[0]) / 2 / (2 * 64)
    assert per_token == pytest.approx(llm_layer_bytes(config, dtype.itemsize), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_a_depth_transformer(dtype: torch.dtype) -> None:
    sizes = DepthTransformerConfig(hidden_size=128, num_layers=3, num_heads=4, intermediate_size=512)
    codebook = CodebookConfig(num_codes=64, code_dim=32, depth=8)
    head = DepthTransformer(sizes, codebook, state_dim=256, shared_classifier=True).to(dtype)
    states = torch.randn(100, 256, dtype=dtype, requires_grad=True)
    codes = torch.randint(0, 64, (100, 8))
    kept = kept_bytes(head, lambda: head(states, codes, FrozenCodebook(codebook)))
    expected = depth_head_bytes(sizes, 8, dtype.itemsize)
    assert kept / 100 == pytest.approx(expected, rel=0.05)


def test_parameters_are_those_of_the_model_that_is_trained(chain: Chain, tmp_path: Path) -> None:
    """Nothing of the recipe's language model is loaded, whose vocabulary the configuration must then say."""
    path = chain.recipe("mllm", tmp_path / "run")
    recipe = parse_recipe(path)
    model: Any = build_objective(recipe)
    vocabulary = ["--mllm.llm.vocab_size", str(model.model.config.text_config.vocab_size)]
    for trained in ([], ["--mllm.trained", "[branches.pixel, branches.semantic.projector]"]):
        recipe = parse_recipe([*path, *vocabulary, *trained])
        objective = build_objective(recipe)
        sizes = Estimate.of(recipe).sizes
        assert sizes.trained == sum(p.numel() for p in objective.parameters() if p.requires_grad)
        assert sizes.total == sum(p.numel() for p in objective.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494e6),
        ("Qwen/Qwen2.5-7B-Instruct", 7616e6),
        ("meta-llama/Meta-Llama-3-8B", 8030e6),
    ],
)
def test_known_language_models_have_their_published_sizes(name: str, parameters: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llm_config(name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*_qwen2.5_0.5b.yaml")), ids=lambda path: path.stem)
def test_more_gpus_and_higher_stages_take_less(path: Path) -> None:
    estimate = Estimate.of(parse_recipe([str(path)]))
    for gpus in GPUS[1:]:
        states = [estimate.memory(stage, "none", gpus) for stage in (1, 2, 3)]
        assert states[0].gradients > states[1].gradients
        assert states[1].weights > states[2].weights
    for stage, offload in SETTINGS:
        totals = [estimate.memory(stage, offload, gpus).total for gpus in GPUS]
        assert totals == sorted(totals, reverse=True)
        kept, recomputed = (estimate.memory(stage, offload, 8, value).activations for value in (False, True))
        # The heads are not recomputed, and in packed rows every position may be theirs.
        assert kept > 1.5 * recomputed
    table = estimate.table()
    assert "ZeRO 3, all on CPU" in table
    assert "no visual tokenizer at" in table


def test_an_unavailable_language_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no configuration of a language model at .*nowhere.*mllm\.llm"):
        llm_config(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no section mllm"):
        Estimate.of(parse_recipe([str(RECIPES / "nano_tokenizer.yaml")]))


def test_a_rate_of_an_unknown_group_is_named() -> None:
    with pytest.raises(UserError, match=r"^optimizer\.group_lr names projector; this model has the groups"):
        Estimate.of(parse_recipe(["nano_sft", "--optimizer.group_lr.projector", "1e-4"]))


def test_operations_are_six_for_each_weight_and_token(chain: Chain, tmp_path: Path) -> None:
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "run")))
    model = objective.model
    layers = sum(p.numel() for p in model.language_model.base_model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    flops = ModelFlops.of(model)
    assert flops.token == 6 * (layers - embeddings)
    assert flops.text_target == 6 * embeddings  # tied
    assert flops.of_batch([10, 10], 0, 0) < 2 * flops.of_batch([10], 0, 0) + 1
    assert flops.of_batch([20], 0, 0) > flops.of_batch([10, 10], 0, 0)
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.0
    assert peak_tflops("NVIDIA H100 PCIe") == 756.0
    assert peak_tflops("Some CPU") is None
