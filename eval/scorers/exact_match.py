"""Answers that must equal the key after normalisation."""

from .vqa_accuracy import NUMBER_WORDS


def gqa_answer(text: str) -> str:
    """The form of an answer that GQA's evaluation compares with the key.

    Lower-cased, outer blanks and then full stops at the end removed; "the dog" is not "dog". Source: GQA's
    eval.py (predicted == gold); haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py for the form.
    """
    return text.strip().rstrip(".").lower()


def realworldqa_answer(text: str) -> str:
    """The form of an answer, and of RealWorldQA's key, that is compared.

    Lower-cased, outer blanks and full stops at the end removed, and a single number word up to ten as digits.
    xAI published no scoring script; source: EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/realworldqa/utils.py.
    """
    text = text.lower().strip().rstrip(".")
    return str(NUMBER_WORDS.index(text)) if text in NUMBER_WORDS else text
