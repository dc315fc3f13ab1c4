"""Forward pass: losses, counts, gradients for every kind of batch, padding."""

import pytest
import torch

from dualtoken.mllm import DualTokenConfig
from dualtoken.tokenizer import UserError

KINDS = {
    "text": ["text"],
    "image answer": ["question"],
    "text_to_image": ["text_to_image"],
    "mixed": ["text", "question", "text_to_image", "interleaved"],
}


def batch_of(processor, records, kinds, **options):
    return processor.collate([processor.encode_record(records[kind]) for kind in kinds], **options)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"pixel_condition": "semantic", "visual_position": "learned"}, {"semantic_condition": "pixel"}],
)
def test_every_parameter_gets_a_gradient_in_every_batch(make_model, processor, records, kinds, settings):
    model = make_model(shared_classifier=False, **settings).train()
    model(**batch_of(processor, records, kinds)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_made_up_positions_do_not_change_the_loss(model, processor, records):
    batch = batch_of(processor, records, ["text", "question"])
    evaluated = model(**batch)
    trained = model.train()(**batch)
    torch.testing.assert_close(trained.loss, evaluated.loss)
    assert trained.pixel_loss == 0
    assert trained.counts.pixel == 0


def test_losses_equal_a_plain_computation(make_model, processor, records):
    weights = [1.0, 0.5, 0.0]
    model = make_model(
        pixel_condition="semantic", pixel_depth_weights=weights, pixel_loss_weight=0.5, text_loss_weight=2.0
    )
    batch = batch_of(processor, records, ["text_to_image"])
    output = model(**batch)
    hidden = model.language_model.base_model(
        inputs_embeds=model.embed_sequence(batch["input_ids"], _codes(batch)), use_cache=False
    ).last_hidden_state[0]
    labels, image = batch["labels"][0], model.config.image_token_id
    text = [i for i in range(1, len(labels)) if labels[i] not in (-100, image)]
    visual = [i for i in range(1, len(labels)) if labels[i] == image]
    logits = model.text_logits(hidden[[i - 1 for i in text]])
    text_loss = torch.nn.functional.cross_entropy(logits, labels[text])
    pixel, semantic = batch["pixel_codes"][0], batch["semantic_codes"][0]
    states = hidden[[i - 1 for i in visual]]
    head = model.branches["pixel"].depth_transformer
    seen = model.branches["semantic"].codebook.embed(semantic)
    outputs = head(states, pixel, model.branches["pixel"].codebook, seen)
    by_depth = [
        torch.nn.functional.cross_entropy(head.classify(outputs[:, d], d), pixel[:, d]) for d in range(3)
    ]
    pixel_loss = sum(w * loss for w, loss in zip(weights, by_depth, strict=True)) / sum(weights)
    torch.testing.assert_close(output.text_loss, text_loss)
    torch.testing.assert_close(output.pixel_loss, pixel_loss)
    torch.testing.assert_close(output.pixel_depth_losses, torch.stack(by_depth))
    torch.testing.assert_close(output.loss, 2 * text_loss + 0.5 * pixel_loss + output.semantic_loss)
    assert (output.counts.text, output.counts.pixel, output.counts.semantic) == (3, 16, 16)


@pytest.mark.parametrize(("branches", "other"), [("pixel", "semantic"), ("semantic", "pixel")])
def test_a_branch_left_out_is_neither_seen_nor_trained(make_model, processor, records, branches, other):
    model = make_model(visual_branches=branches).train()
    batch = batch_of(processor, records, ["text", "interleaved", "text_to_image"])
    output = model(**batch)
    output.loss.backward()
    assert getattr(output, f"{other}_loss") == 0
    assert getattr(output, f"{branches}_loss") > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(other in name for name, _ in model.named_parameters())
    batch[f"{other}_codes"] = (batch[f"{other}_codes"] + 1) % 16
    torch.testing.assert_close(model(**batch).loss, output.loss)
    text_only = model(**batch_of(processor, records, ["text"]))
    text_only.loss.backward()  # every parameter has a gradient here too
    assert len(getattr(model.visual_log_likelihood(**batch), branches)) == 48
    assert len(getattr(model.visual_log_likelihood(**batch), other)) == 0


def test_sums_add_up_over_batches(model, processor, records):
    kinds = ["text", "question", "text_to_image", "interleaved"]
    whole = model(**batch_of(processor, records, kinds), reduction="sum")
    parts = [model(**batch_of(processor, records, [kind]), reduction="sum") for kind in kinds]
    for name in ("text", "pixel", "semantic"):
        torch.testing.assert_close(getattr(whole.sums, name), sum(getattr(part.sums, name) for part in parts))
        assert getattr(whole.counts, name) == sum(getattr(part.counts, name) for part in parts)
    torch.testing.assert_close(whole.loss, sum(part.loss for part in parts))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_padding_side_does_not_matter(make_model, processor, records, model_type):
    model = make_model({"model_type": model_type})
    kinds = ["text", "interleaved", "text_to_image"]
    right = model(**batch_of(processor, records, kinds))
    left = model(**batch_of(processor, records, kinds, padding_side="left"))
    torch.testing.assert_close(left.loss, right.loss)


def test_a_fraction_of_the_targets_keeps_counts_and_expected_sums(make_model, processor, records):
    model = make_model(visual_target_fraction=0.25)
    batch = batch_of(processor, records, ["text_to_image", "interleaved"])
    whole = model(**batch, reduction="sum")
    model.train()
    with torch.no_grad():
        parts = [model(**batch, reduction="sum") for _ in range(60)]
    assert all(part.counts.pixel == whole.counts.pixel == 48 for part in parts)
    mean = torch.stack([part.sums.pixel for part in parts]).mean()
    torch.testing.assert_close(mean, whole.sums.pixel, rtol=0.05, atol=0)
    assert len({part.sums.pixel.item() for part in parts}) > 1


@pytest.mark.parametrize(
    "llm",
    [
        {},
        {"attn_implementation": "eager"},
        {"model_type": "qwen2"},
        {"model_type": "mistral", "sliding_window": 6},
        {"model_type": "gemma2", "head_dim": 12, "sliding_window": 6, "attn_implementation": "eager"},
    ],
    ids=["llama", "llama eager", "qwen2", "mistral", "gemma2"],
)
def test_packed_equals_separate(make_model, processor, records, llm):
    """Packed documents in one row, separated by positions that restart."""
    model = make_model({"num_key_value_heads": 2, **llm}, semantic_condition="pixel").train()
    kinds = ["question", "text", "text_to_image", "interleaved"]
    separate = [model(**batch_of(processor, records, [kind]), reduction="sum") for kind in kinds]
    documents = [batch_of(processor, records, [kind]) for kind in kinds]
    packed = {
        key: torch.cat([document[key] for document in documents], dim=1) for key in ("input_ids", "labels")
    } | {
        key: torch.cat([document[key] for document in documents if key in document])
        for key in ("pixel_codes", "semantic_codes")
    }
    positions = torch.cat([torch.arange(document["input_ids"].shape[1]) for document in documents])
    output = model(**packed, position_ids=positions[None], reduction="sum")
    torch.testing.assert_close(output.loss, sum(one.loss for one in separate))
    joined = model(**packed, reduction="sum")  # without the positions the documents see each other
    assert not torch.isclose(joined.loss, output.loss)


def test_pixel_values_equal_their_cached_codes(model, processor, image, other_image):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, "and"]},
        {"role": "assistant", "content": [{"type": "image", "image": other_image}]},
    ]
    batch = processor.collate([processor.encode_record(messages)])
    codes = model.encode_images(batch["pixel_values"])
    output = model(**batch)
    del batch["pixel_values"]
    torch.testing.assert_close(
        model(**batch, pixel_codes=codes.pixel, semantic_codes=codes.semantic).loss, output.loss
    )


def test_a_position_does_not_see_its_own_codes(model, processor, records):
    """Changing the last position's codes changes its own likelihood only; all earlier ones stay."""
    batch = batch_of(processor, records, ["text_to_image"])
    before = model.visual_log_likelihood(**batch)
    batch["pixel_codes"][0, 9] = (batch["pixel_codes"][0, 9] + 1) % 24
    after = model.visual_log_likelihood(**batch)
    torch.testing.assert_close(after.pixel[:9], before.pixel[:9])
    torch.testing.assert_close(after.semantic[:10], before.semantic[:10])
    assert not torch.allclose(after.pixel[10:], before.pixel[10:])


def test_likelihood_equals_the_loss(model, processor, records):
    batch = batch_of(processor, records, ["text_to_image", "interleaved"])
    likelihood, output = model.visual_log_likelihood(**batch), model(**batch)
    torch.testing.assert_close(-likelihood.pixel.mean(dim=0), output.pixel_depth_losses)
    torch.testing.assert_close(-likelihood.semantic.mean(), output.semantic_loss)


def test_slots_and_images_must_fit(model, processor, records):
    batch = batch_of(processor, records, ["text_to_image"])
    batch["pixel_codes"] = batch["pixel_codes"].repeat(2, 1, 1)
    batch["semantic_codes"] = batch["semantic_codes"].repeat(2, 1, 1)
    with pytest.raises(ValueError, match="slots for 2 images"):
        model(**batch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel_condition": "both"},
        {"semantic_condition": "semantic"},
        {"pixel_condition": "semantic", "semantic_condition": "pixel"},
        {"visual_position": "rotary"},
        {"visual_branches": "none"},
        {"visual_branches": "pixel", "pixel_condition": "semantic"},
        {"visual_target_fraction": 0.0},
        {"pixel_depth_weights": [1.0]},
        {"depth_transformer": {"hidden_size": 30, "num_heads": 4}},
        {"depth_transformer": {"width": 30}},
        {"pixel_loss_weight": -1.0},
        {"image_sampling": {"guidance": 2.0}},
        {"image_sampling": {"top_p": 2.0}},
    ],
)
def test_configuration_mistakes_are_named(wrong):
    with pytest.raises(UserError):
        DualTokenConfig(**wrong)


def test_gradient_checkpointing_changes_nothing(model, processor, records):
    batch = batch_of(processor, records, ["text_to_image", "question"])
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def _codes(batch):
    from dualtoken.tokenizer import VisualCodes

    return VisualCodes(pixel=batch["pixel_codes"], semantic=batch["semantic_codes"])
