"""MJHQ-30K (arXiv 2402.17245): FID of generated images against 30,000 reference images, also by category.

Published values are by clean-fid, which resizes by another filter than torch-fidelity, which is used here.
"""

from collections.abc import Sequence
from pathlib import Path

from ...common.paths import single_name
from .. import GeneratedImage, ImageTask, Item, Score, null_score, register
from ..data.files import Row, json_rows, parse_rows
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
        from ..metrics.fid_by_category import (
            fid_by_category,  # here, because it imports torch, taking seconds
        )

        if (extractor := judges.inception()) is None:
            return null_score(_NAME, missing("inception"))
        lost = [path for i in images if not (path := Path(i.item.target["reference"])).is_file()]
        if lost:
            return null_score(_NAME, f"{lost[0]} is missing ({len(lost)} in all)")
        return fid_by_category(_NAME, images, extractor)
