"""A judge of answers: any chat model of transformers, from a folder or the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.errors import UserError, first_line
from ..data.hub import snapshot
from ..harness.identity import checkpoint_checksum

_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


class LocalTextJudge:
    """A causal language model as a `TextJudge`: greedy replies to single messages.

    `where` is the folder of a saved model with a chat template, or its hub id. UserError without one.
    """

    def __init__(self, where: Path, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        folder = _folder(where)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, padding_side="left", trust_remote_code=False
            )
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{str(where)!r} holds no language model: {first_line(error)}") from error
        if not self._tokenizer.chat_template:
            raise UserError(f"{str(where)!r} has no chat template; give an instruction-tuned model as judge")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # Replaces the settings saved with the model, which may sample or penalise repetition.
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        self._model = model.to(device).eval()
        self.name = f"{where.name} sha256:{checkpoint_checksum(folder)}"

    @torch.inference_mode()
    def reply(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        inputs = self._tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            add_generation_prompt=True,
            tokenize=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,  # ignored by templates without it; a verdict is a few words
        ).to(self._model.device)
        ids = self._model.generate(**inputs, max_new_tokens=max_new_tokens)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]


def _folder(where: Path) -> Path:
    """The model's folder, downloaded first for a hub id."""
    folder = where.expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or len(where.parts) != 2:
        raise UserError(f"{str(where)!r} is neither a folder nor a hub id; give a saved chat model as judge")
    return snapshot(where.as_posix(), "model", _FILES, "give --judge local:FOLDER of a saved chat model")
