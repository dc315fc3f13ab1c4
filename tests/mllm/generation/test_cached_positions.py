"""Positions follow from the mask: left-padded prompts continue as they do alone, in any loop and cache."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

from dualtoken.mllm.language_model import CACHE_NAME
from dualtoken.tokenizer import UserError

SHORT, LONG = "red", "how many blue square above the green circle left of it"
STEPS = 5
LLMS = {
    "llama": {},
    "gpt2": {"model_type": "gpt2"},  # learned absolute positions
    "mistral": {"model_type": "mistral", "sliding_window": 6},
    "gemma2": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 6},
}
CACHES = {
    "grown by the model": lambda config: None,
    "dynamic": lambda config: DynamicCache(),
    "dynamic with windows": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=96),
}


def prompts(processor, image, *texts):
    image = {"type": "image", "image": image}
    conversations = [[{"role": "user", "content": [image, {"type": "text", "text": one}]}] for one in texts]
    return dict(processor.apply_chat_template(conversations, add_generation_prompt=True))


@torch.no_grad()
def loop(model, inputs, cache, chunk=None):
    """What a user writes: the most likely token `STEPS` times, with a mask, and without positions."""
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    pictures = {name: value for name, value in inputs.items() if "codes" in name or name == "pixel_values"}
    found = []
    if chunk:  # the prompt in two parts, the first with all images
        output = model(
            ids[:, :chunk], attention_mask=mask[:, :chunk], cache=cache, use_cache=True, **pictures
        )
        cache, ids, pictures = output[CACHE_NAME], ids[:, chunk:], {}
    for _ in range(STEPS):
        output = model(ids, attention_mask=mask, cache=cache, use_cache=True, **pictures)
        cache, pictures = output[CACHE_NAME], {}
        found.append(output.logits[:, -1])
        ids = found[-1].argmax(dim=-1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(found, dim=1)


@torch.no_grad()
def without_cache(model, inputs):
    inputs, found = dict(inputs), []
    for _ in range(STEPS):
        found.append(model(**inputs, use_cache=False).logits[:, -1])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], found[-1].argmax(-1, keepdim=True)], dim=1)
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("llm", LLMS)
def test_a_padded_batch_in_a_hand_written_loop_equals_each_prompt_alone(
    make_model, processor, image, llm, kind
):
    model = make_model({"num_key_value_heads": 2, **LLMS[llm]})
    new_cache = lambda: CACHES[kind](model.config.text_config)  # noqa: E731
    both = prompts(processor, image, LONG, SHORT)
    assert int(both["attention_mask"][1, 0]) == 0
    together = loop(model, both, new_cache())
    torch.testing.assert_close(together, without_cache(model, both), rtol=1e-4, atol=1e-4)
    for row, text in enumerate((LONG, SHORT)):
        single = prompts(processor, image, text)
        torch.testing.assert_close(loop(model, single, new_cache())[0], together[row], rtol=1e-4, atol=1e-4)
    if kind != "grown by the model":
        after_images = both["input_ids"].shape[1] - 4
        parts = loop(model, both, new_cache(), chunk=after_images)
        torch.testing.assert_close(parts, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("llm", LLMS)
def test_generate_equals_the_hand_written_loop_with_every_cache(make_model, processor, image, llm):
    model = make_model({"num_key_value_heads": 2, **LLMS[llm]})
    both = prompts(processor, image, LONG, SHORT)
    length = both["input_ids"].shape[1]
    # Bare logits, so that no token is suppressed.
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "eos_token_id": None, "disable_compile": True}
    for cache in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        output = model.generate(**both, **options, **cache)
        first = torch.stack(output.logits, dim=1)[:, 0]
        torch.testing.assert_close(first, loop(model, both, None)[:, 0], rtol=1e-4, atol=1e-4)
        for row, text in enumerate((LONG, SHORT)):
            alone = model.generate(**prompts(processor, image, text), **options, **cache)
            assert alone.sequences[0, -STEPS:].tolist() == output.sequences[row, length:].tolist()


def test_a_mask_of_the_new_tokens_only_is_refused(model, processor, image):
    both = prompts(processor, image, LONG, SHORT)
    for cache in (DynamicCache(), StaticCache(config=model.config.text_config, max_cache_len=96)):
        cache = model(**both, cache=cache, use_cache=True)[CACHE_NAME]
        length = both["input_ids"].shape[1]
        with pytest.raises(UserError, match=f"1 columns for {length} cached and 1 new"):
            model(both["input_ids"][:, :1], attention_mask=torch.ones(2, 1), cache=cache)


def test_a_mask_may_cover_tokens_to_come(model, processor, image):
    both = prompts(processor, image, LONG, SHORT)
    static = lambda: StaticCache(config=model.config.text_config, max_cache_len=96)  # noqa: E731
    expected = loop(model, both, static())[:, 0]
    longer = torch.nn.functional.pad(both["attention_mask"], (0, 96 - both["input_ids"].shape[1]))
    output = model(**{**both, "attention_mask": longer}, cache=static(), use_cache=True)
    torch.testing.assert_close(output.logits[:, -1], expected)


def test_the_likelihood_of_an_image_does_not_depend_on_padding(model, processor, records):
    kinds = ["text_to_image", "interleaved"]
    encoded = [processor.encode_record(records[kind]) for kind in kinds]
    left = model.visual_log_likelihood(**processor.collate(encoded, padding_side="left"))
    alone = [model.visual_log_likelihood(**processor.collate([one])) for one in encoded]
    for name in ("pixel", "semantic"):
        parts = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(left, name), parts, rtol=1e-4, atol=1e-4)
