"""T2I-CompBench (arXiv 2307.06350): 8 x 300 prompts of attributes and relations, ten images of each.

The official scores need BLIP-VQA, UniDet and others of the official repository, for which the output folder
gets the layout `t2i_compbench/CATEGORY/samples/PROMPT_NUMBER.png`; here the metric is CLIPScore.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...common.json_files import read_text
from ...common.paths import single_name
from .. import ImageTask, Item, register

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")


@register
class T2ICompBench(ImageTask):
    """The official validation prompts, of all categories or one."""

    name = "t2i-compbench"
    summary = "attributes, relations and numbers: CLIPScore of generated images"
    splits = {"val": 2400, **{f"{category}_val": 300 for category in CATEGORIES}}
    images_per_prompt = 10
    source = "github.com/Karine-Huang/T2I-CompBench, examples/dataset"

    def load(self, root: Path | None, split: str) -> list[Item]:
        categories = CATEGORIES if split == "val" else (split.removesuffix("_val"),)
        items = []
        for category in categories:
            path = self.need_file(root, f"{category}_val.txt")
            lines = (line.strip() for line in read_text(path).splitlines() if line.strip())
            for number, line in enumerate(lines):
                # The official scorer's images are named after the prompts.
                prompt = single_name(line, f"{path}: the prompt")
                target = {"category": category, "number": number}
                items.append(Item(f"{category}_{number:03}", prompt, target=target))
        return items

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        for index, item in enumerate(items):
            samples = folder / "t2i_compbench" / item.target["category"] / "samples"
            for number in range(self.images_per_prompt):
                image = folder / self.image_name(index, number)
                if image.is_file():
                    samples.mkdir(parents=True, exist_ok=True)
                    # The official scripts expect a number that counts the images of a category.
                    running = item.target["number"] * self.images_per_prompt + number
                    link_or_copy(image, samples / f"{item.prompt}_{running:06}.png")


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file under another name, or copy it where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
