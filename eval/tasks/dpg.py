"""DPG-Bench (arXiv 2403.05135): 1,065 long prompts, four images of each, judged by questions.

The official judge is mPLUG-large; here it is any local model, under another metric name. The questions are in
the official dpg_bench.csv in the folder of the prompts. The output folder also gets the official layout: one
2 x 2 grid for each prompt, `dpg_bench/ITEM.png`.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.images.reading import load_image
from ...common.json_files import read_text
from ...common.paths import single_name
from .. import GeneratedImage, Graded, ImageTask, Item, Score, item_means, null_score, register
from ..data.files import Row, json_line_rows, parse_rows, read_tsv
from ..judges.protocols import Judges, missing
from ..scorers.averages import percent
from ..scorers.dpg import image_score

_NAME = "dpg-own-judge"


@register
class DpgBench(ImageTask):
    """The official prompts and grids; a score where a local judge answers the questions."""

    name = "dpg"
    summary = "long prompts, judged by questions about the image"
    splits = {"test": 1065}
    images_per_prompt = 4
    source = "github.com/TencentQQGYLab/ELLA, folder dpg_bench"

    def load(self, root: Path | None, split: str) -> list[Item]:
        found = self.need_file(root, "prompts.jsonl", "prompts")
        if found.is_dir():
            pairs = [(path.stem, read_text(path).strip()) for path in sorted(found.glob("*.txt"))]
        else:
            rows = json_line_rows(found, ("item_id", "text"))
            # The official scorer's images are named after the items.
            pairs = [(single_name(row["item_id"], f"{row.where}: item_id"), row["text"]) for row in rows]
        sheet = found.parent / "dpg_bench.csv"
        questions = read_questions(sheet) if sheet.is_file() else {}
        return [Item(name, text, target={"questions": questions.get(name, [])}) for name, text in pairs]

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        for index, item in enumerate(items):
            paths = [folder / self.image_name(index, number) for number in range(self.images_per_prompt)]
            if all(path.is_file() for path in paths):
                grid = folder / "dpg_bench" / f"{item.id}.png"
                grid.parent.mkdir(parents=True, exist_ok=True)
                grid_of_four(paths).save(grid)

    def own_score(self, images: Sequence[GeneratedImage], judges: Judges) -> Score:
        """The mean share of questions answered yes; None unless all items have questions."""
        if (judge := judges.vqa_judge()) is None:
            return null_score(_NAME, missing("judge"))
        asked = [image for image in images if image.item.target["questions"]]
        if not asked:
            return null_score(_NAME, "dpg_bench.csv is not in the folder of the prompts")
        graded = []
        for image in asked:
            pixels, answers, parents = image.open(), {}, {}
            for question in image.item.target["questions"]:
                yes, no = judge.probabilities(pixels, question["text"])
                answers[question["id"]], parents[question["id"]] = yes > no, question["parents"]
            parsed = {str(key): yes for key, yes in answers.items()}
            graded.append((image, Graded(parsed, image_score(answers, parents))))
        items = item_means(graded)
        score = percent(one.score or 0.0 for one in items.values())
        notes = [f"{_NAME}: questions answered by {judge.name}, not by the official mPLUG"]
        if len(asked) < len(images):
            notes.append(f"{_NAME} is null: {len(images) - len(asked)} images have no questions")
            score = None
        return Score(_NAME, {_NAME: score}, notes=tuple(notes), items=items)


def read_questions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The questions of dpg_bench.csv for each item: id, text and the ids of those they depend on."""

    def question(row: Row) -> tuple[str, dict[str, Any]]:
        parents = [int(part) for part in row["dependency"].split(",") if int(part)]
        text = row["question_natural_language"]
        return row["item_id"], {"id": int(row["proposition_id"]), "parents": parents, "text": text}

    needed = ("item_id", "proposition_id", "dependency", "question_natural_language")
    # The official script skips the first row of data; its scores are without that question.
    rows = islice(read_tsv(path, needed, delimiter=","), 1, None)
    questions: dict[str, list[dict[str, Any]]] = {}
    for item, asked in parse_rows(rows, question):
        questions.setdefault(item, []).append(asked)
    return questions


def grid_of_four(paths: Sequence[Path]) -> Image.Image:
    """Four images of one size as two rows of two."""
    images = [load_image(path) for path in paths]
    width, height = images[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for number, image in enumerate(images):
        grid.paste(image, (number % 2 * width, number // 2 * height))
    return grid
