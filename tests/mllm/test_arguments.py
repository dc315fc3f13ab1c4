"""What users pass to the pipeline and the tokenizer: taken where it is plain, one line where it is not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.common.devices import resolve_device, resolve_dtype
from dualtoken.common.errors import UserError
from dualtoken.mllm import (
    DualTokenForConditionalGeneration,
    DualTokenPipeline,
    DualTokenProcessor,
    ImageSamplingConfig,
)
from dualtoken.tokenizer import DualTokenizer, StoredTokenizer, VisualCodes

QUESTION = "What colour is the square?"


@pytest.fixture(scope="module")
def pipe() -> DualTokenPipeline:
    return DualTokenPipeline.from_pretrained("nano", device="cpu")


@pytest.fixture(scope="module")
def square() -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    image.paste((200, 0, 0), (20, 20, 44, 44))
    return image


@pytest.fixture
def square_file(square: Image.Image, tmp_path: Path) -> Path:
    square.save(tmp_path / "square.png")
    return tmp_path / "square.png"


def pixels(images: list[Image.Image]) -> list[Any]:
    return [np.asarray(image).tolist() for image in images]


# --- answers -------------------------------------------------------------------


def test_questions_are_answered_however_the_image_is_given(pipe, square, square_file):
    answer = pipe.answer(square, QUESTION)
    data = square_file.read_bytes()
    for image in (str(square_file), square_file, data, np.asarray(square), [square]):
        assert pipe.answer(image, QUESTION) == answer
    assert pipe.answer(square, QUESTION.encode()) == answer
    assert pipe.answer(QUESTION, square) == answer  # swapped, and plain
    assert pipe.answer(square, [QUESTION, QUESTION]) == [answer, answer]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda pipe, path: pipe.answer(QUESTION, str(path)), "image comes first"),
        (lambda pipe, path: pipe.answer(path, None), "question is None"),
        (lambda pipe, path: pipe.answer(path, 5), "question is 5"),
        (lambda pipe, path: pipe.answer(path, b"\xff"), "not UTF-8"),
        (lambda pipe, path: pipe.answer(path, QUESTION, max_new_tokens="5"), "max_new_tokens"),
        (lambda pipe, path: pipe.answer(path, QUESTION, max_new_tokens=True), "max_new_tokens"),
        (lambda pipe, path: pipe.answer(5, QUESTION), "an image is"),
        (lambda pipe, path: pipe.answer_many("abc"), "list of pairs"),
        (lambda pipe, path: pipe.answer_many([path, QUESTION]), "item 1"),
        (lambda pipe, path: pipe.answer_many([(None, "hi")], batch_size=0), "batch_size"),
        (lambda pipe, path: pipe.answer_many([(None, "hi")], batch_size=2.0), "batch_size"),
        (lambda pipe, path: pipe.chat(5), "list of messages"),
        (lambda pipe, path: pipe.chat(QUESTION, stream="yes"), "stream"),
        (lambda pipe, path: pipe.chat(QUESTION, guidance=2), "did you mean 'guidance_scale'"),
        (lambda pipe, path: pipe.chat(QUESTION, max_images=-1), "max_images"),
        (lambda pipe, path: pipe.chat(QUESTION, seed=-1), "seed"),
        (lambda pipe, path: pipe.generate_images(["a", "b"]), "generate_images_many"),
        (lambda pipe, path: pipe.generate_images(None), "prompt is None"),
        (lambda pipe, path: pipe.generate_images("a", num_images="4"), "num_images"),
        (lambda pipe, path: pipe.generate_images("a", num_images=1.5), "num_images"),
        (lambda pipe, path: pipe.generate_images("a", num_images=0), "num_images"),
        (lambda pipe, path: pipe.generate_images("a", seed=-1), "seed"),
        (lambda pipe, path: pipe.generate_images("a", seed=2**70), "seed"),
        (lambda pipe, path: pipe.generate_images("a", seed="3"), "seed"),
        (lambda pipe, path: pipe.generate_images("a", seed=1.5), "seed"),
        (lambda pipe, path: pipe.generate_images("a", seed=True), "seed"),
        (lambda pipe, path: pipe.generate_images("a", batch_size=0), "batch_size"),
        (lambda pipe, path: pipe.generate_images("a", progress=5), "progress"),
        (lambda pipe, path: pipe.generate_images("a", guidance=2), "did you mean 'guidance_scale'"),
        (lambda pipe, path: pipe.generate_images("a", temprature=1), "did you mean 'temperature'"),
        (lambda pipe, path: pipe.generate_images("a", num_image=1), "did you mean 'num_images'"),
        (lambda pipe, path: pipe.push_to_hub("a/b", privat=True), "did you mean 'private'"),
        (lambda pipe, path: pipe.from_pretrained("nano", dtyp="bf16"), "did you mean 'dtype'"),
        (lambda pipe, path: pipe.generate_images_many("abc"), "call generate_images"),
        (lambda pipe, path: pipe.generate_images_many(["a", ""]), "prompt 2 is empty"),
        (lambda pipe, path: pipe.generate_images_many(["a", 3]), "prompt 2 is 3"),
        (lambda pipe, path: pipe.generate_images_many(["a", "b"], seed=[1]), "1 seeds for 2 prompts"),
        (lambda pipe, path: pipe.reconstruct(None), "an image is given"),
        (lambda pipe, path: pipe.reconstruct([]), "no images"),
    ],
)
def test_mistakes_are_one_line(pipe, square_file, call, named):
    with pytest.raises(UserError, match=named) as caught:
        call(pipe, square_file)
    assert len(str(caught.value)) <= 300


NOT_SCALES: list[Any] = [float("nan"), float("inf"), 1e308, 10**400, -1, "3", None, True, []]


@pytest.mark.parametrize(
    "wrong",
    [{"guidance_scale": value} for value in NOT_SCALES]
    + [{"temperature": value} for value in (-0.1, float("nan"), "hot", 1e6)]
    + [{"top_k": value} for value in (-1, 2.5, "5", 10**30)]
    + [{"top_p": value} for value in (0, -0.5, 1.5, float("nan"))]
    + [{"sampler": value} for value in ("dice", 3, ["gumbel"])],
)
def test_sampling_options_have_ranges(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ImageSamplingConfig(**wrong)


def test_numbers_of_numpy_are_numbers(pipe):
    plain = pipe.generate_images("a red circle", num_images=2, seed=3, guidance_scale=1.5)
    numpy = pipe.generate_images(
        b"a red circle", num_images=np.int32(2), seed=np.int64(3), guidance_scale=np.float32(1.5)
    )
    assert pixels(numpy) == pixels(plain)
    many = pipe.generate_images_many(["a red circle", "it"], seed=np.array([3, 4]), guidance_scale=1.5)
    assert pixels(many[0]) == pixels(plain[:1])
    assert pipe.generate_images_many([]) == []


def test_a_text_is_a_conversation_of_one_turn(pipe):
    message = {"role": "user", "content": QUESTION}
    answer = pipe.chat([message], max_images=0, max_new_tokens=4)
    assert pipe.chat(QUESTION, max_images=0, max_new_tokens=4) == answer
    assert pipe.chat(message, max_images=0, max_new_tokens=4) == answer


def test_reconstructions_come_as_they_are_asked_for(pipe, square, square_file):
    alone = pipe.reconstruct(square)
    assert pixels(pipe.reconstruct([square, square_file])) == pixels([alone, alone])


# --- the tokenizer -------------------------------------------------------------


def test_a_tokenizer_takes_images_and_its_own_codes(pipe, square, square_file):
    tokenizer = pipe.model.visual_tokenizer
    codes = tokenizer.encode(pipe.processor.image_processor(square)["pixel_values"])
    for images in (square, [square], square_file, [str(square_file)], np.asarray(square)):
        assert torch.equal(tokenizer.encode(images).pixel, codes.pixel)
    expected = tokenizer.decode(codes.pixel)
    for given in (codes, codes.pixel.to(torch.int16), codes.pixel.numpy(), codes.pixel.tolist()):
        assert torch.equal(tokenizer.decode(given), expected)
    assert torch.equal(
        tokenizer.get_image_features([square]),
        tokenizer.get_image_features(pipe.processor.image_processor(square)["pixel_values"]),
    )


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (torch.zeros(1, 8, 8, 4), "float32"),
        (torch.zeros(8, 8, 4, dtype=torch.long), "shape"),
        (torch.full((1, 8, 8, 4), 512), "0 to 511"),
        (torch.full((1, 8, 8, 4), -1), "0 to 511"),
        ("abc", "integers"),
        (None, "integers"),
        (VisualCodes(torch.zeros(1, 8, 8, 3, dtype=torch.long), torch.zeros(1)), "shape"),
    ],
)
def test_codes_that_a_tokenizer_does_not_have_are_one_line(pipe, codes, named):
    with pytest.raises(UserError, match=named):
        pipe.model.visual_tokenizer.decode(codes)


def test_nano_is_a_name_everywhere(pipe):
    assert StoredTokenizer.from_pretrained("nano").config.grid_size == (8, 8)
    assert DualTokenizer.from_pretrained("nano").config.image_size == 64
    assert DualTokenProcessor.from_pretrained("nano").num_positions == 64
    assert DualTokenForConditionalGeneration.from_pretrained("nano").config.grid_size == [8, 8]
    for kind in (DualTokenizer, DualTokenProcessor, DualTokenForConditionalGeneration, DualTokenPipeline):
        for wrong in ("nanoo", "no such", "../x", "a/b/c", "", "a\0b"):
            with pytest.raises(UserError):
                kind.from_pretrained(wrong)


# --- the pipeline as an object -------------------------------------------------


def test_devices_and_dtypes_go_by_many_names():
    cpu = torch.device("cpu")
    for device in ("cpu", cpu):
        assert resolve_device(device) == cpu
    for dtype in ("bf16", "bfloat16", "torch.bfloat16", torch.bfloat16):
        assert resolve_dtype(dtype, cpu) == torch.bfloat16
    assert resolve_dtype("auto", cpu) == resolve_dtype(None, cpu) == torch.float32
    for device in ("tpu", "gpu", "cpu:x", "", 3.5, "cuda:99", ["cpu"]):
        with pytest.raises(UserError, match="device"):
            resolve_device(device)
    for dtype in ("int8", torch.int64, "bf17", 16, ["bf16"]):
        with pytest.raises(UserError, match="dtype"):
            resolve_dtype(dtype, cpu)


def test_a_pipeline_loads_with_transformers_words(tmp_path: Path, pipe):
    pipe.save_pretrained(tmp_path / "above" / "model")
    loaded = DualTokenPipeline.from_pretrained(
        tmp_path / "above", torch.device("cpu"), torch_dtype="bf16", subfolder="model", revision="main"
    )
    assert (loaded.dtype, loaded.device) == (torch.bfloat16, torch.device("cpu"))
    assert "bfloat16, cpu" in repr(loaded)
    assert len(repr(loaded)) < 100
    assert loaded.to("float32") is loaded
    assert loaded.dtype == torch.float32
    assert loaded.to("cpu", torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(UserError, match="did you mean 'revision'"):
        DualTokenPipeline.from_pretrained("nano", revison="main")
    with pytest.raises(UserError, match="leads out"):
        DualTokenPipeline.from_pretrained(tmp_path / "above", subfolder="../elsewhere")


def test_saving_replaces_a_model_and_nothing_else(tmp_path: Path, pipe, square):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    pipe.save_pretrained(str(folder))
    answer = DualTokenPipeline.from_pretrained(folder, device="cpu").answer(square, QUESTION)
    assert answer == pipe.answer(square, QUESTION)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes"):
        pipe.save_pretrained(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").write_bytes(b"mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("other", "file"):
        with pytest.raises(UserError):
            pipe.save_pretrained(tmp_path / taken)
    assert (tmp_path / "other" / "photo.png").read_bytes() == b"mine"


def test_a_pipeline_is_pushed_as_it_is_saved(pipe, monkeypatch):
    calls: dict[str, Any] = {}

    class FakeApi:
        def __init__(self, token: Any = None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls["repo"] = (repo_id, options)

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> str:
            calls["files"] = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*")}
            calls["config"] = json.loads((Path(folder_path) / "config.json").read_text())
            return "done"

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    assert pipe.push_to_hub("me/model", private=True, token="secret") == "done"
    assert calls["repo"] == ("me/model", {"private": True, "exist_ok": True})
    assert calls["token"] == "secret"
    assert {"config.json", "model.safetensors", "visual_tokenizer/model.safetensors"} <= calls["files"]
    assert calls["config"]["model_type"] == "dualtoken"
    with pytest.raises(UserError, match="owner/name"):
        pipe.push_to_hub("/tmp/model")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error\nat length")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    with pytest.raises(UserError, match="401"):
        pipe.push_to_hub("me/model", token="secret")


@pytest.mark.parametrize("folder", [None, True, 3, b"abc", {}, [], np.zeros((2, 2)), np.array(3), iter([1])])
def test_what_is_no_path_is_no_folder_to_save_to(pipe, folder):
    with pytest.raises(UserError, match="is not a path"):
        pipe.save_pretrained(folder)


@pytest.mark.parametrize(
    "subfolder", [b"", {}, [], {"a": 1}, np.zeros((2, 2)), "\ud800", "x" * 5000, "../nano"]
)
def test_a_subfolder_is_the_name_of_one(subfolder):
    for load in (DualTokenPipeline, DualTokenForConditionalGeneration):
        with pytest.raises(UserError, match="subfolder"):
            load.from_pretrained("nano", subfolder=subfolder)


def test_options_of_loading_are_texts():
    for option in ("quantization", "attn_implementation"):
        with pytest.raises(UserError, match=option):
            DualTokenPipeline.from_pretrained("nano", device="cpu", **{option: np.zeros((2, 2))})


@pytest.mark.parametrize("value", [np.array(3), torch.tensor(2.5), np.array("hi")])
def test_an_array_without_dimensions_is_no_list_of_messages(pipe, value):
    for messages in (value, [{"role": "user", "content": value}]):
        with pytest.raises(UserError, match="list"):
            pipe.chat(messages)
    with pytest.raises(UserError, match="type"):
        pipe.chat([{"role": "user", "content": [{"type": np.zeros((2, 2)), "text": "hi"}]}])


@pytest.mark.parametrize("compile", [b"abc", {}, {"a": 1}, [None], 3, np.array(3), "no such backend", 1.5])
def test_compile_is_a_flag_or_a_backend_before_anything_is_compiled(pipe, compile):
    for call in (pipe.generate_images, pipe.chat):
        with pytest.raises(UserError, match="compile is"):
            call("a red circle", compile=compile)


def test_options_that_only_a_later_image_would_use_are_checked_at_once(pipe):
    for options in ({"guidance_scale": -1.0}, {"top_p": 7}, {"temperature": "hot"}):
        with pytest.raises(UserError, match=next(iter(options))):
            pipe.chat("hello", max_new_tokens=1, **options)
    for wrong in ("yes", 2.5, np.zeros((2, 2)), [1]):
        with pytest.raises(UserError, match="do_sample"):
            pipe.chat("hello", max_new_tokens=1, do_sample=wrong)
    assert pipe.chat("hello", max_new_tokens=1, do_sample=np.bool_(False))


def test_more_images_than_can_be_kept_are_refused(pipe):
    with pytest.raises(UserError, match="num_images"):
        pipe.generate_images("a red circle", num_images=10**400)


def test_text_is_generated_from_left_padded_prompts_only(pipe):
    inputs = dict(pipe.processor(text="a red circle", return_tensors="pt"))
    padded = {key: torch.nn.functional.pad(value, (0, 2)) for key, value in inputs.items()}
    for mode in ("text", "image"):
        with pytest.raises(UserError, match="left"):
            pipe.model.generate(**padded, max_new_tokens=2, generation_mode=mode)
    for option in ("num_beams", "num_return_sequences"):
        for wrong in (0, -1, 1.5, "2"):
            with pytest.raises(UserError, match=option):
                pipe.model.generate(**inputs, max_new_tokens=2, generation_mode="text", **{option: wrong})


@pytest.mark.parametrize(
    "pixels", [None, "x", [], torch.zeros(2), torch.zeros(1, 4, 8, 8), np.zeros((3, 8, 8))]
)
def test_what_is_no_decoded_image_is_said(pipe, pixels):
    with pytest.raises(UserError, match="decoded images"):
        pipe.processor.post_process_multimodal_output(pixels, generation_mode="image")
