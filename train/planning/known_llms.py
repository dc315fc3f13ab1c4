"""Sizes of the language models that the recipes name, so that memory is planned without a download.

From the config.json that each is published with; keys are hub ids without "-Instruct".
"""

from __future__ import annotations

from typing import Any


def _sizes(
    model_type: str,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    tied: bool,
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


KNOWN_LLMS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _sizes("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "Qwen/Qwen2.5-1.5B": _sizes("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "Qwen/Qwen2.5-3B": _sizes("qwen2", 2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-7B": _sizes("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    "meta-llama/Meta-Llama-3-8B": _sizes("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "meta-llama/Llama-3.1-8B": _sizes("llama", 4096, 14336, 32, 32, 8, 128256, False),
}
