"""GenEval (arXiv 2310.11513): objects, counts, colours and positions of 553 prompts, four images of each.

The images are written in the official layout, so that the official scorer runs on the output folder. Here the
official rule is applied to another detector and another CLIP, under another metric name.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from .. import GeneratedImage, Graded, ImageTask, Item, Score, item_means, null_score, register
from ..data.files import json_line_rows
from ..judges.protocols import Judges, missing
from ..scorers.geneval import TAGS, is_correct, kept_objects, summary

_NAME = "geneval-own-detector"


@register
class GenEval(ImageTask):
    """The official prompts and layout; a score where a local detector is given."""

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
            (folder / item.id).mkdir(parents=True, exist_ok=True)
            metadata = json.dumps(dict(item.target))
            (folder / item.id / "metadata.jsonl").write_text(metadata, encoding="utf-8")

    def own_score(self, images: Sequence[GeneratedImage], judges: Judges) -> Score:
        """The share of correct images, overall (mean over tags) and for each tag."""
        from ..metrics.color_names import ColorNames  # here, because it imports torch, which takes seconds

        detector, clip = judges.detector(), judges.clip()
        if detector is None:
            official = "the official evaluate_images.py can score the output folder"
            return null_score(_NAME, f"{missing('detector')}; {official}")
        detector.require(sorted({demand["class"] for i in images for demand in i.item.target["include"]}))
        colors = None if clip is None else ColorNames(clip)
        by_tag = defaultdict[str, list[bool]](list)
        graded, colorless = [], set()
        for image in images:
            metadata = image.item.target
            if colors is None and any("color" in demand for demand in metadata["include"]):
                colorless.add(metadata["tag"])
                continue
            pixels = image.open()
            objects = kept_objects(detector(pixels), metadata["tag"])
            right = is_correct(objects, metadata, None if colors is None else partial(colors, pixels))
            by_tag[metadata["tag"]].append(right)
            counts = {name: len(found) for name, found in objects.items()}
            graded.append((image, Graded(counts, float(right))))
        notes = [f"{_NAME}: the official rule on detections of {detector.name}, not the official score"]
        if colorless:
            names, reason = ", ".join(sorted(colorless)), missing("clip")
            notes.append(f"{_NAME} and its parts {names} are null: colours are named by CLIP, {reason}")
        return Score(_NAME, _metrics(by_tag, colorless), notes=tuple(notes), items=item_means(graded))


def _metrics(by_tag: Mapping[str, list[bool]], colorless: set[str]) -> dict[str, float | None]:
    """The overall score, then that of every tag."""
    shares: dict[str, float | None] = dict(summary(by_tag)) if by_tag else {}
    overall = shares.pop("overall", None)
    tags = [tag for tag in TAGS if tag in shares or tag in colorless]
    return {_NAME: None if colorless else overall} | {f"{_NAME}/{tag}": shares.get(tag) for tag in tags}
