"""PartiPrompts (arXiv 2206.10789): 1,632 prompts for image generation.

Officially people judge the images; here the metric is CLIPScore.
"""

import csv
from pathlib import Path

from .. import ImageTask, Item, register
from ..data.files import read_tsv


@register
class PartiPrompts(ImageTask):
    """The official prompts with category and challenge."""

    name = "parti"
    summary = "PartiPrompts: CLIPScore of generated images"
    splits = {"test": 1632}
    source = "github.com/google-research/parti, PartiPrompts.tsv"

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "PartiPrompts.tsv")
        # Some prompts begin with a quotation mark, which the usual quoting would remove.
        rows = read_tsv(path, ("Prompt", "Category", "Challenge"), quoting=csv.QUOTE_NONE)
        return [
            Item(
                id=f"{number:04}",
                prompt=row["Prompt"],
                target={"category": row["Category"], "challenge": row["Challenge"]},
            )
            for number, row in enumerate(rows)
        ]
