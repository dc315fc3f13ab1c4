"""What a session notices around the answers: how long an import takes, progress."""

import subprocess
import sys

import pytest

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenPipeline


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
# Imports its neighbours while it is imported: nothing of ours may be drawn in between.
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
