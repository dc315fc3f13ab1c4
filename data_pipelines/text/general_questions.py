"""Forty general questions without images, each with an exact rule for its answer.

They show whether fine-tuning on images keeps what a language model could do before. They are not a measure of
knowledge: capitals, sums, one-sentence writing and formats, easy enough for a language model of 135 M
parameters, which answers most of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .exact_rules import RULES

KINDS = ("capital", "arithmetic", "sentence", "format")
#: Enough tokens for every answer that meets its rule.
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class GeneralQuestion:
    """One question: `rule` is a name in `exact_rules.RULES`, `expected` what it looks for."""

    kind: str
    prompt: str
    rule: str
    expected: str

    def is_met(self, answer: str) -> bool:
        """Whether an answer meets the rule."""
        return RULES[self.rule](self.expected, answer)


CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Germany": "Berlin",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Russia": "Moscow",
    "Greece": "Athens",
    "Australia": "Canberra",
    "China": "Beijing",
    "Italy": "Rome",
}
ARITHMETIC = {
    "What is 2 + 3?": "5",
    "What is 7 + 5?": "12",
    "What is 6 times 7?": "42",
    "What is 20 divided by 5?": "4",
    "What is 15 + 10?": "25",
    "What is 5 times 5?": "25",
    "What is 8 + 8?": "16",
    "What is half of 10?": "5",
    "How much is 12 plus 13?": "25",
    "What is 10 - 4?": "6",
}
SUBJECTS = ("dog", "sea", "winter", "train", "music", "garden", "moon", "sun", "cat", "river")
FORMATS = (
    ("Make a numbered list of three fruits.", "numbered", "3"),
    ("Make a numbered list of three countries.", "numbered", "3"),
    ("Make a numbered list of five colours.", "numbered", "5"),
    ("Write the numbers from 1 to 5, separated by commas.", "equals", "1, 2, 3, 4, 5"),
    ("Write the numbers from 1 to 10, separated by commas.", "equals", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
    ('Start your answer with "Once upon a time" and tell a very short story.', "begins", "Once upon a time"),
    ('Write a greeting that begins with "Dear Anna,".', "begins", "Dear Anna,"),
    ("Write a question about the weather.", "ends", "?"),
    ("Answer yes or no: is the moon made of cheese?", "begins", "no"),
    ("Answer yes or no: is Paris in France?", "begins", "yes"),
)


def _sentence(subject: str) -> str:
    if subject in ("sun", "cat"):
        return f"Describe {'the' if subject == 'sun' else 'a'} {subject} in one sentence."
    article = {"dog": "a ", "train": "a ", "garden": "a ", "river": "a ", "winter": "", "music": ""}
    return f"Write one sentence about {article.get(subject, 'the ')}{subject}."


GENERAL_QUESTIONS: tuple[GeneralQuestion, ...] = (
    *(
        GeneralQuestion("capital", f"What is the capital of {country}?", "names", capital)
        for country, capital in CAPITALS.items()
    ),
    *(GeneralQuestion("arithmetic", prompt, "states", number) for prompt, number in ARITHMETIC.items()),
    *(GeneralQuestion("sentence", _sentence(subject), "one_sentence", subject) for subject in SUBJECTS),
    *(GeneralQuestion("format", *given) for given in FORMATS),
)
