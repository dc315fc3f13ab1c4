"""What a session notices around the answers: imports, progress, freed memory, threads side by side."""

import contextlib
import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenPipeline, GenerationCancelled


@pytest.fixture
def pipe(model, processor) -> DualTokenPipeline:
    return DualTokenPipeline(model, processor)


class TestProgress:
    def test_true_shows_one_bar_over_all_batches(self, pipe, capsys):
        positions = pipe.model.config.num_positions
        pipe.generate_images_many(["red", "blue"], 3, seed=0, batch_size=2, progress=True)
        assert f"/{4 * positions} " in capsys.readouterr().err
        pipe.generate_images("red", seed=0)
        assert capsys.readouterr().err == ""

    def test_a_function_sees_every_position_and_anything_else_is_refused(self, pipe):
        seen: list[tuple[int, int]] = []
        pipe.generate_images("red", 2, seed=0, progress=lambda *at: seen.append(at))
        assert seen == [(done, 16) for done in range(1, 17)]
        with pytest.raises(UserError, match="progress"):
            pipe.generate_images("red", progress="bar")


def test_importing_is_light_and_the_auto_classes_know_the_models():
    """In a process of its own: what a user's first line brings in, and transformers' classes after it."""
    script = """
import sys
import dualtoken.mllm, dualtoken.tokenizer, dualtoken.data_pipelines, dualtoken.eval
heavy = {"torch", "transformers", "deepspeed", "datasets", "torchvision", "peft", "open_clip", "webdataset",
         "accelerate", "scipy", "sklearn", "pandas", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
# Imports its neighbours while it is imported: nothing of ours may be imported in between.
from transformers.models.siglip.modeling_siglip import SiglipModel
from transformers import AutoImageProcessor, AutoModel, AutoModelForMultimodalLM, AutoProcessor
from dualtoken.mllm.pipeline import resolve_model
nano = resolve_model("nano")
processor, model = AutoProcessor.from_pretrained(nano), AutoModelForMultimodalLM.from_pretrained(nano)
visual = AutoModel.from_pretrained(nano + "/visual_tokenizer")
images = AutoImageProcessor.from_pretrained(nano + "/visual_tokenizer")
print(*(type(one).__name__ for one in (processor, model, visual, images)))
assert AutoModel._model_mapping[type(model.config)] is type(model)
unwanted = {"deepspeed", "datasets", "peft", "open_clip", "webdataset", "sklearn", "pandas"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "DualTokenProcessor",
        "DualTokenForConditionalGeneration",
        "DualTokenizer",
        "DualTokenizerImageProcessor",
    ]


QUESTION = [{"role": "user", "content": "how many"}]


def closed_stream(pipe):
    stream = pipe.chat(QUESTION, stream=True, max_new_tokens=8, max_images=1)
    next(stream, None)
    stream.close()


def failing(call, *errors):
    with contextlib.suppress(*errors):
        call()


def inputs(pipe):
    return pipe._inputs([QUESTION])


CALLS = {
    "answer": lambda pipe, image: pipe.answer(image, "how many", max_new_tokens=3),
    "chat": lambda pipe, image: pipe.chat(QUESTION, max_new_tokens=8, max_images=1),
    "sampled chat": lambda pipe, image: pipe.chat(QUESTION, max_new_tokens=3, do_sample=True, seed=1),
    "stream": lambda pipe, image: list(pipe.chat(QUESTION, stream=True, max_new_tokens=8, max_images=1)),
    "closed stream": lambda pipe, image: closed_stream(pipe),
    "images": lambda pipe, image: pipe.generate_images("red", 2, seed=0, guidance_scale=2.0),
    "many images": lambda pipe, image: pipe.generate_images_many(["red", "it"], 2, batch_size=2),
    "text": lambda pipe, image: pipe.model.generate(**inputs(pipe), max_new_tokens=3),
    "beams": lambda pipe, image: pipe.model.generate(**inputs(pipe), max_new_tokens=3, num_beams=2),
    "image mode": lambda pipe, image: pipe.model.generate(**inputs(pipe), generation_mode="image"),
    "reconstruct": lambda pipe, image: pipe.reconstruct(image),
    "refused": lambda pipe, image: failing(lambda: pipe.generate_images("red", temperature=-1.0), UserError),
    "cancelled": lambda pipe, image: failing(
        lambda: pipe.generate_images("red", progress=lambda done, total: done < 3), GenerationCancelled
    ),
    "broken callback": lambda pipe, image: failing(
        lambda: pipe.generate_images("red", progress=lambda done, total: 1 / 0), ZeroDivisionError
    ),
    "refused stream": lambda pipe, image: failing(
        lambda: list(pipe.chat(QUESTION, stream=True, seed=-1)), UserError
    ),
    "compiled": lambda pipe, image: pipe.generate_images("red", seed=0, compile="eager"),
}


@pytest.fixture
def no_collector():
    """Only reference counts free memory."""
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def new_tensors() -> int:
    """Tensors that were made since `gc.freeze`."""
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


class TestMemory:
    def test_no_call_keeps_tensors_alive(self, pipe, image, no_collector):
        gc.collect()
        gc.freeze()
        left = {}
        for name, call in CALLS.items():
            call(pipe, image)  # what is set up once, or kept until the next call, stays
            gc.collect()
            before = new_tensors()
            call(pipe, image)
            left[name] = new_tensors() - before
        assert left == dict.fromkeys(CALLS, 0)

    def test_a_model_goes_with_its_last_user(self, make_model, processor, no_collector):
        pipe = DualTokenPipeline(make_model(), processor)
        pipe.chat(QUESTION, max_new_tokens=3)
        pipe.generate_images("red", seed=0, compile="eager")
        model = weakref.ref(pipe.model)
        del pipe
        assert model() is None


class TestThreads:
    def test_seeded_calls_do_not_depend_on_other_threads(self, pipe, image):
        def answer(seed):
            parts = pipe.chat(QUESTION, max_new_tokens=6, max_images=1, do_sample=True, seed=seed)
            return [part.get("text") or part["image"].tobytes() for part in parts]

        def sample(seed):
            ids = pipe.model.generate(**inputs(pipe), max_new_tokens=6, do_sample=True, seed=seed)
            return ids.tolist()

        def generate_image(seed):
            return [one.tobytes() for one in pipe.generate_images("red", 2, seed=seed)]

        def compiled(seed):
            return [one.tobytes() for one in pipe.generate_images("red", 2, seed=seed, compile="eager")]

        def others(seed):
            torch.manual_seed(seed)
            answers = pipe.answer_many([(image, "how many"), (None, "what is it now")], max_new_tokens=3)
            return answers, pipe.reconstruct(image).tobytes()

        calls = [
            (call, seed) for seed in range(3) for call in (answer, sample, generate_image, compiled, others)
        ]
        alone = [call(seed) for call, seed in calls]
        assert len({str(one) for one in alone}) > len(calls) / 2
        together = [None] * len(calls)

        def work(first):
            for place in range(first, len(calls), 5):
                call, seed = calls[-1 - place]
                together[-1 - place] = call(seed)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone

    def test_unseeded_text_follows_the_global_generator(self, pipe):
        def sample(**options):
            torch.manual_seed(3)
            return pipe.model.generate(**inputs(pipe), max_new_tokens=8, do_sample=True, **options).tolist()

        assert sample() == sample() == sample(seed=3)
        state = torch.get_rng_state()
        pipe.model.generate(**inputs(pipe), max_new_tokens=8, do_sample=True, seed=5)
        assert torch.equal(torch.get_rng_state(), state)

    def test_encoding_while_training_never_moves_or_freezes_a_codebook(self, tiny_tokenizer):
        tokenizer, pixels = tiny_tokenizer().train(), torch.rand(2, 3, 16, 16)
        before = tokenizer.pixel_quantizer.codebook_tensor()
        tokenizer.encode(pixels)
        assert torch.equal(tokenizer.pixel_quantizer.codebook_tensor(), before)
        tokenizer(pixels)
        assert not torch.equal(tokenizer.pixel_quantizer.codebook_tensor(), before)


class TestTorchsDefaults:
    """What a session has set in torch changes neither codes nor images of a seed."""

    @staticmethod
    def results(pipe: DualTokenPipeline) -> tuple:
        picture = torch.linspace(0.0, 1.0, 3 * 32 * 32, dtype=torch.float32, device="cpu").view(3, 32, 32)
        generated = pipe.generate_images("red", seed=3, guidance_schedule="cosine", guidance_scale=2.0)[0]
        return generated.tobytes(), pipe.answer(picture, "what?", 4), pipe.reconstruct(picture).tobytes()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype(self, pipe, dtype):
        plain = self.results(pipe)
        torch.set_default_dtype(dtype)
        try:
            assert self.results(pipe) == plain
        finally:
            torch.set_default_dtype(torch.float32)

    def test_device(self, pipe):
        plain = self.results(pipe)
        with torch.device("meta"):
            assert self.results(pipe) == plain

    def test_autocast_leaves_the_visual_tokenizer_in_full_precision(self, pipe):
        plain = self.results(pipe)[2]
        with torch.autocast("cpu", torch.bfloat16):
            assert self.results(pipe)[2] == plain
