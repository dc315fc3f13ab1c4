"""DPG-Bench: the share of questions answered yes; one counts only if those it depends on do."""

from collections.abc import Mapping, Sequence


def image_score(answers: Mapping[int, bool], parents: Mapping[int, Sequence[int]]) -> float:
    """The score of one image, from 0 to 1.

    answers: question -> yes. parents: question -> those it depends on, in the official order; a question
    scores 0 if one of them scores 0 when it is reached.
    """
    scores = {question: float(yes) for question, yes in answers.items()}
    for question, needed in parents.items():
        if any(scores[parent] == 0 for parent in needed):
            scores[question] = 0.0
    return sum(scores.values()) / len(scores)
