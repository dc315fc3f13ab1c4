"""Answers that must equal the key, after a little tidying."""

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def gqa_answer(text: str) -> str:
    """The form in which an answer goes to GQA's evaluation, which compares it with the key as it is.

    Outer blanks and then full stops at the end go, and it is lower-cased; nothing else: "the dog" is not
    "dog". Source: GQA's eval.py (predicted == gold); haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py for
    the form.
    """
    return text.strip().rstrip(".").lower()


def realworldqa_answer(text: str) -> str:
    """The form in which an answer is compared with RealWorldQA's key, which goes through the same.

    Lower-cased, outer blanks and full stops at the end removed, and a lone number word up to ten as digits.
    xAI published no scoring script; source: EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/realworldqa/utils.py.
    """
    text = text.lower().strip().rstrip(".")
    return str(_NUMBER_WORDS.index(text)) if text in _NUMBER_WORDS else text
