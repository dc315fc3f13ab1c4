"""Tasks that come with the package: official sizes; perfect predictions score 100, empty ones 0."""

import pytest
import torch
from PIL import Image

from dualtoken.eval import Item, ScoringContext, get_task
from dualtoken.eval.data.held_out import image_prompts
from dualtoken.eval.harness.predictor import PipelinePredictor
from dualtoken.eval.judges.local_models import LocalModels
from dualtoken.eval.judges.protocols import Judges
from dualtoken.mllm import DualTokenPipeline


@pytest.mark.parametrize("name", ["scenes", "scenes-reworded", "easyvqa", "nlvr", "clothing"])
def test_number_of_questions_and_rule_of_each_task(name):
    task = get_task(name)
    (split, count), *_ = task.splits.items()
    items = task.load(None, split)
    assert len(items) == len({item.id for item in items}) == count
    perfect = {item.id: f" {item.target['answer'].upper()}.\n" for item in items}
    assert task.score(items, perfect, ScoringContext()).metrics["accuracy"] == 100.0
    empty = task.score(items, dict.fromkeys(perfect, ""), ScoringContext())
    assert (empty.metrics["accuracy"], empty.unparsed) == (0.0, count)


def test_rendered_scenes_are_judged_correct(tmp_path):
    task = get_task("scenes-t2i")
    items = [item for item in task.load(None, "test") if item.id.endswith(("-0", "-1"))]
    predictions = {}
    for item in items:
        number = int(item.id.rpartition("-")[2])
        record = image_prompts(item.target["skill"], number + 1)[number]
        record.image_parts()[0]["image"].save(tmp_path / f"{item.id}.png")
        predictions[item.id] = [f"{item.id}.png"]
    score = task.score(items, predictions, ScoringContext(tmp_path))
    assert score.metrics["overall"] == 100.0
    swapped = dict(zip(predictions, [*list(predictions.values())[1:], predictions[items[0].id]], strict=True))
    assert task.score(items, swapped, ScoringContext(tmp_path)).metrics["overall"] < 50.0


def test_emoji_are_judged_by_the_rank_of_their_names(tmp_path):
    task = get_task("emoji-t2i")
    items = task.load(None, "test")[:4]
    assert items[0].prompt == f"{items[0].target['name']} emoji"
    for item in items:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{item.id}.png")
    predictions = {item.id: [f"{item.id}.png"] for item in items}
    assert task.score(items, predictions, ScoringContext(tmp_path)).metrics == {"top1": None, "top5": None}

    class Ranker:
        def ranks(self, images, right, texts):
            assert [texts[index] for index in right] == [item.prompt for item in items]
            return [0, 4, 5, 0]

    score = task.score(items, predictions, ScoringContext(tmp_path, judges=Judges(ranker=Ranker)))
    assert score.metrics == {"top1": 50.0, "top5": 75.0}
    assert score.items[items[2].id] == ([5], 0.0)


def test_the_default_ranker_is_the_packaged_tokenizer():
    ranker = LocalModels().judges().ranker()
    (rank,) = ranker.ranks([Image.new("RGB", (64, 64), "red")], [0], ["apple emoji", "tree emoji"])
    assert rank in (0, 1)


def test_reworded_scenes_are_the_first_scenes_with_the_same_answers():
    asked = get_task("scenes").load(None, "test")[:200]
    reworded = get_task("scenes-reworded").load(None, "test")
    assert [item.target for item in reworded] == [item.target for item in asked]
    assert all(one.prompt != other.prompt for one, other in zip(asked, reworded, strict=True))


@pytest.fixture(scope="module")
def predictor():
    return PipelinePredictor(DualTokenPipeline.from_pretrained("nano", device="cpu"))


def test_choices_have_the_likelihood_of_answers(predictor):
    item = next(one for one in get_task("easyvqa").load(None, "heldout") if one.target["kind"])
    answer = predictor.answer([item], {"max_new_tokens": 12})[0]
    asked = Item(item.id, item.prompt, item.images, choices=(answer, "qzqz", answer + " qzqz"))
    (likelihoods,) = predictor.choose([asked])
    assert likelihoods[0] == max(likelihoods)
    assert all(value < 0 for value in likelihoods)
    # The model's own loss of the same turn, a mean over its tokens.
    pipe = predictor.pipeline
    content = [*({"type": "image", "image": image} for image in item.images), item.prompt]
    record = pipe.processor.encode_record(
        [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    )
    with torch.no_grad():
        output = pipe.model(**pipe.processor.collate([record]))
    assert likelihoods[0] == pytest.approx(
        -float(output.text_loss) * int((record.labels >= 0).sum()), abs=1e-3
    )


def test_generated_images_do_not_depend_on_their_neighbours(predictor):
    items = get_task("scenes-t2i").load(None, "test")[:3]
    together = predictor.generate_images(items, 2, [5, 6, 7], {})
    alone = predictor.generate_images(items[1:2], 2, [6], {})
    assert [image.tobytes() for image in alone[0]] == [image.tobytes() for image in together[1]]
