"""Drawing scenes from prompts, judged by image processing: does the picture show what was asked for?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...common.images.reading import load_image
from ...data_pipelines.scenes.language import EXACT_SKILLS
from ..data.held_out import drawing_prompts
from ..harness.registry import register
from ..harness.task import Benchmark, Item, Score
from ..scorers.averages import percent

if TYPE_CHECKING:
    from ...data_pipelines.scenes.checker import CheckResult

# Prompts of each skill; single colours are part of the others.
COUNTS = {skill: 100 if skill == "single_object" else 50 for skill in EXACT_SKILLS}


@register
class ScenesT2i(Benchmark):
    """Percent of drawings that show exactly what was asked for; the headline is the mean over skills."""

    name = "scenes-t2i"
    summary = "drawing scenes of reserved seeds, judged by an exact checker"
    kind = "draw"
    splits: ClassVar[Mapping[str, int | None]] = {"test": sum(COUNTS.values())}
    generation: ClassVar[Mapping[str, Any]] = {}

    def load(self, root: Path | None, split: str) -> list[Item]:
        return [
            Item(
                id=f"{skill}-{number}",
                prompt=record.texts()[0],
                target={"skill": skill, "spec": record.metadata["spec"]},
            )
            for skill, count in COUNTS.items()
            for number, record in enumerate(drawing_prompts(skill, count))
        ]

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        from ...data_pipelines.scenes.checker import check  # here, because it imports scipy

        verdicts: dict[str, list[CheckResult]] = defaultdict(list)
        right: dict[str, float] = {}
        for item in items:
            for name in predictions[item.id]:
                verdict = check(item.target["spec"], load_image(folder / name))
                verdicts[item.target["skill"]].append(verdict)
                right[item.id] = float(verdict.correct)
        metrics: dict[str, float | None] = {}
        for skill, found in verdicts.items():
            label = skill.replace("_", " ")
            metrics[label] = percent(verdict.correct for verdict in found)
            metrics[f"{label}: colours"] = percent(verdict.colour_correct for verdict in found)
            metrics[f"{label}: empty"] = percent(not verdict.found for verdict in found)
        shares = (sum(verdict.correct for verdict in found) / len(found) for found in verdicts.values())
        overall = {"overall": percent(shares)}
        return Score("overall", {**overall, **metrics}, correct=right)
