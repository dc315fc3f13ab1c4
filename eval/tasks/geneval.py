"""GenEval (arXiv 2310.11513): objects, counts, colours and positions of 553 prompts, four images of each.

The images are written in the official layout, so the official scorer runs on the output folder unchanged.
The own score applies the official rule to another detector and another CLIP, and so has another name.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .. import GeneratedImage, Graded, ImageTask, Item, Score, item_means, register
from ..data.files import json_line_rows
from ..judges.protocols import Judges, missing
from ..scorers.geneval import TAGS, is_correct, kept_objects, summary

_NAME = "geneval-own-detector"


@register
class GenEval(ImageTask):
    """The official prompts and layout; an own score where a local detector is given."""

    name = "geneval"
    summary = "objects, counts, colours and positions in images (official layout)"
    splits = {"test": 553}
    images_per_prompt = 4
    source = "github.com/djghosh13/geneval, folder prompts"

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")
        rows = json_line_rows(path, ("tag", "include", "prompt"))
        return [Item(f"{number:05}", row["prompt"], target=dict(row)) for number, row in enumerate(rows)]

    def image_name(self, index: int, number: int) -> str:
        return f"{index:05}/samples/{number:04}.png"

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        for item in items:
            own = folder / item.id
            own.mkdir(parents=True, exist_ok=True)
            (own / "metadata.jsonl").write_text(json.dumps(dict(item.target)), encoding="utf-8")

    def own_score(self, images: Sequence[GeneratedImage], judges: Judges) -> Score:
        """The share of right images, overall (mean over tags) and for each tag."""
        from ..metrics.color_names import ColorNames  # here, because it imports torch

        detector, clip = judges.detector(), judges.clip()
        if detector is None:
            official = "run the official evaluate_images.py on the output folder, or name a detector"
            note = f"{_NAME} is null: {missing('detector')}; {official}"
            return Score(_NAME, {_NAME: None}, notes=(note,))
        detector.require(sorted({demand["class"] for i in images for demand in i.item.target["include"]}))
        colors = None if clip is None else ColorNames(clip)
        by_tag: dict[str, list[bool]] = {}
        graded = []
        colorless = set()
        for image in images:
            metadata = image.item.target
            if colors is None and any("color" in demand for demand in metadata["include"]):
                colorless.add(metadata["tag"])
                continue
            picture = image.open()
            objects = kept_objects(detector(picture), metadata["tag"])
            right = is_correct(objects, metadata, None if colors is None else partial(colors, picture))
            by_tag.setdefault(metadata["tag"], []).append(right)
            counts = {name: len(found) for name, found in objects.items()}
            graded.append((image, Graded(counts, float(right))))
        notes = [f"{_NAME}: the official rule on detections of {detector.name}, not the official score"]
        if colorless:
            names, reason = ", ".join(sorted(colorless)), missing("clip")
            notes.append(f"{_NAME} and its parts {names} are null: colours are named by CLIP, {reason}")
        metrics = _metrics(by_tag, colorless)
        return Score(_NAME, metrics, notes=tuple(notes), items=item_means(graded))


def _metrics(by_tag: dict[str, list[bool]], colorless: set[str]) -> dict[str, float | None]:
    """The overall score first, then that of every tag."""
    shares: dict[str, float | None] = dict(summary(by_tag)) if by_tag else {}
    overall = shares.pop("overall", None)
    tags = [tag for tag in TAGS if tag in shares or tag in colorless]
    return {_NAME: None if colorless else overall} | {f"{_NAME}/{tag}": shares.get(tag) for tag in tags}
