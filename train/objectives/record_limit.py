"""The longest record, in tokens, and in characters before it is tokenized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.errors import shown
from ...data_pipelines.records import Record, RecordError
from ...mllm import DualTokenForConditionalGeneration
from ...mllm.language_model import context_length

_UNSTATED_CONTEXT = 32_768  # tokens of a record, for a language model that states no context


@dataclass(frozen=True)
class RecordLimit:
    """The longest record, in tokens.

    Args:
        setting: the source of the limit, for messages.
        characters: the most that one token can stand for.
        positions: tokens of one image.
    """

    tokens: int
    setting: str
    characters: int
    positions: int

    @classmethod
    def of(cls, model: DualTokenForConditionalGeneration, processor: Any, max_length: int) -> RecordLimit:
        """The language model's context, or `max_length` if that is smaller and not 0."""
        context = context_length(model.config.text_config)
        if context is None:
            tokens, setting = max_length or _UNSTATED_CONTEXT, "data.max_length"
        elif 0 < max_length < context:
            tokens, setting = max_length, "data.max_length"
        else:
            tokens, setting = context, "the language model's context"
        longest = max(map(len, processor.tokenizer.get_vocab()))
        return cls(tokens, setting, longest, processor.num_positions)

    def check_before(self, record: Record) -> None:
        """Raise RecordError for a record with too many characters: tokenizing it could take gigabytes."""
        characters = sum(map(len, record.texts()))
        self.check(record, len(record.image_parts()) * self.positions + characters // self.characters)

    def check(self, record: Record, length: int) -> None:
        """Raise RecordError if a record of at least this many tokens is too long."""
        if length > self.tokens:
            raise RecordError(
                f"Record {shown(record.id)} has {length} tokens or more, {self.setting} is {self.tokens}"
            )
