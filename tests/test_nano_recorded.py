"""The shipped model answers and generates what it did when these files were recorded, whatever is rebuilt.

`tests/golden/nano/` holds 60 questions with their greedy answers, the images that they are about, and images
generated from fixed seeds. `python tests/test_nano_recorded.py` records them anew; a change of the shipped
weights is the only reason to.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtoken.mllm import DualTokenPipeline

FOLDER = Path(__file__).resolve().parent / "golden" / "nano"
PROMPTS = (
    "a red circle",
    "a blue square",
    "two green triangles",
    "a yellow star to the left of a purple circle",
    "a black square above a red triangle",
    "three orange circles",
    "a photo of a leopard",
    "an emoji of a cat",
)
# Greedy codes may differ in a last bit between machines; an image then differs in a few pixels.
EQUAL_PIXELS = 0.999


@pytest.fixture(scope="module")
def pipe() -> DualTokenPipeline:
    return DualTokenPipeline.from_pretrained("nano", device="cpu")


def recorded() -> list[dict[str, str]]:
    return json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))


def answers(pipe: DualTokenPipeline, questions: list[dict[str, str]]) -> list[str]:
    asked = [(Image.open(FOLDER / item["image"]).convert("RGB"), item["question"]) for item in questions]
    return pipe.answer_many(asked, max_new_tokens=12, batch_size=20)


def generated(pipe: DualTokenPipeline) -> Iterator[tuple[str, Image.Image]]:
    for seed, prompt in enumerate(PROMPTS):
        yield f"generated_{seed}.png", pipe.generate_images(prompt, seed=seed)[0]


def test_the_recorded_questions_get_the_recorded_answers(pipe: DualTokenPipeline) -> None:
    questions = recorded()
    assert len(questions) == 60
    assert answers(pipe, questions) == [item["answer"] for item in questions]


def test_the_recorded_seeds_generate_the_recorded_images(pipe: DualTokenPipeline) -> None:
    for name, image in generated(pipe):
        expected = np.asarray(Image.open(FOLDER / name).convert("RGB"))
        equal = (np.asarray(image.convert("RGB")) == expected).all(axis=-1).mean()
        assert equal >= EQUAL_PIXELS, f"{name}: {equal:.4f} of the pixels are equal"


def record(questions: list[dict[str, str]]) -> None:
    """Write answers.json and the generated images of the model as it is; the questions' images exist."""
    pipe = DualTokenPipeline.from_pretrained("nano", device="cpu")
    replies = answers(pipe, questions)
    items = [{**item, "answer": reply} for item, reply in zip(questions, replies, strict=True)]
    (FOLDER / "answers.json").write_text(json.dumps(items, indent=1) + "\n", encoding="utf-8")
    for name, image in generated(pipe):
        image.save(FOLDER / name)


if __name__ == "__main__":
    record(recorded())
