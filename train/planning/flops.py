"""FLOPs of a training step, computed from sizes, for the model FLOPs utilisation (MFU).

By the usual convention (PaLM, arXiv 2204.02311): 6 operations per weight and token, 2 forward and 4 backward
(2 for frozen weights), and the attention products; recomputation by gradient checkpointing does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# Dense bf16 peaks in TFLOP/s, from the vendors' data sheets; keys are parts of torch.cuda.get_device_name().
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}


def peak_tflops(device_name: str) -> float | None:
    """The peak of a GPU by its name; None for an unknown one."""
    name = max((name for name in PEAK_TFLOPS if name in device_name), key=len, default=None)
    return None if name is None else PEAK_TFLOPS[name]


@dataclass(frozen=True)
class Work:
    """Work of a micro-batch: tokens (text and visual positions), images, floating point operations."""

    tokens: float = 0.0
    images: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class ModelFlops:
    """Operations of forward and backward pass of the unified model, per unit of its input.

    Args:
        token: per token in the LLM's layers.
        token_pair: per token and token that it attends to.
        text_target: per trained text token in the output layer.
        visual_target: per trained visual position in both depth transformers.
    """

    token: float
    token_pair: float
    text_target: float
    visual_target: float

    @classmethod
    def of(cls, model: Any) -> ModelFlops:
        """From the parameters of a `DualTokenForConditionalGeneration`, trained and frozen."""
        config = model.config.text_config
        layers = [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]
        vocabulary = {id(parameter) for parameter in layers}
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention_width = config.num_attention_heads * head_size
        heads = [branch.depth_transformer for _, branch in model.branches.items()]
        return cls(
            token=sum(_flops(p) for p in model.language_model.parameters() if id(p) not in vocabulary),
            # Two products, each 2 operations forward and 4 backward.
            token_pair=12.0 * config.num_hidden_layers * attention_width,
            text_target=sum(_flops(p) for p in model.get_output_embeddings().parameters()),
            visual_target=sum(_head_flops(head, head.depth) for head in heads),
        )

    def of_batch(self, lengths: list[int], text_targets: float, visual_targets: float) -> float:
        """FLOPs for sequences of these lengths (causal: half of all pairs)."""
        pairs = sum(length * (length + 1) / 2 for length in lengths)
        return (
            self.token * sum(lengths)
            + self.token_pair * pairs
            + self.text_target * text_targets
            + self.visual_target * visual_targets
        )


def _flops(parameter: nn.Parameter) -> float:
    return parameter.numel() * (6.0 if parameter.requires_grad else 4.0)


def _head_flops(head: Any, depth: int) -> float:
    """FLOPs of one position: its `depth` inner positions pass all layers and one classifier each."""
    once = sum(_flops(p) for p in head.from_state.parameters())
    classifiers = sum(_flops(p) for p in head.classifiers.parameters()) / len(head.classifiers)
    layers = sum(_flops(p) for p in head.layers.parameters())
    return once + depth * (layers + classifiers)
