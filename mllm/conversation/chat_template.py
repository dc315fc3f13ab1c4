"""A tokenizer's chat template as fixed strings around turns, found from what it makes of samples.

Nothing of the template's program is read: marked conversations are rendered, the strings between the marks
are taken, and several other conversations have to come out the same by both ways.
"""

import logging
from dataclasses import replace

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
#: The own format as a template, for a tokenizer that is loaded without our processor: right for texts, an
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
    """The template is not fixed strings around turns; the message says where it differs."""


def derive_chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The format of a tokenizer's chat template; DualToken's own where there is none, or, with one warning,
    where its conversations are not fixed strings around turns.

    What a template computes (a date) is computed once, now. An assistant's turn is the one that the template
    shows in a conversation that continued, so without a thinking block before the last answer.
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
        "the chat template of %s cannot be used (%s); conversations take DualToken's own format instead",
        tokenizer.name_or_path or "the text tokenizer",
        reason,
    )
    return OWN


def _derive(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    asked = _apply(tokenizer, [QUESTION])
    before, user_end = _around(asked, QUESTION)
    assistant_start = _after(_apply(tokenizer, [QUESTION], True), asked, "the generation prompt")
    # The turn as it appears in history: some templates add to the last answer what they later remove.
    history = _apply(tokenizer, [QUESTION, ANSWER, NEXT])
    head, rest = _around(history, ANSWER)
    answer_prefix = _after(head, before + QUESTION + user_end + assistant_start, "an answered question")
    turn_end = _around(_apply(tokenizer, [QUESTION, ANSWER]), ANSWER)[1]
    user_start = _after(_around(rest, NEXT)[0], turn_end, "the end of an answer")
    if not before.endswith(user_start):
        raise NotReproducible("the first question is framed in another way than later ones")
    position, end = _first_special(tokenizer, turn_end)
    answer_suffix = turn_end[:position]
    if (answer_prefix + answer_suffix).strip():
        raise NotReproducible("an answer is framed by more than white space and a special token")
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
    """The format with what the template puts around a system turn; unchanged where it has no such role."""
    try:
        rendered = _apply(tokenizer, [QUESTION], system=SYSTEM)
        before, rest = _around(rendered, SYSTEM)
        between, _ = _around(rest, QUESTION)
        trimmed = _apply(tokenizer, [QUESTION], system=f"\n {SYSTEM} \n") == rendered
        found = replace(chat_format, system_start=before, system_end=between, trim_system=trimmed)
        _verify(tokenizer, found, "  Be brief,\n\nplease. ")
    except Exception:  # many templates refuse the role, each with an exception of its own
        return chat_format
    # Some treat every role but the user's as the assistant's, and frame it so.
    as_answer = before.endswith(chat_format.assistant_start) and chat_format.end in between
    return chat_format if as_answer else found


def _verify(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, system: str | None = None) -> None:
    """Raise NotReproducible unless conversations of one to three questions come out the same by both ways."""
    contents = [content for pair in SAMPLES for content in pair]
    for turns in (1, 3, 5):
        for add_generation_prompt in (False, True):
            expected = _apply(tokenizer, contents[:turns], add_generation_prompt, system)
            segments = render(_messages(contents[:turns], system), add_generation_prompt, chat_format)
            if segments_text(segments) != expected:
                raise NotReproducible(f"a conversation of {turns} messages is rendered in another way")


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    contents: list[str],
    add_generation_prompt: bool = False,
    system: str | None = None,
) -> str:
    """The template's rendering of contents, those of user and assistant in turn."""
    messages = _messages(contents, system)
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def _messages(contents: list[str], system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _around(text: str, mark: str) -> tuple[str, str]:
    """What comes before and after the one occurrence of `mark`."""
    if text.count(mark) != 1:
        raise NotReproducible("a message is left out, repeated or changed")
    before, _, after = text.partition(mark)
    return before, after


def _after(text: str, start: str, what: str) -> str:
    """`text` without its beginning `start`."""
    if not text.startswith(start):
        raise NotReproducible(f"{what} does not begin as elsewhere")
    return text[len(start) :]


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, str]:
    """Position and name of the first special token in `text`; the longest of those that start there."""
    found = [(text.find(token), token) for token in special_strings(tokenizer) if token in text]
    if not found:
        raise NotReproducible("no special token ends an answer")
    return min(found, key=lambda one: one[0])
