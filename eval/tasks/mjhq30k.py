"""MJHQ-30K (arXiv 2402.17245): FID of 30,000 generated images against the set's own, also by category.

The published metrics are by clean-fid, which resizes by another filter; ours is torch-fidelity's, under its
name.
"""

from collections.abc import Sequence
from pathlib import Path

from ...common.paths import single_name
from .. import GeneratedImage, ImageTask, Item, Score, register
from ..data.files import json_rows
from ..data.rows import Row, parse_rows
from ..judges.protocols import Judges, missing

_NAME = "fid-torch-fidelity"


@register
class Mjhq30k(ImageTask):
    """The official prompts; FID where the images and Inception's weights are given."""

    name = "mjhq30k"
    summary = "FID against 30,000 images of high quality"
    splits = {"test": 30000}
    source = "huggingface.co/datasets/playgroundai/MJHQ-30K: meta_data.json, mjhq30k_imgs unpacked"

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "meta_data.json")
        images = path.parent / "mjhq30k_imgs"

        def item(row: Row) -> Item:
            category = single_name(row["category"], f"{row.where}: category")
            reference = images / category / f"{single_name(row.key, f'{row.where}: image')}.jpg"
            return Item(row.key, row["prompt"], target={"category": category, "reference": str(reference)})

        return parse_rows(json_rows(path), item)

    def own_score(self, images: Sequence[GeneratedImage], judges: Judges) -> Score:
        """FID of all images and of each category."""
        from ..metrics.fid_by_category import fid_by_category  # here, because it imports torch

        extractor = judges.inception()
        lost = [path for i in images if not (path := Path(i.item.target["reference"])).is_file()]
        if extractor is None or lost:
            absent = f"{lost[0]} is missing ({len(lost)} in all)" if lost else ""
            reason = missing("inception") if extractor is None else absent
            return Score(_NAME, {_NAME: None}, notes=(f"{_NAME} is null: {reason}",))
        return fid_by_category(_NAME, images, extractor)
