"""TextVQA: questions whose answer is read in the image. Singh et al., arXiv 1904.08920."""

from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, Task, register
from ..data.files import Row, image_folder, image_rows, json_rows, parse_rows
from ..scorers.vqa_accuracy import evalai_answer, textvqa_accuracy
from .prompts import as_text, short_answer

ON_HUB = {"val": "data/validation-*.parquet", "test": "data/test-*.parquet"}


@register
class TextVqa(Task):
    """Reading in images of OpenImages, without OCR tokens in the prompt."""

    name = "textvqa"
    summary = "reading text in images, no OCR hints (soft accuracy over ten people)"
    splits = {"val": 5000, "test": 5734}
    source = "textvqa.org/dataset: TextVQA_0.5.1_*.json and the images"
    server = "the EvalAI challenge of TextVQA"
    hub = HubData("lmms-lab-encoder/textvqa", {split: (pattern,) for split, pattern in ON_HUB.items()})

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, f"TextVQA_0.5.1_{split}.json", "data")
        if path.is_dir():
            rows = image_rows(path.parent, ON_HUB[split], ("question_id", "question", "answers"))
            return parse_rows(rows, _item)
        # The images of val are among those of train.
        images = image_folder(path.parent, "test_images" if split == "test" else "train_images", "images")
        return parse_rows(json_rows(path, "data", image=lambda row: images / f"{row['image_id']}.jpg"), _item)

    def grade(self, item: Item, prediction: Any) -> Graded:
        text = str(prediction)
        return Graded(evalai_answer(text), textvqa_accuracy(text, item.target["answers"]))


def _item(row: Row) -> Item:
    answers = row.get("answers") or ()
    # The table of the hub fills the answers of test with empty strings.
    target = {"answers": [as_text(one) for one in answers]} if any(answers) else {}
    return Item(str(row["question_id"]), short_answer(row["question"]), row.images, target)
