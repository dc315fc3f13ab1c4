"""The soft accuracy of VQAv2 and TextVQA over ten human answers, with the normalisation of each.

VQAv2 normalises only where the people disagree; TextVQA (EvalAI's processor) always does, and first handles
commas, question marks and the possessive. The rest is shared.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBER_WORDS)}}
ARTICLES = ("a", "an", "the")
# With the hyphen and the exclamation mark; without the apostrophe, the colon and the full stop.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official pattern: its look-behind means "not after the characters <= and a digit", so a full stop is
# removed unless a digit follows, also in "3.".
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official call passes re.UNICODE as the count of re.sub, so that at most 32 full stops are removed.
MOST_PERIODS = int(re.UNICODE)

# Correct spellings; `_misspellings` leaves out one apostrophe of each.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""


def _misspellings(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# "somebody'd" loses its apostrophe in the official table, unlike all other entries.
CONTRACTIONS = {
    **{wrong: word for word in _CONTRACTED.split() for wrong in _misspellings(word)},
    "somebody'd": "somebodyd",
}


def strip_punctuation(text: str) -> str:
    """Remove punctuation, or replace it by blanks.

    A mark is removed if it is next to a blank anywhere in `text`, or if `text` has a number with a comma, and
    else becomes a blank ("red/blue" → "red blue"). Then full stops are removed, except before a digit.
    Source: GT-Vision-Lab/VQA, vqaEval.py, processPunctuation.
    """
    number_with_comma = COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        by_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if by_blank or number_with_comma else " ")
    return PERIOD.sub("", result, count=MOST_PERIODS)


def map_words(text: str) -> str:
    """Lower case, number words as digits ("none" as "0"), no articles, contractions corrected, single blanks.

    Source: GT-Vision-Lab/VQA, vqaEval.py, processDigitArticle.
    """
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)
def _normal_form(text: str) -> str:
    """Both steps, cached because answers repeat."""
    return map_words(strip_punctuation(text))


def leave_one_out(answer: str, human: Sequence[str]) -> float:
    """The mean over the people of min(1, n / 3), where n *others* gave `answer`.

    With ten people: 0, 0.3, 0.6, 0.9 and 1 for 0, 1, 2, 3 and 4 or more equal answers; not min(1, n/3).
    0 without human answers. Source: Antol et al., arXiv 1505.00468; vqaEval.py, evaluate.
    """
    matches = [given == answer for given in human]
    total = sum(matches)
    return sum(min(1.0, (total - own) / 3) for own in matches) / len(matches) if matches else 0.0


def vqa_accuracy(prediction: str, human: Sequence[str]) -> float:
    """VQAv2's accuracy of one prediction, 0…1, against the (ten) human answers.

    Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py.
    """
    answer, *people = _compared(prediction, human)
    return leave_one_out(answer, people)


def vqa_answer(prediction: str, human: Sequence[str]) -> str:
    """The form of a prediction that VQAv2 compares with the (ten) human answers."""
    return _compared(prediction, human)[0]


def _compared(prediction: str, human: Sequence[str]) -> list[str]:
    """The prediction and the human answers in the form that is compared.

    Line breaks and tabs become blanks and outer blanks are removed. They are normalised only where the human
    answers differ: if all ten are "ten", the prediction "10" is wrong.
    """
    texts = [text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *human)]
    if len(set(texts[1:])) > 1:
        texts = [_normal_form(text) for text in texts]
    return [text.lower() for text in texts]


def evalai_answer(text: str) -> str:
    """The normal form of an answer in TextVQA's evaluation.

    Source: facebookresearch/mmf, mmf/utils/m4c_evaluators.py, EvalAIAnswerProcessor.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _normal_form(text)


def textvqa_accuracy(prediction: str, human: Sequence[str]) -> float:
    """TextVQA's accuracy of one prediction, 0…1, against the (ten) human answers.

    Source: facebookresearch/mmf, mmf/utils/m4c_evaluators.py, TextVQAAccuracyEvaluator.
    """
    return leave_one_out(evalai_answer(prediction), [evalai_answer(text) for text in human])
