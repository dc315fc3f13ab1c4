"""A language model's own answers to many prompts, as records: text that keeps its language in fine-tuning.

Fine-tuning on images alone makes a language model forget how it answered. Its answers from before, mixed into
the data, prevent that; they need no download, and what they teach, the model knows already.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.arguments import integer, path
from ...common.errors import UserError, shown
from ...common.outputs import Inputs
from ...common.paths import read_bounded, regular_file
from ...common.values import whole_number
from ..convert.converter import Converter
from ..convert.samples import LARGEST_TEXT_FILE, Sample, add_licence_argument
from ..records import Record, assistant, user
from .prompts import prompts

MOST_NEW_TOKENS = 65_536


@dataclass
class RepliesConverter(Converter):
    """Greedy answers of the language model `model` to our prompts, or to those in the file `prompts_file`.

    An answer that is not finished after `max_new_tokens` is left out, because it would teach to stop
    anywhere.

    Args:
        model: GGUF file, folder or hub id of a language model with a chat template.
        count: of the prompts, the first ones; None for all.
        together: prompts that are answered in one batch.
    """

    kind = "replies"
    summary = "answers of a language model to prompts of many kinds, to be replayed while it is fine-tuned"
    example = "dualtoken prepare replies --model HuggingFaceTB/SmolLM2-135M-Instruct --output data/replies"

    model: str
    prompts_file: Path | None = None
    count: int | None = None
    max_new_tokens: int = 128
    together: int = 16
    licence: str = "unknown"

    def __post_init__(self) -> None:
        whole_number(self.max_new_tokens, "--max-new-tokens", 1, MOST_NEW_TOKENS)
        whole_number(self.together, "--together", 1, 4096)
        if self.count is not None:
            whole_number(self.count, "--count", 1, 10**9)
        self.name = f"answers of {self.model}"
        self.records_per_sample = self.together
        self.prompts = self._read_prompts()[: self.count]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--model", required=True, help="GGUF file, folder or hub id of the language model")
        add("--prompts", type=path, metavar="FILE", help="a prompt a line (default: ours, about a thousand)")
        add("--count", type=integer(1), help="only so many prompts (default: all)")
        add("--max-new-tokens", type=integer(1), default=cls.max_new_tokens, help="default: %(default)s")
        add("--together", type=integer(1), default=cls.together, help="prompts in a batch (%(default)s)")
        add_licence_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> RepliesConverter:
        length = args.max_new_tokens
        return cls(args.model, args.prompts, args.count, length, together=args.together, licence=args.licence)

    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "max_new_tokens": self.max_new_tokens, "together": self.together}

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()

    def inputs(self) -> Inputs:
        paths = {"--model": Path(self.model) if Path(self.model).exists() else None}
        return paths | ({} if self.prompts_file is None else {"--prompts": self.prompts_file})

    def total(self) -> int:
        return -(-len(self.prompts) // self.together)

    def samples(self) -> Iterator[Sample]:
        for number in range(self.total()):
            yield Sample(f"prompts {number * self.together} and following", number)

    def records(self, payload: int) -> Iterator[tuple[Record, str]]:
        start = payload * self.together
        asked = self.prompts[start : start + self.together]
        for number, (prompt, answer) in enumerate(zip(asked, self._answers(asked), strict=True), start):
            if answer:
                messages = [user(prompt), assistant(answer)]
                yield Record(f"reply-{number}", messages, {"task": "text", "source": self.name}), "train"

    def _answers(self, asked: list[str]) -> list[str | None]:
        """An answer to each prompt, None for one that is not finished."""
        import torch

        model, tokenizer = self._loaded()
        messages = [[{"role": "user", "content": prompt}] for prompt in asked]
        options: Any = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        batch = tokenizer.apply_chat_template(messages, padding=True, **options).to(model.device)
        end = tokenizer.eos_token_id
        with torch.inference_mode():
            ids = model.generate(
                **batch,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            )
        new = ids[:, batch["input_ids"].shape[1] :]
        finished = new.eq(end).any(dim=1).tolist()
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() if done else None for text, done in zip(texts, finished, strict=True)]

    def _loaded(self) -> tuple[Any, Any]:
        """The model on the best device, and its tokenizer, padding on the left; loaded once in a process."""
        if not hasattr(self, "_model"):
            from ...common.devices import resolve_device, resolve_dtype
            from ...mllm.assembly.llm import open_llm
            from ...mllm.assembly.tokenizers import load_text_tokenizer

            tokenizer = load_text_tokenizer(self.model)
            if not tokenizer.chat_template:
                raise UserError(f"--model {self.model} has no chat template; give an instruction-tuned model")
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            tokenizer.padding_side = "left"
            model, _ = open_llm(self.model)
            assert model is not None  # a name is always a trained model
            device = resolve_device("auto")
            self._model = (model.eval().to(device, resolve_dtype("auto", device)), tokenizer)
        return self._model

    def _read_prompts(self) -> list[str]:
        if self.prompts_file is None:
            return prompts()
        path = regular_file(self.prompts_file, "--prompts")
        try:
            lines = read_bounded(path, LARGEST_TEXT_FILE).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {shown(str(path))} cannot be read as UTF-8 text: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"--prompts {shown(str(path))} is empty; write a prompt on each line")
        return found
