"""DPG-Bench's rule: the share of questions answered yes, where a question counts only if its parents do."""

from collections.abc import Mapping, Sequence


def image_score(answers: Mapping[int, bool], parents: Mapping[int, Sequence[int]]) -> float:
    """The score of one image, from 0 to 1.

    answers: question -> yes. parents: question -> those it depends on, in the official order; a question
    scores 0 where one of them has 0 at that moment.
    """
    scores = {question: float(yes) for question, yes in answers.items()}
    for question, needed in parents.items():
        if any(scores[parent] == 0 for parent in needed):
            scores[question] = 0.0
    return sum(scores.values()) / len(scores)
