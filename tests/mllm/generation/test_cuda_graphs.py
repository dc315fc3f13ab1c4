"""Steps of the image loop as CUDA graphs: what would make torch skip them is looked for in the graphs.

torch skips a graph that writes to an input which is not marked as static, has an operator on the CPU, or one
that waits for the host; an input that is not static is copied at every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import _COMPILER_FNS, register_backend
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from transformers.cache_utils import DynamicCache

from dualtoken.mllm import ImageSamplingConfig
from dualtoken.mllm.generation.image_loop import ImageLoop
from dualtoken.mllm.gpu_proof import prove_cuda_graphs

TEXTS = ("how many blue square above the green circle left of it", "red")
LLMS = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": 6},
    "gemma2": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 6, "attn_implementation": "eager"},
}
OTHERS = [name for name in LLMS if name != "llama"]


@dataclass(frozen=True)
class Graph:
    """A graph as inductor gets it; inputs by their number."""

    inputs: int
    written: set[int]
    static: set[int]
    devices: set[str]
    incompatible: object


@pytest.fixture
def graphs() -> Iterator[list[Graph]]:
    """The graphs that the backend "spy" compiles: inductor's, run operator by operator."""
    found: list[Graph] = []

    def inner(graph, inputs, static_input_idxs=(), **_):
        nodes = list(graph.graph.nodes)
        order = {node: number for number, node in enumerate(n for n in nodes if n.op == "placeholder")}
        copies = [node for node in nodes if node.target == torch.ops.aten.copy_.default]
        values = [node.meta.get("val") for node in nodes]
        devices = {value.device.type for value in values if isinstance(value, torch.Tensor)}
        written = {order[node.args[0]] for node in copies if node.args[0] in order}
        stops = get_first_incompatible_cudagraph_node(graph)
        found.append(Graph(len(order), written, set(static_input_idxs), devices, stops))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    counters.clear()
    spy: Any = lambda graph, inputs: compile_fx(graph, inputs, inner_compile=inner)  # noqa: E731
    register_backend(spy, name="spy")
    yield found
    _COMPILER_FNS.pop("spy")
    torch._dynamo.reset()


def generate(model, processor, *texts, **options):
    conversations = [[{"role": "user", "content": text}] for text in texts]
    inputs = processor.apply_chat_template(conversations, add_generation_prompt=True)
    return model.generate(**inputs, generation_mode="image", guidance_scale=2.0, **options)


@pytest.mark.parametrize("llm", ["llama", *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_a_step_writes_to_static_inputs_only_and_is_compiled_once(make_model, processor, graphs, llm):
    settings = {"semantic_condition": "pixel", "visual_position": "learned"}
    model, top_p = make_model({"num_key_value_heads": 2, **LLMS[llm]}, **settings), 0.9
    requests = [(TEXTS, 5), (TEXTS[1:] * 2, 6)]
    for number, (texts, seed) in enumerate(requests):
        plain = generate(model, processor, *texts, seed=seed, top_p=top_p)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            compiled = generate(model, processor, *texts, seed=seed, top_p=top_p, compile="spy")
        assert torch.equal(compiled, plain)
    assert len(graphs) == 2
    assert not counters["graph_break"]
    for graph in graphs:
        assert graph.written
        assert graph.written <= graph.static
        assert graph.static == set(range(graph.inputs))  # weights and all others too
        assert graph.incompatible is None


@torch.no_grad()
@pytest.mark.parametrize("llm", ["gemma2", pytest.param("mistral", marks=pytest.mark.slow)])
def test_a_step_stays_on_the_device(make_model, graphs, llm):
    """On the meta device, so that whatever is on the CPU shows."""
    model = make_model({"num_key_value_heads": 2, **LLMS[llm]}, pixel_condition="semantic")
    model.detach_visual_tokenizer()
    model.to("meta")
    loop = ImageLoop(model, ImageSamplingConfig(guidance_scale=2.0, top_p=0.9), 2, 40, compile="spy")
    prompt, heads = DynamicCache(), model.config.text_config
    shape = 2, heads.num_key_value_heads, 9, getattr(heads, "head_dim", None) or 12
    for layer in range(heads.num_hidden_layers):
        prompt.update(torch.zeros(shape, device="meta"), torch.zeros(shape, device="meta"), layer)
    loop.decoder.cache.start_from(prompt, torch.zeros(4, dtype=torch.long, device="meta"))
    with torch._dynamo.config.patch(specialize_float=True):
        loop._sample_step(loop, model)
        loop._advance_step(loop, model)
    assert [graph.devices for graph in graphs] == [{"meta"}, {"meta"}]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_run_and_give_the_codes_of_the_plain_loop(dtype):
    prove_cuda_graphs("cuda", dtype)
