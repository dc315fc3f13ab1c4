"""Records of text that are longer than a row, split into pieces that fit.

A document, whose turns are all the assistant's, is split anywhere: each piece begins with the last token of
the one before it, so that every token but the first is a target once. A dialogue is split before a user's
turn, and a system turn at its start is repeated. Images, and turns that belong together, are never separated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ...common.errors import UserError
from ...data_pipelines.records import Record
from ...mllm.conversation.collation import EncodedRecord
from ...mllm.conversation.messages import Message

#: Characters of a record that is tokenized to be split; longer ones are refused before that.
MOST_CHARACTERS = 1 << 21
Encode = Callable[[Sequence[Message]], EncodedRecord]


def can_split(record: Record) -> bool:
    """Whether a record may be split: a document, or a dialogue whose turns do not depend on one another."""
    parts, roles = list(record.parts()), [message["role"] for message in record.messages]
    again = any(before == "assistant" != role for before, role in pairwise(roles))
    return (
        all(part["type"] == "text" for _, part in parts)
        and (set(roles) == {"assistant"} or (again and not record.metadata.get("ordered")))
        and sum(len(part["text"]) for _, part in parts) <= MOST_CHARACTERS
    )


def split_text(
    messages: Sequence[Message], example: EncodedRecord, length: int, encode: Encode
) -> list[EncodedRecord]:
    """Pieces of at most `length` tokens of a record that `can_split`.

    Args:
        example: the complete record, encoded.
        encode: encodes some of its messages.

    Errors:
        UserError for a question that is too long together with its answer.
    """
    if len(example) <= length:
        return [example]
    if all(message["role"] == "assistant" for message in messages):
        return _split_document(example, length)
    return _split_dialogue(messages, length, encode)


def _split_document(example: EncodedRecord, length: int) -> list[EncodedRecord]:
    """Pieces of nearly equal length that overlap by one token."""
    steps, most = len(example) - 1, max(1, length - 1)
    count = -(-steps // most)
    edges = [steps * number // count for number in range(count + 1)]
    return [
        EncodedRecord(example.input_ids[begin : end + 1], example.labels[begin : end + 1])
        for begin, end in pairwise(edges)
    ]


def _split_dialogue(messages: Sequence[Message], length: int, encode: Encode) -> list[EncodedRecord]:
    """As many exchanges in each piece as fit, in order."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    exchanges: list[list[Message]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        begins = message["role"] != "assistant" and (before is None or before["role"] == "assistant")
        if begins or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    pieces: list[EncodedRecord] = []
    waiting: list[Message] = []
    fits: EncodedRecord | None = None
    for number, exchange in enumerate(exchanges, 1):
        together = encode([*waiting, *exchange])
        if len(together) > length and fits is not None:
            pieces.append(fits)
            waiting = list(system)
            together = encode([*waiting, *exchange])
        if len(together) > length:
            raise UserError(
                f"question {number} and its answer have {len(together)} tokens, more than {length}: they "
                "cannot be split"
            )
        waiting, fits = [*waiting, *exchange], together
    return pieces if fits is None else [*pieces, fits]
