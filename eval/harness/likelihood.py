"""Teacher-forced log-likelihood of answers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ...common.machine import suitable_threads
from ...mllm import DualTokenPipeline
from ...mllm.conversation.collation import IGNORE


class AnswerLikelihood(NamedTuple):
    """Summed log-probability of an answer's tokens and its end, and whether each is the most likely one."""

    log_probability: float
    is_greedy: bool


@torch.inference_mode()
def answer_likelihoods(
    pipeline: DualTokenPipeline, conversations: Sequence[Sequence[Mapping[str, Any]]]
) -> list[AnswerLikelihood]:
    """The likelihood of the assistant's turn of each conversation, given the turns before it."""
    processor = pipeline.processor
    batch = processor.collate([processor.encode_record(messages) for messages in conversations])
    inputs = {name: value.to(pipeline.device) for name, value in batch.items()}
    targets = inputs.pop("labels")[:, 1:]
    with suitable_threads(pipeline.model, targets.numel()):
        logits = pipeline.model(**inputs).logits[:, :-1].float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    sums = -losses.view(targets.shape).sum(dim=1)
    greedy = (logits.argmax(dim=-1).eq(targets) | targets.eq(IGNORE)).all(dim=1)
    return [AnswerLikelihood(*pair) for pair in zip(sums.tolist(), greedy.tolist(), strict=True)]
