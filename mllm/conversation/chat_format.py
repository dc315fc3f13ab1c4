"""The strings around the turns of a conversation: DualToken's special tokens, or an LLM's chat template."""

from dataclasses import dataclass, fields

from ...common.errors import UserError, shown
from ...common.values import flag
from .special_tokens import ASSISTANT, BOS, END, USER


@dataclass(frozen=True)
class ChatFormat:
    """The strings around turns. Special tokens in them are parsed; those in a user's text never are.

    Args:
        start: before the first turn, with a default system prompt where the template adds one.
        system_start, system_end: around a system turn at the start, instead of `start` and the following
            turn's `user_start`. None: the template has no system role; the text precedes the user's.
        user_start, user_end: around a user's content.
        assistant_start: before an assistant's content; generation starts from it.
        end: the special token that ends an assistant's turn, the model's end of sequence.
        assistant_end_rest: after `end`, not trained on.
        answer_prefix, answer_suffix: white space around the assistant's text (not around an image), trained
            on.
        trim_system, trim_user, trim_assistant: drop white space at both ends of a turn's text.
    """

    start: str = BOS
    user_start: str = USER
    user_end: str = END
    assistant_start: str = ASSISTANT
    end: str = END
    assistant_end_rest: str = ""
    answer_prefix: str = ""
    answer_suffix: str = ""
    trim_user: bool = False
    trim_assistant: bool = False
    system_start: str | None = None
    system_end: str = ""
    trim_system: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), f"chat_format's {field.name}"
            if isinstance(field.default, bool):
                flag(value, name)
            elif not (isinstance(value, str) or value is field.default is None):
                raise UserError(f"{name} is {shown(value)}; give a string")

    @property
    def is_own(self) -> bool:
        """Whether this is DualToken's own format."""
        return self == OWN


#: DualToken's own format, for a language model without a chat template.
OWN = ChatFormat()
