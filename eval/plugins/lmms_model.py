"""A DualToken model for lmms-eval: batched answers, likelihoods of answers, several processes."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from ...common.errors import UserError
from ...mllm import DualTokenPipeline, normalise_messages
from ..harness.likelihood import answer_likelihoods
from .lmms import cut, generation_settings


class DualTokenLmms(lmms):
    """`--model_args pretrained=NAME,dtype=auto,device=auto`, with NAME as for `DualTokenPipeline`.

    `accelerate launch` with several processes gives each its share of the requests.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "nano",
        batch_size: int | str = 1,
        device: str | None = "auto",
        dtype: str = "auto",
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(f"unknown model_args {sorted(unknown)}; allowed: pretrained, dtype, device")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        kind = (device or "auto").partition(":")[0]
        if self._world_size > 1 and kind in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{self.accelerator.local_process_index}"
        resolved = dtype if dtype == "auto" else getattr(torch, dtype)
        self.pipeline = DualTokenPipeline.from_pretrained(pretrained, device=device or "auto", dtype=resolved)
        self.batch_size = int(batch_size)

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to each request, in order; requests with equal settings share batches."""
        order = sorted(range(len(requests)), key=lambda index: _settings_key(requests[index]))
        results: dict[int, GenerationResult] = {}
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="DualToken", unit="answer")
        for _, group in groupby(order, key=lambda index: _settings_key(requests[index])):
            indices = list(group)
            for start in range(0, len(indices), self.batch_size):
                chunk = indices[start : start + self.batch_size]
                for index, result in zip(chunk, self._answer([requests[n] for n in chunk]), strict=True):
                    results[index] = result
                bar.update(len(chunk))
        bar.close()
        return [results[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Summed log-probability of each continuation as the assistant's answer, and whether it is greedy."""
        results: list[tuple[float, bool]] = []
        for request in tqdm(requests, disable=self.rank != 0, desc="DualToken", unit="choice"):
            context, target, to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            content = [{"type": "image", "image": image} for image in to_visual(doc) or []]
            answer = target if isinstance(target, str) else target(doc)
            conversation = [
                {"role": "user", "content": [*content, {"type": "text", "text": context}]},
                {"role": "assistant", "content": answer.strip()},
            ]
            results += answer_likelihoods(self.pipeline, [conversation])
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported by this model")

    def _answer(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        conversations = []
        for request in requests:
            _, to_messages, _, doc_id, task, split = request.args
            conversations.append(normalise_messages(to_messages(self.task_dict[task][split][doc_id])))
        settings, stops = generation_settings(requests[0].args[2])
        inputs = self.pipeline.processor.apply_chat_template(conversations, add_generation_prompt=True)
        tokenizer = self.pipeline.processor.tokenizer
        if stops:
            settings |= {"stop_strings": stops, "tokenizer": tokenizer}
        ids = self.pipeline.model.generate(**inputs.to(self.device), generation_mode="text", **settings)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        counts = new.ne(tokenizer.pad_token_id).sum(dim=1).tolist()
        return [
            GenerationResult(text=cut(text, stops), token_counts=TokenCounts(output_tokens=count))
            for text, count in zip(texts, counts, strict=True)
        ]


def _settings_key(request: Instance) -> str:
    return json.dumps(request.args[2], sort_keys=True, default=str)
