"""The pipeline: answers, chats, generated images, reconstructions, and transformers' own pipeline."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline as transformers_pipeline

from dualtoken.mllm import DualTokenPipeline, resolve_model
from dualtoken.mllm.generation import interleaved
from dualtoken.tokenizer import UserError


@pytest.fixture
def pipe(saved) -> DualTokenPipeline:
    return DualTokenPipeline.from_pretrained(saved, device="cpu")


def pixels(image):
    return np.asarray(image).tolist()


def test_answers_in_a_batch_equal_single_ones(pipe, image, other_image):
    items = [(image, "how many"), ([image, other_image], "what colour is the square"), (None, "hello")]
    answers = pipe.answer_many(items, max_new_tokens=10, batch_size=2)
    assert answers == [pipe.answer(*item, max_new_tokens=10) for item in items]
    assert all(isinstance(answer, str) for answer in answers)


def test_images_follow_seed_and_index(pipe):
    all_at_once = pipe.generate_images("a red circle", num_images=5, seed=4, guidance_scale=2.0)
    in_parts = pipe.generate_images("a red circle", num_images=5, seed=4, guidance_scale=2.0, batch_size=2)
    assert [pixels(one) for one in in_parts] == [pixels(one) for one in all_at_once]
    assert pixels(pipe.generate_images("a red circle", seed=4, guidance_scale=2.0)[0]) == pixels(
        all_at_once[0]
    )
    several = pipe.generate_images_many(["it", "a red circle"], 2, seed=4, batch_size=4, guidance_scale=2.0)
    assert [pixels(one) for one in several[1]] == [pixels(one) for one in all_at_once[:2]]


def test_reconstruction_passes_through_the_codes(pipe, image):
    reconstructed = pipe.reconstruct(image)
    assert reconstructed.size == (16, 16)
    tokenizer = pipe.model.visual_tokenizer
    with torch.no_grad():
        codes = tokenizer.encode(pipe.processor.image_processor(image)["pixel_values"]).pixel
        expected = pipe.processor.image_processor.to_images(tokenizer.decode(codes))[0]
    assert pixels(reconstructed) == pixels(expected)


def test_chat_streams_what_it_returns(pipe, image):
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, "what is it"]}]
    parts = pipe.chat(messages, max_new_tokens=20, max_images=0)
    streamed = list(pipe.chat(messages, stream=True, max_new_tokens=20, max_images=0))
    assert "".join(part["text"] for part in streamed) == "".join(part["text"] for part in parts)
    assert all(part["type"] == "text" for part in parts)


def test_chat_returns_images_in_their_place(pipe, monkeypatch):
    config = pipe.model.config
    word = pipe.processor.tokenizer.encode(" red", add_special_tokens=False)
    script = [*word, config.image_start_token_id, *word, config.eos_token_id]

    def scripted(model, input_ids, eos_token_id, streamer, **kwargs):
        streamer.put(input_ids)
        new: list[int] = []
        while not new or new[-1] not in eos_token_id:
            new.append(script.pop(0))
            streamer.put(torch.tensor(new[-1:]))
        streamer.end()
        return torch.cat([input_ids, torch.tensor([new])], dim=1)

    monkeypatch.setattr(interleaved, "transformers_generate", scripted)
    parts = pipe.chat([{"role": "user", "content": "draw"}], seed=0)
    assert [part["type"] for part in parts] == ["text", "image", "text"]
    assert parts[1]["image"].size == (16, 16)
    # The answer continues the conversation as it is.
    pipe.processor.apply_chat_template(
        [{"role": "user", "content": "draw"}, {"role": "assistant", "content": parts}]
    )


def test_closing_a_stream_stops_the_model(pipe, monkeypatch):
    finished = []
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **options: finished.append(generate(**options)))
    (line,) = pipe.processor.tokenizer.encode("\n", add_special_tokens=False)
    # The model never ends by itself, and a line is streamed at every step.
    forced = torch.eye(pipe.model.config.text_config.vocab_size)[line]
    monkeypatch.setattr(pipe.model, "text_logits", lambda states: forced.expand(*states.shape[:2], -1))
    stream = pipe.chat([{"role": "user", "content": "a red"}], stream=True, max_new_tokens=200, max_images=0)
    next(stream)
    stream.close()
    assert finished[0].sequences.shape[1] < 150


def test_an_error_in_the_background_is_raised(pipe):
    with pytest.raises(UserError, match="temperature"):
        pipe.model.generate(
            **pipe._inputs([[{"role": "user", "content": "x"}]]), generation_mode="image", temperature=-1.0
        )
    with pytest.raises(UserError):
        list(pipe.chat([{"role": "user", "content": "x"}], stream=True, seed=-1))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda pipe: pipe.generate_images(""), "prompt is empty"),
        (lambda pipe: pipe.generate_images("  "), "prompt is empty"),
        (lambda pipe: pipe.generate_images("x", num_images=0), "num_images"),
        (lambda pipe: pipe.generate_images("x", guidance_scale=-2), "guidance_scale"),
        (lambda pipe: pipe.answer("absent.png", "what"), "does not exist"),
        (lambda pipe: pipe.answer(None, ""), "empty"),
        (lambda pipe: pipe.answer(None, "red " * 300), "context"),
        (lambda pipe: pipe.answer(None, "red", max_new_tokens=0), "max_new_tokens"),
        (lambda pipe: pipe.chat([]), "empty"),
        (lambda pipe: pipe.from_pretrained("no/pe"), r"not found on the hub or in its cache \(offline\?\)"),
    ],
)
def test_mistakes_are_named(pipe, call, named):
    with pytest.raises(UserError, match=named):
        call(pipe)


def test_models_and_devices_are_resolved_or_named(saved, tmp_path, monkeypatch):
    assert resolve_model(saved) == str(saved)
    assert resolve_model("owner/name") == "owner/name"
    for wrong in (tmp_path, tmp_path / "absent", "absent"):
        with pytest.raises(UserError):
            resolve_model(wrong)
    monkeypatch.setattr("dualtoken.common.loading.model_source.PRETRAINED_FOLDER", saved.parent)
    saved.rename(saved.parent / "nano")
    assert resolve_model("nano") == str(saved.parent / "nano")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda"):
            DualTokenPipeline.from_pretrained("nano", device="cuda")
    with pytest.raises(UserError, match="tpu"):
        DualTokenPipeline.from_pretrained("nano", device="tpu")


def test_transformers_own_pipeline_works(saved, image):
    pipe: Any = transformers_pipeline("any-to-any", model=str(saved), dtype=torch.float32)
    question: list[dict[str, Any]] = [{"type": "image", "image": image}, {"type": "text", "text": "what"}]
    (answer,) = pipe(text=[{"role": "user", "content": question}], max_new_tokens=5, return_full_text=False)
    assert isinstance(answer["generated_text"], str)
    prompt = [{"role": "user", "content": "a red circle"}]
    (generated,) = pipe(text=prompt, generation_mode="image", return_full_text=None)
    assert generated["generated_image"].size == (16, 16)


def test_images_arrive_prompt_by_prompt_and_objects_are_shown_in_one_short_line(pipe):
    arriving = pipe.iter_images(["red", "is it"], 3, seed=0, batch_size=2)
    first = next(arriving)
    assert [len(first), *map(len, arriving)] == [3, 3]
    assert [pixels(one) for one in first] == [pixels(one) for one in pipe.generate_images("red", 3, seed=0)]
    inputs = pipe._inputs([[{"role": "user", "content": "red"}]])
    answer = pipe.model.generate(**inputs, generation_mode="interleaved", max_new_tokens=2, max_images=0)
    record = pipe.processor.encode_record([{"role": "user", "content": "red"}])
    for shown, part in ((pipe.processor, "16 positions"), (answer, "0 images"), (record, "0 targets")):
        assert part in repr(shown)
        assert len(repr(shown)) < 120
