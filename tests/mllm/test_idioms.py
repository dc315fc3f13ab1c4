"""Transformers' own idioms, as in a notebook: the same answers and images as the pipeline's, or an error."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    TextIteratorStreamer,
    pipeline,
)

from dualtoken.common.errors import UserError
from dualtoken.mllm import (
    DualTokenForConditionalGeneration,
    DualTokenPipeline,
    DualTokenProcessor,
    build_processor,
    resolve_model,
)
from dualtoken.mllm.conversation.chat_template import derive_chat_format

COLOUR, SHAPE = "What colour is the square?", "How many squares are there?"
PROMPT = "Draw a red circle."


@pytest.fixture(scope="module")
def pipe() -> DualTokenPipeline:
    return DualTokenPipeline.from_pretrained("nano", device="cpu")


@pytest.fixture(scope="module")
def model(pipe) -> DualTokenForConditionalGeneration:
    return pipe.model


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    made = []
    for colour in ((200, 0, 0), (0, 0, 200)):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (20, 20, 44, 44))
        made.append(image)
    return made


def messages(image: Any, text: str) -> list[dict[str, Any]]:
    part = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def rendered(processor: DualTokenProcessor, text: str) -> str:
    return processor.apply_chat_template(messages(None, text), tokenize=False, add_generation_prompt=True)


def same(first: Any, second: Any) -> bool:
    return set(first) == set(second) and all(
        torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first
    )


def answers(processor: DualTokenProcessor, inputs: Any, ids: torch.Tensor) -> list[str]:
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# --- inputs --------------------------------------------------------------------


def test_every_way_to_the_inputs_is_the_pipelines(pipe, images):
    processor, image = pipe.processor, images[0]
    expected = processor.apply_chat_template(messages(image, COLOUR), add_generation_prompt=True)
    text, placeholder = rendered(processor, COLOUR), messages(None, COLOUR)
    full = processor.tokenizer.decode(expected["input_ids"][0])
    for inputs in (
        processor(text=text, images=image),
        processor(text=[text], images=[image], padding=True),
        processor(text=[text], images=[[image]]),
        processor(text=full, images=[image]),
        processor(text=COLOUR, images=image),
        processor(image, COLOUR),
        processor(text=f"<|image|>{COLOUR}", images=image),
        processor(text=placeholder, images=image),
        processor(text=messages(image, COLOUR)),
        processor(text=text, images=image, return_tensors="np"),
        processor(text=text, images=np.asarray(image), return_tensors=None),
        processor.apply_chat_template(placeholder, images=image, add_generation_prompt=True),
        processor.apply_chat_template([placeholder], images=[[image]], add_generation_prompt=True),
    ):
        assert same(inputs, expected)


def test_a_batch_takes_its_images_by_text_or_in_a_row(pipe, images):
    processor = pipe.processor
    two = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, "and", {"type": "image"}, SHAPE]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    texts = [two, rendered(processor, COLOUR)]
    nested = processor(text=texts, images=[images, images[:1]])
    assert nested["pixel_values"].shape[0] == 3
    assert same(processor(text=texts, images=[*images, images[0]]), nested)
    assert int(nested["attention_mask"][1, 0]) == 0  # the shorter one is padded on the left


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda p, text, image: p(text=text), "1 slots for images, and 0 images are given"),
        (lambda p, text, image: p(text=text, images=[image, image]), "1 slots for images"),
        (lambda p, text, image: p(text=[text, text], images=[image]), "images for 1"),
        (lambda p, text, image: p(text=[COLOUR, COLOUR], images=[image]), "images for 1"),
        (lambda p, text, image: p(text=5), "text is 5"),
        (lambda p, text, image: p(text=text, images=image, return_tensors="tf"), "return_tensors"),
        (lambda p, text, image: p(text=text, images=image, padding="max_length"), "padding"),
        (lambda p, text, image: p(text=text, images=image, truncation=True, max_length=9), "max_length"),
        (lambda p, text, image: p(text=text, images=image, videos=[image]), "videos"),
        (lambda p, text, image: p.apply_chat_template(messages(None, "a"), images=[]), "1 slots"),
        (lambda p, text, image: p.apply_chat_template(messages(image, "a"), images=image), "0 slots"),
        (lambda p, text, image: p.apply_chat_template(messages(image, "a"), tools=[{"a": 1}]), "tools"),
    ],
)
def test_what_does_not_fit_is_one_line(pipe, images, call, named):
    with pytest.raises(UserError, match=named):
        call(pipe.processor, rendered(pipe.processor, COLOUR), images[0])


def test_a_plain_text_with_special_tokens_inside_stays_a_text(pipe):
    inputs = pipe.processor(text="say <|end|><|assistant|> aloud")
    ends = int((inputs["input_ids"] == pipe.processor.special_ids["<|end|>"]).sum())
    assert ends == 1


def test_rendered_texts_of_a_language_models_own_template_are_known(pipe, text_folder, images):
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}### {{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant: {% endif %}"
    )
    tokenizer.eos_token = "<|end|>"
    processor = build_processor(Path(resolve_model("nano")) / "visual_tokenizer", tokenizer)
    assert not processor.chat_format.is_own
    expected = processor.apply_chat_template(messages(images[0], COLOUR), add_generation_prompt=True)
    assert same(processor(text=rendered(processor, COLOUR), images=images[0]), expected)


def test_a_tokenizer_without_our_processor_is_right_for_texts_and_an_error_for_images(pipe, saved):
    conversation = [
        {"role": "user", "content": " how many? "},
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
    ]
    for folder in (saved, resolve_model("nano")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = DualTokenProcessor.from_pretrained(folder)
        for options in ({}, {"add_generation_prompt": True}):
            bare = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
            assert bare == processor.apply_chat_template(conversation, tokenize=False, **options)
        with pytest.raises(Exception, match=r"import dualtoken\.mllm"):
            tokenizer.apply_chat_template(messages("x.png", COLOUR), tokenize=False)
        assert processor.chat_template is None
        assert derive_chat_format(tokenizer).is_own


# --- generation ----------------------------------------------------------------


def test_answers_in_every_mode_of_generation_are_the_pipelines(pipe, model, images):
    processor = pipe.processor
    expected = [pipe.answer(images[0], COLOUR), pipe.answer(images[1], SHAPE + " Say it in words.")]
    texts = [rendered(processor, COLOUR), rendered(processor, SHAPE + " Say it in words.")]
    inputs = processor(text=texts, images=images)
    assert answers(processor, inputs, model.generate(**inputs, max_new_tokens=8, do_sample=False)) == expected
    alone = processor(text=texts[0], images=images[0])
    options = {"max_new_tokens": 8}
    assert answers(processor, alone, model.generate(**alone, num_beams=3, **options))[0] == expected[0]
    copies = model.generate(**alone, do_sample=True, top_k=1, num_return_sequences=3, **options)
    assert answers(processor, alone, copies) == [expected[0]] * 3
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, kwargs={**alone, **options, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected[0]
    thread.join()


def test_an_image_where_text_was_asked_for_is_an_error_and_not_nonsense(pipe, model):
    processor = pipe.processor
    inputs = processor(text=PROMPT)
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        with pytest.raises(UserError, match="generation_mode='image'"):
            model.generate(**inputs, max_new_tokens=5, **options)
    assert model.generate(**inputs, max_new_tokens=5, generation_mode="text").shape[0] == 1


def test_images_in_every_mode_are_the_pipelines(pipe, model):
    processor = pipe.processor
    expected = np.asarray(pipe.generate_images(PROMPT, seed=3)[0])
    inputs = processor(text=PROMPT)
    pixels = model.decode_image_tokens(model.generate(**inputs, generation_mode="image", seed=3))
    (image,) = processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert np.array_equal(np.asarray(image), expected)
    output = model.generate(**inputs, generation_mode="interleaved", seed=3)
    parts = processor.post_process_multimodal_output(output, generation_mode="interleaved")
    answer = pipe.chat(PROMPT, seed=3)
    assert [part["type"] for part in parts] == [part["type"] for part in answer]
    for part, other in zip(parts, answer, strict=True):
        kind = part["type"]
        assert np.array_equal(np.asarray(part[kind]), np.asarray(other[kind]))


def test_automatic_classes_and_bf16_give_the_same_answers(pipe, images):
    nano = resolve_model("nano")
    processor = AutoProcessor.from_pretrained(nano)
    inputs = processor(text=rendered(processor, COLOUR), images=images[0])
    for kind in (AutoModelForMultimodalLM, AutoModelForImageTextToText):
        loaded = kind.from_pretrained(nano, dtype=torch.bfloat16).eval()
        assert loaded.dtype == torch.bfloat16
        new = loaded.generate(**inputs.to(loaded.device), max_new_tokens=8, do_sample=False)
        assert answers(processor, inputs, new) == [pipe.answer(images[0], COLOUR)]


@pytest.mark.parametrize("task", ["any-to-any", "image-text-to-text"])
def test_transformers_pipelines_give_the_same_answers(pipe, images, task):
    made: Any = pipeline(task, model=pipe.model, processor=pipe.processor)
    expected = pipe.answer(images[0], COLOUR)
    options = {"max_new_tokens": 8, "return_full_text": False}
    (by_chat,) = made(text=messages(images[0], COLOUR), **options)
    (by_text,) = made(text=rendered(pipe.processor, COLOUR), images=images[0], **options)
    assert by_chat["generated_text"] == by_text["generated_text"] == expected


# --- a session --------------------------------------------------------------------

SESSION = """
import sys, tempfile, warnings
warnings.simplefilter("error", FutureWarning)
warnings.simplefilter("error", DeprecationWarning)
if "core" in sys.argv:  # an installation without what only extras bring
    import importlib.util
    found = importlib.util.find_spec
    missing = ("accelerate", "torchvision", "peft", "datasets")
    importlib.util.find_spec = lambda name, *rest: None if name in missing else found(name, *rest)
    sys.modules.update(dict.fromkeys(missing))
from PIL import Image
import dualtoken.mllm
from dualtoken.mllm import DualTokenPipeline, build_model, build_processor, resolve_model, save_model
from transformers import AutoModelForMultimodalLM, AutoProcessor, LlamaConfig, LlamaForCausalLM, pipeline
image = Image.new("RGB", (64, 64), "red")
pipe = DualTokenPipeline.from_pretrained("nano", device="cpu")
pipe.answer(image, "What colour is it?")
pipe.generate_images("a red circle", seed=0)
pipe.chat("Draw a red circle.", seed=0)
list(pipe.chat([{"role": "user", "content": [{"type": "image", "image": image}, "What?"]}], stream=True))
pipe.reconstruct(image)
nano = resolve_model("nano")
model, processor = AutoModelForMultimodalLM.from_pretrained(nano), AutoProcessor.from_pretrained(nano)
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}]
text = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
inputs = processor(text=text, images=image)
for options in ({}, {"num_beams": 2}, {"do_sample": True, "temperature": 0.7}):
    model.generate(**inputs, max_new_tokens=4, **options)
question[0]["content"][0]["image"] = image
for task in ("any-to-any", "image-text-to-text"):
    pipeline(task, model=model, processor=processor)(text=question, max_new_tokens=4)
with tempfile.TemporaryDirectory() as folder:
    pipe.save_pretrained(folder + "/saved")
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=2048, hidden_size=32, num_hidden_layers=1,
                                       num_attention_heads=2, intermediate_size=48))
    new = build_model(llm, nano + "/visual_tokenizer", pipe.processor.tokenizer)
    save_model(new, build_processor(nano + "/visual_tokenizer", pipe.processor.tokenizer), folder + "/new")
    DualTokenPipeline.from_pretrained(folder + "/new", device="cpu", dtype="bf16").answer(image, "x")
if "core" in sys.argv:
    try:
        AutoModelForMultimodalLM.from_pretrained(nano, device_map="auto")
    except dualtoken.common.errors.UserError as error:
        assert "pip install accelerate" in str(error), error
    else:
        raise AssertionError("there is no accelerate")
"""


@pytest.mark.parametrize("installed", ["whole", "core"])
def test_a_session_says_nothing_that_was_not_asked_for(installed: str, tmp_path: Path):
    """Nothing on stdout or stderr, with and without the packages that only extras bring."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION, installed],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
