"""Generation of scenes from prompts; image processing checks whether the image shows the scene."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data_pipelines.scenes.language import EXACT_SKILLS
from .. import Graded, Item, Score, ScoringContext, Task, find_images, item_means, register
from ..data.held_out import image_prompts
from ..scorers.averages import percent

# Prompts of each skill; the others include single colours.
COUNTS = {skill: 100 if skill == "single_object" else 50 for skill in EXACT_SKILLS}


@register
class ScenesT2i(Task):
    """Per cent of images that show exactly the described scene; the headline is the mean over skills.

    counts: number of prompts of each skill.
    """

    name = "scenes-t2i"
    summary = "generated scenes of reserved seeds, judged by an exact checker"
    kind = "image"
    splits = {"test": sum(COUNTS.values())}
    generation = {}

    def __init__(self, counts: Mapping[str, int] = COUNTS) -> None:
        self.counts = counts

    def load(self, root: Path | None, split: str) -> list[Item]:
        return [
            Item(
                id=f"{skill}-{number}",
                prompt=record.texts()[0],
                target={"skill": skill, "spec": record.metadata["spec"]},
            )
            for skill, count in self.counts.items()
            for number, record in enumerate(image_prompts(skill, count))
        ]

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """By skill the shares of correct images, of correct colours and of images without an object."""
        from ...data_pipelines.scenes.checker import check  # here, because it imports scipy, which is slow

        verdicts, graded = defaultdict[str, list[Any]](list), []
        for image in find_images(items, predictions, context.folder):
            verdict = check(image.item.target["spec"], image.open())
            verdicts[image.item.target["skill"]].append(verdict)
            parsed = {
                "found": [f"{one.colour} {one.shape}" for one in verdict.found],
                "reason": verdict.reason,
            }
            graded.append((image, Graded(parsed, float(verdict.correct))))
        metrics: dict[str, float | None] = {}
        for skill, checked in verdicts.items():
            label = skill.replace("_", " ")
            metrics[label] = percent(verdict.correct for verdict in checked)
            metrics[f"{label}: colours"] = percent(verdict.colour_correct for verdict in checked)
            metrics[f"{label}: empty"] = percent(not verdict.found for verdict in checked)
        shares = (sum(verdict.correct for verdict in checked) / len(checked) for checked in verdicts.values())
        return Score("overall", {"overall": percent(shares), **metrics}, items=item_means(graded))
