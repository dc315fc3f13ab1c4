"""GenEval (arXiv 2310.11513): objects, counts, colours and positions of 553 prompts, four drawings of each.

The drawings are written in the official layout, so the official scorer runs on the output folder unchanged.
The own score applies the official rule to another detector and another CLIP, and so has another name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json_lines
from ..harness.generated_images import Drawing, DrawingBenchmark, Figures, item_means
from ..harness.registry import register
from ..harness.task import Item
from ..judges.local_models import local_clip, local_detector, missing
from ..scorers.geneval import TAGS, is_correct, kept_objects, summary

_NAME = "geneval-own-detector"


@register
class GenEval(DrawingBenchmark):
    """The official prompts and layout; an own score where a local detector is given."""

    name: ClassVar[str] = "geneval"
    summary: ClassVar[str] = "objects, counts, colours and positions in drawings (official layout)"
    splits = {"test": 553}
    images_per_prompt: ClassVar[int] = 4
    source: ClassVar[str] = "github.com/djghosh13/geneval, folder prompts"
    headline: ClassVar[str] = _NAME

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")
        rows = read_json_lines(path, ("tag", "include", "prompt"))
        return [Item(f"{number:05}", row["prompt"], target=row) for number, row in enumerate(rows)]

    def image_name(self, index: int, number: int) -> str:
        return f"{index:05}/samples/{number:04}.png"

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        for item in items:
            place = folder / item.id
            place.mkdir(parents=True, exist_ok=True)
            (place / "metadata.jsonl").write_text(json.dumps(dict(item.target)), encoding="utf-8")

    def own_figures(self, drawings: Sequence[Drawing]) -> Figures:
        from ..metrics.color_names import ColorNames  # here, because it imports torch

        detector, clip = local_detector(), local_clip()
        if detector is None:
            official = "run the official evaluate_images.py on the output folder, or name a detector"
            return Figures({_NAME: None}, [f"{_NAME} is null: {missing('detector')}; {official}"])
        detector.require(sorted({demand["class"] for d in drawings for demand in d.item.target["include"]}))
        by_tag: dict[str, list[bool]] = {}
        by_item: dict[str, list[float]] = {}
        notes = [f"{_NAME}: the official rule on detections of {detector.name}, not the official score"]
        colorless = set()
        for drawing in drawings:
            metadata = drawing.item.target
            if clip is None and _asks_for_colors(metadata):
                colorless.add(metadata["tag"])
                continue
            image = drawing.open()
            objects = kept_objects(detector(image), metadata["tag"])
            right = is_correct(objects, metadata, ColorNames(clip, image))
            by_tag.setdefault(metadata["tag"], []).append(right)
            by_item.setdefault(drawing.item.id, []).append(float(right))
        return Figures(_metrics(by_tag, colorless, notes), notes, item_means(by_item))


def _asks_for_colors(metadata: Any) -> bool:
    return any("color" in demand for demand in metadata["include"])


def _metrics(by_tag: dict[str, list[bool]], colorless: set[str], notes: list[str]) -> dict[str, float | None]:
    """The overall score first, then that of every tag."""
    shares: dict[str, float | None] = dict(summary(by_tag)) if by_tag else {}
    overall = shares.pop("overall", None)
    if colorless:
        overall = None
        names = ", ".join(sorted(colorless))
        notes.append(f"{_NAME} and its parts {names} are null: colours are named by CLIP, {missing('clip')}")
    tags = [tag for tag in TAGS if tag in shares or tag in colorless]
    return {_NAME: overall} | {f"{_NAME}/{tag}": shares.get(tag) for tag in tags}
