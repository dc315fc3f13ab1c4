"""Section `mllm`: the unified model, and what of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.limits import limited
from ...mllm.assembly.adapters import LoraSettings
from ...mllm.settings import ModelSettings
from ...tokenizer.precision import EncodePrecision
from .paths import locate


@dataclass(frozen=True)
class MllmObjectiveConfig:
    """The unified model on records with cached codes.

    Args:
        llm: either a folder, hub id or GGUF file of a causal LLM, or the fields of a transformers config
            (with ``model_type``) to start from random weights; None is that of ``init_from``.
        visual_tokenizer: folder of the trained DualTokenizer; the codebooks are copied from it. None is that
            of ``init_from``.
        encode_precision: arithmetic that the cached codes were made in (``--encode-precision`` of ``dualtoken
            tokenize``), and in which the exported model encodes images: fp32, tf32 or bf16. None is that of
            the visual tokenizer.
        text_tokenizer: folder of the text tokenizer; None takes that of ``init_from``, or the LLM's own.
        model: what may be chosen of the model itself: depth transformers, conditions, loss weights. With
            ``init_from`` what is not named here is the saved model's; None is all of it, or the defaults.
        vocabulary_multiple: a new model's embedding and output layer get a multiple of this many rows, which
            GPUs multiply faster; the added ones are never predicted, and an LLM that has rows enough keeps
            them. 1 adds none; a saved model (``init_from``) stays as it is.
        prompt_dropout: probability that an image-generation prompt becomes the unconditional token
            (classifier-free guidance).
        shuffle_turns: question-answer turns about one image are shuffled anew at every visit, except in
            records whose metadata have "ordered": true, because a turn builds on the one before.
        trained: parts of the model that are trained, as beginnings of parameter names or shell patterns
            ([branches] warms projectors and depth transformers up); None trains all.
        lora: trains low-rank adapters instead of the LLM's weights, together with the projectors, the depth
            transformers and the special tokens; the exported model has them merged. None trains everything.
    """

    llm: str | dict[str, Any] | None = None
    visual_tokenizer: str | None = None
    encode_precision: EncodePrecision | None = None
    text_tokenizer: str | None = None
    model: ModelSettings | None = None
    vocabulary_multiple: int = limited(64, least=1, most=4096)
    prompt_dropout: float = limited(0.1, least=0.0, most=1.0)
    shuffle_turns: bool = False
    trained: list[str] | None = None
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        locate(self, "llm", "visual_tokenizer", "text_tokenizer")
