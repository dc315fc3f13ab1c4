"""A tokenizer's chat template as fixed strings around turns, derived from its rendering of samples.

The template's program is not analysed: conversations of marks are rendered, the strings between the marks are
taken, and the result is verified on several other conversations.
"""

import logging
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...common.errors import first_line
from .chat_format import OWN, ChatFormat
from .messages import Message
from .rendering import render, segments_text
from .special_tokens import special_strings

logger = logging.getLogger(__name__)

SYSTEM, QUESTION, ANSWER, NEXT = "zqsystemqz", "zqquestionqz", "zqanswerqz", "zqnextqz"
_HINT = (
    "this is the text tokenizer of a DualToken model by itself: run `import dualtoken.mllm` before "
    "AutoProcessor.from_pretrained, and load the processor again"
)
#: DualToken's format as a template, for a tokenizer that is loaded without its processor: right for texts, an
#: error for images, which it would leave out.
OWN_TEMPLATE = "".join(
    line.strip()
    for line in """
    {{- '<|bos|>' -}}
    {%- for message in messages -%}
        {%- if message['role'] not in ['user', 'assistant'] -%}{{- raise_exception(HINT) -}}{%- endif -%}
        {{- '<|' + message['role'] + '|>' -}}
        {%- if message['content'] is string -%}
            {{- message['content'] -}}
        {%- else -%}
            {%- for part in message['content'] -%}
                {%- if part['type'] != 'text' -%}{{- raise_exception(HINT) -}}{%- endif -%}
                {{- part['text'] -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|end|>' -}}
    {%- endfor -%}
    {%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
    """.replace("HINT", f"'{_HINT}'").splitlines()
)
SAMPLES = (
    ("What colour is it?", "Red."),
    ("  Two\n\nlines \n", "\n A list:\n- one\n "),
    ("{{ braces }} <b>&amp;</b>", "1 < 2 [x]"),
)


class NotReproducible(Exception):
    """The template is not fixed strings around turns; the message names the difference."""


def derive_chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The format of a tokenizer's chat template; DualToken's own where that is impossible.

    That is: without a template, or, with a warning, where a template is not fixed strings around turns.
    Values that it computes (a date) are fixed now. An assistant's turn is rendered as in the middle of a
    conversation, so without a thinking block before the last answer.
    """
    if not tokenizer.chat_template or tokenizer.chat_template == OWN_TEMPLATE:
        return OWN
    try:
        chat_format = _derive(tokenizer)
        _verify(tokenizer, chat_format)
        return _with_system(tokenizer, chat_format)
    except NotReproducible as error:
        reason = str(error)
    except Exception as error:  # a template is a program, and may raise anything
        reason = first_line(error)
    logger.warning(
        "the chat template of %s cannot be used (%s); conversations use DualToken's own format instead",
        tokenizer.name_or_path or "the text tokenizer",
        reason,
    )
    return OWN


def _derive(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    asked = _apply(tokenizer, [QUESTION])
    before, user_end = _around(asked, QUESTION)
    assistant_start = _after(_apply(tokenizer, [QUESTION], True), asked, "the generation prompt")
    # The turn as it appears in history: some templates add text to the last answer that they later remove.
    history = _apply(tokenizer, [QUESTION, ANSWER, NEXT])
    head, rest = _around(history, ANSWER)
    answer_prefix = _after(head, before + QUESTION + user_end + assistant_start, "an answered question")
    turn_end = _around(_apply(tokenizer, [QUESTION, ANSWER]), ANSWER)[1]
    user_start = _after(_around(rest, NEXT)[0], turn_end, "the end of an answer")
    if not before.endswith(user_start):
        raise NotReproducible("the strings around the first question differ from those around later ones")
    position, end = _first_special(tokenizer, turn_end)
    answer_suffix = turn_end[:position]
    if (answer_prefix + answer_suffix).strip():
        raise NotReproducible("an answer is enclosed by more than white space and a special token")
    return ChatFormat(
        start=before[: len(before) - len(user_start)],
        user_start=user_start,
        user_end=user_end,
        assistant_start=assistant_start,
        end=end,
        assistant_end_rest=turn_end[position + len(end) :],
        answer_prefix=answer_prefix,
        answer_suffix=answer_suffix,
        trim_user=_apply(tokenizer, [f"\n {QUESTION} \n"]) == asked,
        trim_assistant=_apply(tokenizer, [QUESTION, f"\n {ANSWER} \n", NEXT]) == history,
    )


def _with_system(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> ChatFormat:
    """The format with the strings around a system turn; unchanged where the template has no such role."""
    try:
        rendered = _apply(tokenizer, [QUESTION], system=SYSTEM)
        before, rest = _around(rendered, SYSTEM)
        between, _ = _around(rest, QUESTION)
        trimmed = _apply(tokenizer, [QUESTION], system=f"\n {SYSTEM} \n") == rendered
        found = replace(chat_format, system_start=before, system_end=between, trim_system=trimmed)
        _verify(tokenizer, found, "  Be brief,\n\nplease. ")
    except Exception:  # many templates refuse the role, with various exceptions
        return chat_format
    # Some treat every role but the user's as the assistant's.
    as_answer = before.endswith(chat_format.assistant_start) and chat_format.end in between
    return chat_format if as_answer else found


def _verify(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, system: str | None = None) -> None:
    """Raise NotReproducible unless template and format agree on conversations of one to three questions."""
    contents = [content for pair in SAMPLES for content in pair]
    for turns in (1, 3, 5):
        for add_generation_prompt in (False, True):
            expected = _apply(tokenizer, contents[:turns], add_generation_prompt, system)
            segments = render(_messages(contents[:turns], system), add_generation_prompt, chat_format)
            if segments_text(segments) != expected:
                raise NotReproducible(f"a conversation of {turns} messages is rendered differently")


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    contents: list[str],
    add_generation_prompt: bool = False,
    system: str | None = None,
) -> str:
    """The template's rendering of the contents of user and assistant in turn."""
    options: Any = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return str(tokenizer.apply_chat_template(_messages(contents, system), **options))


def _messages(contents: list[str], system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _around(text: str, mark: str) -> tuple[str, str]:
    """The text before and after the only occurrence of `mark`."""
    if text.count(mark) != 1:
        raise NotReproducible("a message is left out, repeated or changed")
    before, _, after = text.partition(mark)
    return before, after


def _after(text: str, start: str, what: str) -> str:
    """`text` without its beginning `start`."""
    if not text.startswith(start):
        raise NotReproducible(f"{what} does not begin like the same text in another conversation")
    return text[len(start) :]


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, str]:
    """Index and string of the first special token in `text`; the longest of those that start there."""
    found = [(text.find(token), token) for token in special_strings(tokenizer) if token in text]
    if not found:
        raise NotReproducible("no special token ends an answer")
    return min(found, key=lambda one: one[0])
