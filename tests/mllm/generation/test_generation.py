"""Generation: cached == uncached, batch == single, image i of a seed is always the same, guidance, modes."""

import re

import pytest
import torch

from dualtoken.mllm import GenerationCancelled, ImageSamplingConfig
from dualtoken.mllm.generation import interleaved
from dualtoken.mllm.generation.image_generation import unconditional_ids
from dualtoken.mllm.generation.outputs import split_image_tokens
from dualtoken.mllm.generation.sampling import guide, image_uniforms, sample_codes
from dualtoken.tokenizer import UserError, VisualCodes

SHORT, LONG = (
    "red",
    "how many blue square above the green circle left of it and what colour is the square below",
)


def prompts(processor, *texts):
    conversations = [[{"role": "user", "content": text}] for text in texts]
    return processor.apply_chat_template(conversations, add_generation_prompt=True)


def images_of(model, processor, *texts, **options):
    options = {"guidance_scale": 2.0, "seed": 5, **options}
    return model.generate(**prompts(processor, *texts), generation_mode="image", **options)


@pytest.mark.parametrize("condition", [{}, {"pixel_condition": "semantic"}, {"semantic_condition": "pixel"}])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_image_loop_equals_full_forward_passes(make_model, processor, condition, scale):
    """Every code is the one sampled from logits computed without a cache, over the whole sequence at once."""
    model = make_model(**condition, visual_position="learned", shared_classifier=False)
    tokens = images_of(model, processor, SHORT, guidance_scale=scale, top_p=0.9, truncate_from_level=1)
    codes = split_image_tokens(model.config, tokens)
    ids = [*prompts(processor, SHORT)["input_ids"][0].tolist(), model.config.image_start_token_id]
    branches = [torch.tensor(ids)] + ([unconditional_ids(model.config)] if scale != 1.0 else [])
    states = torch.cat([_visual_states(model, branch, codes) for branch in branches])  # (branches x P, H)
    repeated = lambda x: torch.cat([x[0]] * len(branches))  # noqa: E731
    given = repeated(codes.pixel), repeated(codes.semantic)
    given = dict(zip(("pixel", "semantic"), given, strict=True))
    pixel, semantic = (model.branches.predict(name, states, given) for name in given)
    noise = image_uniforms(5, 0, 16, 6)
    options = ImageSamplingConfig(guidance_scale=scale, top_p=0.9, truncate_from_level=1)
    for name, outputs, given, uniforms in (
        ("pixel", pixel, codes.pixel, noise[:, :3]),
        ("semantic", semantic, codes.semantic, noise[:, 3:]),
    ):
        head = model.branches[name].depth_transformer
        for depth in range(3):
            logits = head.classify(outputs[:, depth], depth)
            logits = guide(logits, scale) if len(branches) > 1 else logits
            assert (
                sample_codes(logits, uniforms[:, depth], options, depth).tolist()
                == given[0, :, depth].tolist()
            )


@torch.no_grad()
def _visual_states(model, prompt_ids, codes):
    """The states that predict each position of one image, from one pass over prompt and image."""
    slots = torch.full((15,), model.config.image_token_id)
    embeds = model.get_input_embeddings()(torch.cat([prompt_ids, slots]))
    seen = {name: part[0, :15] for name, part in vars(codes).items()}
    embeds[len(prompt_ids) :] = model.embed_codes(seen, torch.arange(15))
    states = model.language_model.base_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
    return states[0, len(prompt_ids) - 1 :]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_image_is_the_same_alone_and_in_any_batch(model, processor, scale):
    alone = images_of(model, processor, SHORT, num_return_sequences=3, guidance_scale=scale)
    assert len(set(map(tuple, alone.tolist()))) == 3
    together = images_of(model, processor, LONG, SHORT, num_return_sequences=2, guidance_scale=scale)
    assert torch.equal(together[2:], alone[:2])
    third = images_of(model, processor, SHORT, first_image_index=2, guidance_scale=scale)
    assert torch.equal(third, alone[2:])
    assert torch.equal(
        images_of(model, processor, LONG, SHORT, seed=[9, 5], guidance_scale=scale)[1:], alone[:1]
    )


@pytest.mark.parametrize(
    "llm",
    [
        {"model_type": "mistral", "sliding_window": 6},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 12, "attn_implementation": "eager"},
        {"model_type": "gemma2", "head_dim": 12, "sliding_window": 6},
        {"model_type": "gpt_neox"},
        {"model_type": "gpt2"},  # learned absolute positions: padding must not shift them
    ],
    ids=lambda llm: llm["model_type"],
)
def test_any_causal_language_model(make_model, processor, llm):
    model = make_model({"num_key_value_heads": 2, **llm})
    alone = images_of(model, processor, SHORT)
    assert torch.equal(images_of(model, processor, LONG, SHORT)[1:], alone)
    codes = split_image_tokens(
        model.config, images_of(model, processor, LONG, guidance_scale=1.0, temperature=0.0)
    )
    prompt = [*prompts(processor, LONG)["input_ids"][0].tolist(), model.config.image_start_token_id]
    states = _visual_states(model, torch.tensor(prompt), codes)
    branch = model.branches["semantic"]
    outputs = branch.depth_transformer(states, codes.semantic[0], branch.codebook)
    assert torch.equal(branch.depth_transformer.classify(outputs, 0).argmax(-1), codes.semantic[0])
    inputs = prompts(processor, LONG, SHORT)
    text = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(text, model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False))


def test_images_need_pixel_codes_only(make_model, processor):
    tokens = images_of(make_model(visual_branches="pixel"), processor, SHORT)
    codes = split_image_tokens(make_model().config, tokens)
    assert codes.semantic.eq(0).all()
    assert len(codes.pixel.unique()) > 3
    with pytest.raises(UserError, match="cannot generate images"):
        images_of(make_model(visual_branches="semantic"), processor, SHORT)


def test_guidance_of_one_is_no_guidance(model, processor, monkeypatch):
    plain = images_of(model, processor, LONG, guidance_scale=1.0)
    # The same with both branches computed: u + 1 (c - u) = c.
    monkeypatch.setattr(ImageSamplingConfig, "guided", property(lambda self: True))
    assert torch.equal(images_of(model, processor, LONG, guidance_scale=1.0), plain)


def test_guidance_of_zero_ignores_the_prompt(model, processor):
    assert torch.equal(
        images_of(model, processor, SHORT, guidance_scale=0.0),
        images_of(model, processor, LONG, guidance_scale=0.0),
    )
    assert not torch.equal(
        images_of(model, processor, SHORT, guidance_scale=1.0),
        images_of(model, processor, LONG, guidance_scale=1.0),
    )


def test_the_unconditional_branch_is_what_training_shows(model, processor, records):
    from dualtoken.mllm import drop_prompt

    trained = processor.encode_record(drop_prompt(records["text_to_image"])).input_ids
    expected = unconditional_ids(model.config).tolist()
    assert trained[: len(expected)].tolist() == expected


def test_progress_counts_positions_and_can_stop(model, processor):
    seen = []
    tokens = images_of(model, processor, SHORT, progress=lambda *at: seen.append(at))
    assert seen == [(position, 16) for position in range(1, 17)]
    with pytest.raises(GenerationCancelled, match="after 3 of 16"):
        images_of(model, processor, SHORT, progress=lambda done, total: done < 3)
    assert torch.equal(images_of(model, processor, SHORT), tokens)


def test_image_tokens_decode_to_pixels(model, processor, visual_tokenizer):
    tokens = images_of(model, processor, SHORT, num_return_sequences=2)
    assert tokens.shape == (2, 16 * 6)
    grid = tokens.view(2, 4, 4, 6)[..., :3]
    pixels = model.decode_image_tokens(tokens)
    with torch.no_grad():
        torch.testing.assert_close(pixels, visual_tokenizer.decode(grid))
    images = processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert [one.size for one in images] == [(16, 16)] * 2


def questions(image, other_image):
    part = lambda source: {"type": "image", "image": source}  # noqa: E731
    return [
        [{"role": "user", "content": [part(image), part(other_image), "how many"]}],
        [{"role": "user", "content": "is it"}],
        [{"role": "user", "content": [part(other_image), LONG]}],
    ]


def test_answers_are_the_same_alone_and_in_a_batch(model, processor, image, other_image):
    conversations = questions(image, other_image)
    options = {"max_new_tokens": 12, "do_sample": False}
    batch = model.generate(
        **processor.apply_chat_template(conversations, add_generation_prompt=True), **options
    )
    texts = processor.post_process_multimodal_output(batch[:, -12:])
    for conversation, text in zip(conversations, texts, strict=True):
        inputs = processor.apply_chat_template(conversation, add_generation_prompt=True)
        alone = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        assert processor.post_process_multimodal_output(alone) == [text]


def test_cached_text_equals_uncached(model, processor, image, other_image):
    inputs = processor.apply_chat_template(questions(image, other_image), add_generation_prompt=True)
    cached = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=True)
    assert torch.equal(cached, model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False))


def test_several_answers_keep_each_prompts_images(model, processor, image, other_image):
    inputs = processor.apply_chat_template(questions(image, other_image), add_generation_prompt=True)
    greedy = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    # top_k=1 samples the greedy token in every copy.
    copies = model.generate(**inputs, max_new_tokens=6, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(copies, greedy.repeat_interleave(2, dim=0))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ],
    ids=["beams", "several beams", "penalties"],
)
def test_transformers_own_ways_of_search_are_the_same_in_a_batch(
    model, processor, image, other_image, options
):
    conversations = questions(image, other_image)
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    batch = model.generate(
        **processor.apply_chat_template(conversations, add_generation_prompt=True), **options
    )
    answers = options.get("num_return_sequences", 1)
    texts = processor.post_process_multimodal_output(batch[:, -6:])
    for number, conversation in enumerate(conversations):
        inputs = processor.apply_chat_template(conversation, add_generation_prompt=True)
        alone = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        mine = texts[number * answers : (number + 1) * answers]
        assert processor.post_process_multimodal_output(alone) == mine


def test_an_answer_ends_at_a_stop_string(model, processor, image):
    inputs = processor.apply_chat_template(questions(image, image)[0], add_generation_prompt=True)
    prompt = inputs["input_ids"].shape[1]
    options = {"do_sample": True, "seed": 1, "temperature": 2.0, "tokenizer": processor.tokenizer}
    whole = model.generate(**inputs, max_new_tokens=20, **options)
    word = re.findall("[a-z]{2,}", processor.tokenizer.decode(whole[0, prompt:]))[0]
    stopped = model.generate(**inputs, max_new_tokens=20, stop_strings=word, **options)
    assert stopped.shape[1] < whole.shape[1]
    assert re.search(f"{word}[a-z]*$", processor.tokenizer.decode(stopped[0, prompt:]))


def test_text_holds_no_image_tokens(model, processor):
    with torch.no_grad():
        # Even where the model wants them most.
        model.get_input_embeddings().weight[model.config.image_start_token_id] *= 100
        model.get_input_embeddings().weight[model.config.image_token_id] *= 100
    sampling = {"max_new_tokens": 20, "do_sample": True, "seed": 0}
    with pytest.raises(UserError, match="generation_mode='image'"):
        model.generate(**prompts(processor, SHORT), **sampling)
    out = model.generate(**prompts(processor, SHORT), generation_mode="text", **sampling)
    new = set(out[0, -20:].tolist())
    assert not new & {value for key, value in processor.special_ids.items() if key != "<|end|>"}


def test_sampled_text_follows_its_seed(model, processor):
    inputs = prompts(processor, SHORT)
    options = {"max_new_tokens": 12, "do_sample": True}
    state = torch.random.get_rng_state()
    first = model.generate(**inputs, **options, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model.generate(**inputs, **options, seed=1), first)
    assert not torch.equal(model.generate(**inputs, **options, seed=2), first)


def test_an_interleaved_answer_alternates(model, processor, image, monkeypatch):
    """The model is made to write a word, open an image, write another word, and end."""
    word, config = processor.tokenizer.encode(" red", add_special_tokens=False)[0], model.config
    script = [word, config.image_start_token_id, word, config.eos_token_id]

    def scripted(model, input_ids, eos_token_id, **kwargs):
        new: list[int] = []
        while not new or new[-1] not in eos_token_id:
            new.append(script.pop(0))
        return torch.cat([input_ids, torch.tensor([new])], dim=1)

    monkeypatch.setattr(interleaved, "transformers_generate", scripted)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": image}, "draw"]}], add_generation_prompt=True
    )
    out = model.generate(**inputs, generation_mode="interleaved", seed=5)
    slots = [config.image_token_id] * 16
    expected = [
        word,
        config.image_start_token_id,
        *slots,
        config.image_end_token_id,
        word,
        config.eos_token_id,
    ]
    assert out.sequences[0, inputs["input_ids"].shape[1] :].tolist() == expected
    assert out.pixel_codes.shape == (1, 16, 3)


def test_images_in_the_prompt_matter(model, processor, image, other_image):
    ask = lambda source: processor.apply_chat_template(  # noqa: E731
        [{"role": "user", "content": [{"type": "image", "image": source}, "red"]}], add_generation_prompt=True
    )
    first, second = (
        model.generate(**ask(source), generation_mode="image", seed=5, guidance_scale=1.5)
        for source in (image, other_image)
    )
    assert not torch.equal(first, second)


def test_the_models_own_sampling_defaults(model, processor):
    model.config.image_sampling = {"guidance_scale": 2.0, "temperature": 0.5}
    inputs = prompts(processor, SHORT)
    own = model.generate(**inputs, generation_mode="image", seed=5)
    assert torch.equal(own, images_of(model, processor, SHORT, guidance_scale=2.0, temperature=0.5))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"generation_mode": "video"}, "generation_mode"),
        ({"generation_mode": "image", "guidance": 2}, "guidance"),
        ({"generation_mode": "image", "top_p": 0}, "top_p"),
        ({"generation_mode": "image", "num_return_sequences": 0}, "num_return_sequences"),
        ({"generation_mode": "image", "seed": [1, 2]}, "seed"),
        ({"generation_mode": "text", "guidance_scale": 2.0}, "guidance_scale"),
    ],
)
def test_mistakes_are_named(model, processor, options, named):
    with pytest.raises(UserError, match=named):
        model.generate(**prompts(processor, SHORT), **options)


def test_right_padding_is_refused(model, processor):
    records = [processor.encode_record([{"role": "user", "content": text}]) for text in (SHORT, LONG)]
    with pytest.raises(UserError, match="left"):
        model.generate(**processor.collate(records, with_labels=False), generation_mode="image")


def test_image_tokens_of_a_wrong_size_are_refused(model):
    with pytest.raises(UserError, match="96"):
        model.decode_image_tokens(torch.zeros(1, 95, dtype=torch.long))


def test_split_inverts_the_layout(model):
    pixel, semantic = torch.randint(16, (2, 2, 16, 3))
    tokens = torch.cat([pixel, semantic], dim=-1).flatten(1)
    codes = split_image_tokens(model.config, tokens)
    assert isinstance(codes, VisualCodes)
    assert torch.equal(codes.pixel, pixel)
    assert torch.equal(codes.semantic, semantic)
