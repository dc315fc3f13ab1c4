"""GenAI-Bench (arXiv 2406.13743): 1,600 prompts by skill, scored by VQAScore (arXiv 2404.01291).

VQAScore is the probability that a model answers "Yes" to: Does this figure show "PROMPT"? The official judge
is CLIP-FlanT5-XXL; here it is any local model, under another metric name, comparable for equal judges only.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...common.images.reading import load_image
from ...common.json_files import read_json
from .. import GeneratedImage, Graded, ImageTask, Item, Score, item_means, null_score, register
from ..data.files import json_rows, parse_rows, values_of
from ..judges.protocols import Judges, missing
from ..scorers.averages import mean

_NAME = "vqascore-own-judge"
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


@register
class GenAIBench(ImageTask):
    """The official prompts; VQAScore where a local judge is given."""

    name = "genai-bench"
    summary = "prompts by skill, scored by VQAScore"
    splits = {"test": 1600}
    source = "genai_image.json and genai_skills.json of GenAI-Bench-1600"

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "genai_image.json")
        listed = path.parent / "genai_skills.json"
        skills = defaultdict[int, list[str]](list)
        with values_of(str(listed)):
            for skill, numbers in (read_json(listed) if listed.is_file() else {}).items():
                for number in numbers:
                    skills[int(number)].append(skill)
        return parse_rows(
            json_rows(path), lambda row: Item(row.key, row["prompt"], target={"skills": skills[int(row.key)]})
        )

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        """The JPEG files that the official genai_bench/evaluate.py reads, in `genai_bench/`."""
        for index, item in enumerate(items):
            path = folder / self.image_name(index, 0)
            if path.is_file():
                copy = folder / "genai_bench" / f"{item.id}.jpeg"
                copy.parent.mkdir(parents=True, exist_ok=True)
                load_image(path).save(copy)

    def own_score(self, images: Sequence[GeneratedImage], judges: Judges) -> Score:
        """The mean probability of "Yes", over all images and by skill."""
        if (judge := judges.vqa_judge()) is None:
            return null_score(_NAME, missing("judge"))
        graded, by_skill = [], defaultdict[str, list[float]](list)
        for image in images:
            yes, _ = judge.probabilities(image.open(), QUESTION.format(image.item.prompt))
            graded.append((image, Graded(None, yes)))
            for skill in image.item.target["skills"]:
                by_skill[skill].append(yes)
        metrics = {_NAME: mean(one.score or 0.0 for _, one in graded)}
        metrics |= {f"{_NAME}/{skill}": mean(scores) for skill, scores in by_skill.items()}
        note = f"{_NAME}: probability of Yes by {judge.name}, not by the official CLIP-FlanT5-XXL"
        return Score(_NAME, metrics, notes=(note,), items=item_means(graded))
