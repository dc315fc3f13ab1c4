"""The lmms-eval plug-in: its requests become our conversations and settings; batched equals single."""

import json

import pytest
from PIL import Image

from dualtoken.eval import get_task
from dualtoken.eval.plugins.lmms import cut, generation_settings
from dualtoken.mllm import normalise_messages
from dualtoken.tokenizer import UserError

PICTURE = Image.new("RGB", (8, 8))


def test_messages_of_lmms_eval_fit_our_schema():
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "url": PICTURE}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]
    system, first, second = normalise_messages(messages)
    assert (system, second) == (messages[0], messages[2])
    assert first["content"] == [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]
    with pytest.raises(UserError, match="is video, which is not supported"):
        normalise_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])


@pytest.mark.parametrize(
    ("given", "settings", "stops"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}, []),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": None, "do_sample": False, "until": ["\n\n"]},
            {"max_new_tokens": 16, "do_sample": False},
            ["\n\n"],
        ),
        (
            {"temperature": 0.7, "top_p": 0.9, "until": "</s>", "image_aspect_ratio": "original"},
            {"max_new_tokens": 1024, "temperature": 0.7, "top_p": 0.9, "do_sample": True},
            ["</s>"],
        ),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 1024, "do_sample": False}, []),
    ],
)
def test_settings_are_translated(given, settings, stops):
    assert generation_settings(given) == (settings, stops)


def test_text_ends_before_the_first_stop_string():
    assert cut("red. Next: blue", ["Next", "."]) == "red"
    assert cut("red", ["."]) == "red"


def test_batched_answers_equal_single_ones_and_ours():
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.instance import Instance

    from dualtoken.eval.plugins.lmms_model import DualTokenLmms

    items = get_task("easyvqa").load(None, "heldout")[:5]

    def to_messages(item):
        images = [{"type": "image", "url": image} for image in item.images]
        return [{"role": "user", "content": [*images, {"type": "text", "text": item.prompt}]}]

    def request(kind, *arguments):
        return Instance(kind, arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})

    asked = [
        request("generate_until", item.prompt, to_messages, {"max_new_tokens": 6 + n % 2}, n, "t", "test")
        for n, item in enumerate(items)
    ]
    model = DualTokenLmms("nano", batch_size=4, device="cpu")
    model.task_dict = {"t": {"test": items}}
    answers = [result.text for result in model.generate_until(asked)]
    assert answers == [model.pipeline.answer(list(item.images), item.prompt, 6) for item in items]
    likelihoods = model.loglikelihood(
        [
            request("loglikelihood", items[0].prompt, text, lambda item: item.images, 0, "t", "test")
            for text in (answers[0], "qzqz")
        ]
    )
    assert likelihoods[0][1]
    assert likelihoods[0][0] > likelihoods[1][0]


TASK = """
task: ours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function task_functions.images
doc_to_text: !function task_functions.question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
  do_sample: false
process_results: !function task_functions.results
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
from PIL import Image


def images(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, answers):
    return {"right": float(answers[0].strip() == doc["answer"])}
"""


def test_a_local_task_runs_from_end_to_end(tmp_path, monkeypatch):
    """A task of a YAML file, JSON lines and image files, by lmms-eval's own evaluator on the plug-in."""
    pytest.importorskip("lmms_eval")
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lmms_eval import models
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from dualtoken.eval.plugins.lmms import manifest
    from dualtoken.mllm import DualTokenPipeline

    models.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # as the entry point does
    items = get_task("easyvqa").load(None, "heldout")[:10]
    pipeline = DualTokenPipeline.from_pretrained("nano", device="cpu")
    ours = [pipeline.answer(list(item.images), item.prompt, 6) for item in items]
    lines = []
    for number, (item, answer) in enumerate(zip(items, ours, strict=True)):
        item.images[0].save(tmp_path / f"{number}.png")
        # Every third key is one that the model cannot give.
        row = {"image": str(tmp_path / f"{number}.png"), "question": item.prompt}
        lines.append(json.dumps({**row, "answer": answer.strip() if number % 3 else "nothing"}))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "task" / "task_functions.py").write_text(FUNCTIONS)
    text = TASK.format(questions=tmp_path / "task" / "questions.jsonl")
    (tmp_path / "task" / "ours.yaml").write_text(text)
    tasks = TaskManager(include_path=str(tmp_path / "task"), include_defaults=False)
    result = simple_evaluate(
        model="dualtoken",
        model_args="pretrained=nano",
        tasks=["ours"],
        batch_size=4,
        device="cpu",
        task_manager=tasks,
        bootstrap_iters=0,
    )
    assert result["n-samples"]["ours"]["effective"] == 10
    assert result["results"]["ours"]["right,none"] == pytest.approx(0.6)
    samples = sorted(result["samples"]["ours"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0].strip() for sample in samples] == [answer.strip() for answer in ours]
