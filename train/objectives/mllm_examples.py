"""Records with cached codes as examples of the unified model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.errors import shown
from ...data_pipelines.records import Record, RecordError, require_trainable
from ...data_pipelines.shards.sample_codec import CODE_PARTS, CodeShape
from ...mllm import drop_prompt
from ...mllm.batch_index import BatchIndex
from ...mllm.conversation.collation import IGNORE, EncodedRecord
from .base import naming
from .examples import Examples
from .long_text import can_split, split_text
from .record_limit import RecordLimit
from .turn_shuffling import shuffle_question_turns


@dataclass(frozen=True)
class MllmExamples(Examples):
    """Ids, labels and codes of records.

    A record without targets, one that is too long, and one with codes that do not fit the visual tokenizer
    cannot be used.

    Args:
        processor: the model's `DualTokenProcessor`.
        end: id of the token that ends an answer.
        prompt_dropout, shuffle_turns: as in the recipe.
        image_token: id of a visual position.
        losses: names of the losses whose targets are counted.
        splits_long_text: whether text longer than a row is split, see `long_text`; else it is refused.
    """

    processor: Any
    seed: int
    code_shape: CodeShape
    limit: RecordLimit
    end: int
    prompt_dropout: float
    shuffle_turns: bool
    image_token: int
    losses: tuple[str, ...]
    splits_long_text: bool = False

    def prepare(self, record: Record, draw: int) -> EncodedRecord:
        """Ids, labels and codes; of a text that is split, a random piece.

        RecordError for a record without targets, that is too long, or with codes that do not fit the visual
        tokenizer.
        """
        pieces = self.prepare_pieces(record, draw, self.limit.tokens)
        if len(pieces) == 1:
            return pieces[0]
        return pieces[int(np.random.default_rng((self.seed, draw, 1)).integers(len(pieces)))]

    def prepare_pieces(self, record: Record, draw: int, length: int) -> list[EncodedRecord]:
        require_trainable(record)
        self._check_images(record)
        splits = self.splits_long_text and can_split(record)
        if not splits:
            self.limit.check_before(record)
        rng = np.random.default_rng((self.seed, draw))
        messages = record.messages
        if self.shuffle_turns and not record.metadata.get("ordered"):
            messages = shuffle_question_turns(messages, random.Random(draw))
        with naming(record):
            if rng.random() < self.prompt_dropout:
                messages = drop_prompt(messages)
            example = self.processor.encode_record(messages)
            pieces = [example]
            if splits:
                longest = min(length, self.limit.tokens)
                pieces = split_text(messages, example, longest, self.processor.encode_record)
        # The end of an answer is not a useful target if the text tokenizer drops the answer itself.
        unimportant = (IGNORE, self.end)
        useful = [piece for piece in pieces if np.isin(piece.labels, unimportant, invert=True).any()]
        for piece in pieces:
            self.limit.check(record, len(piece))
        if not useful:
            raise RecordError(f"Record {shown(record.id)} has nothing to learn: its answers have no tokens")
        return useful

    def _check_images(self, record: Record) -> None:
        """Raise RecordError for images without codes, or with codes that do not fit the visual tokenizer."""
        for part in record.image_parts():
            if "pixel_codes" not in part:
                raise RecordError(
                    f"Record {shown(record.id)} holds an image without codes: run `dualtoken tokenize` first"
                )
            for field in CODE_PARTS:
                problem = self.code_shape.problem(field, np.asarray(part[field]))
                if problem is not None:
                    raise RecordError(f"Record {shown(record.id)}: {problem}")

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        lengths = [len(example) for example in examples]
        return self.with_facts(dict(self.processor.collate(examples)), lengths)

    def with_facts(self, batch: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
        """A batch with its index, the number of its targets, and the lengths of its documents."""
        index = BatchIndex.of(batch["input_ids"], batch["labels"], self.image_token)
        text, visual = float(len(index.text_rows)), float(len(index.visual_rows))
        counts = {"text": text, "pixel": visual, "semantic": visual}
        counts = {name: counts[name] for name in self.losses}
        return {**batch, "index": index, "counts": counts, "lengths": lengths}
