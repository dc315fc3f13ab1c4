"""PartiPrompts (arXiv 2206.10789): 1,632 prompts for image generation.

The official judges are people; what is computed here is CLIPScore.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ...common.json_files import read_text
from .. import ImageTask, Item, register


@register
class PartiPrompts(ImageTask):
    """The official prompts with category and challenge."""

    name = "parti"
    summary = "PartiPrompts: CLIPScore of generated images"
    splits = {"test": 1632}
    source = "github.com/google-research/parti, PartiPrompts.tsv"

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "PartiPrompts.tsv")
        # Quotation marks belong to the prompts: some begin with one, and a CSV reader would take them away.
        text = io.StringIO(read_text(path), newline="")
        rows = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            Item(
                id=f"{number:04}",
                prompt=row["Prompt"],
                target={"category": row["Category"], "challenge": row["Challenge"]},
            )
            for number, row in enumerate(rows)
        ]
