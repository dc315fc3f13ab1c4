"""Image i of a seed: with `batch_invariant` the same bits in any request, as all shapes are the same."""

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dualtoken.mllm.generation.fixed_batches import FixedBatch, fixed_batches
from dualtoken.mllm.gpu_proof import prove_batch_invariance

TEXTS = ("red", "how many blue square above the green circle left of it and what colour is the square")
SIZE = 2


class RowsMatter(TorchFunctionMode):
    """Rounds products as kernels do that add up in another order for other numbers of rows."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is not functional.linear:
            return result
        rows, columns = args[0].shape[:-1].numel(), torch.arange(float(result.shape[-1]))
        return result * (1 + 0.03 * torch.sin(columns * rows))


@pytest.fixture
def images(make_model, processor, cached_image):
    """The codes of images, by a machine on which the number of rows matters."""
    model = make_model(semantic_condition="pixel", visual_position="learned")

    def generate(*texts, count, first=0, size=SIZE, with_image=True, **options):
        part = [cached_image(0)] if with_image else []
        turns = [[{"role": "user", "content": [*part, {"type": "text", "text": text}]}] for text in texts]
        inputs = dict(processor.apply_chat_template(turns, add_generation_prompt=True))
        options = {"guidance_scale": 2.0, "seed": 5, **options}
        options |= {"num_return_sequences": count, "first_image_index": first, "batch_invariant": size}
        with RowsMatter():
            return model.generate(**inputs, generation_mode="image", **options)

    return generate


def test_batches_start_at_multiples_of_their_size():
    assert fixed_batches(1, 1, 0, 4) == [FixedBatch(0, 0, slice(0, 1))]
    assert fixed_batches(1, 3, 3, 4) == [FixedBatch(0, 0, slice(3, 4)), FixedBatch(0, 4, slice(0, 2))]
    assert [batch.prompt for batch in fixed_batches(2, 4, 0, 2)] == [0, 0, 1, 1]
    assert fixed_batches(1, 2, 6, 1) == [FixedBatch(0, 6, slice(0, 1)), FixedBatch(0, 7, slice(0, 1))]


def test_an_image_is_the_same_in_any_request_where_the_number_of_rows_matters(images):
    short, long = (images(text, count=4) for text in TEXTS)
    for count, first in ((1, 0), (3, 0), (2, 1), (1, 3)):
        assert torch.equal(images(TEXTS[0], count=count, first=first), short[first : first + count])
    both = images(*TEXTS, count=3)
    assert torch.equal(both, torch.cat([short[:3], long[:3]]))
    seeds = images(*TEXTS[::-1], count=1, seed=[9, 5])
    assert torch.equal(seeds[1:], short[:1])
    # As batches come, and with another size, it is another image.
    assert not torch.equal(images(TEXTS[0], count=1, size=0), images(TEXTS[0], count=4, size=0)[:1])
    assert not torch.equal(images(TEXTS[0], count=1, size=3), short[:1])


def test_progress_covers_all_batches(images):
    seen = []
    images(*TEXTS, count=3, with_image=False, progress=lambda *at: seen.append(at))
    assert seen == [(position, 64) for position in range(1, 65)]


def test_the_number_of_threads_does_not_follow_the_number_of_images(images, monkeypatch):
    rows = []
    monkeypatch.setattr(
        "dualtoken.common.machine.worth_threads", lambda weights, given: rows.append(given) or True
    )
    for count in (1, 5):
        images(TEXTS[0], count=count, with_image=False)
    assert rows == [2 * SIZE, 2 * SIZE]


def test_bf16_images_are_the_same_in_any_request():
    prove_batch_invariance("cpu", torch.bfloat16, size=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_images_are_the_same_in_any_request_on_a_gpu(dtype, compile):
    prove_batch_invariance("cuda", dtype, size=4, compile=compile)
