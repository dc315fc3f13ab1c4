"""MM-Vet: a judge grades each answer from 0 to 1; metrics are means over all items and by capability.

Source: yuweihao/MM-Vet, mm-vet_evaluator.py (prompt, runs, export_result); Yu et al., arXiv 2308.02490.
"""

from collections.abc import Mapping, Sequence

from .averages import percent, percent_by

_TASK = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. "
    "<AND> in the ground truth means it is totally right only when all elements in the ground truth are "
    "present in the prediction, and <OR> means it is totally right when any one element in the ground truth "
    "is present in the prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, "
    "0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the last space of the correctness score."
)
_EQUATION = "What is x in the equation? | -1 <AND> -5"
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries "
    "Iceland and Greenland are misleading. Despite its name, Iceland is known for its beautiful green "
    "landscapes, while Greenland is mostly covered in ice and snow. The meme is saying that the person has "
    "trust issues because the names of these countries do not accurately represent their landscapes."
)
_MEME_ANSWERS = (
    "The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not "
    "very icy and Greenland isn't very green.",
    "The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, "
    "despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text "
    "'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to "
    "distrust or confusion. The humor in this meme is derived from the unexpected contrast between the names "
    "of the countries and their actual physical characteristics.",
)
GRADING_PROMPT = f"""{_TASK}

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
{_EQUATION} | x = 3 | 0.0
{_EQUATION} | x = -1 | 0.5
{_EQUATION} | x = -5 | 0.5
{_EQUATION} | x = -5 or 5 | 0.5
{_EQUATION} | x = -1 or x = -5 | 1.0
{_MEME} | {_MEME_ANSWERS[0]} | 0.4
{_MEME} | {_MEME_ANSWERS[1]} | 1.0
"""
SECOND_REQUEST = "\nPredict the correctness of the answer (digit): "


def grading_prompt(question: str, answer: str, prediction: str) -> str:
    """The judge's prompt about a prediction: examples, and a line to complete."""
    truth = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return GRADING_PROMPT + "\n" + " | ".join([question, truth, prediction, ""])


def grade_in(reply: str) -> float | None:
    """The grade at the beginning of a reply; None unless it is a number from 0 to 1.

    The official script asks again with rising temperature and in the end gives 0; here there is no grade.
    """
    try:
        grade = float(reply.split()[0])
    except (IndexError, ValueError):
        return None
    return grade if 0 <= grade <= 1 else None


def mmvet_scores(
    grades: Mapping[str, Sequence[float]], capabilities: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """The metrics of graded answers, in per cent: "total", its spread "std" over runs, and each capability.

    `grades` holds one grade of each item for each run of the judge (the paper has five), `capabilities` those
    that each item needs. An item counts fully for each of its capabilities.
    """
    runs = min(len(given) for given in grades.values()) if grades else 0
    if not runs:
        return {"total": None, "std": None}
    totals = [percent(given[run] for given in grades.values()) or 0.0 for run in range(runs)]
    mean = sum(totals) / runs
    item_means = {item: sum(given[:runs]) / runs for item, given in grades.items()}
    return {
        "total": mean,
        "std": (sum((total - mean) ** 2 for total in totals) / runs) ** 0.5,
        **percent_by(item_means, capabilities, "capability/"),
    }
