"""Records to batches: labels, slots, padding, images and cached codes."""

import numpy as np
import pytest
import torch

from dualtoken.mllm.conversation.rendering import SPECIAL_TOKENS
from dualtoken.tokenizer import UserError


def test_labels_are_the_targets_ids(processor, records):
    record = processor.encode_record(records["question"])
    start = int(np.flatnonzero(record.input_ids == processor.special_ids["<|assistant|>"])[0]) + 1
    assert (record.labels[:start] == -100).all()
    assert (record.labels[start:] == record.input_ids[start:]).all()
    assert processor.tokenizer.decode(record.labels[start:-1]) == "Two."


def test_image_slots_are_labelled_only_where_they_are_targets(processor, records):
    image = processor.special_ids["<|image|>"]
    for kind, slots, targets in (
        ("text_to_image", 16, 16),
        ("question", 16, 0),
        ("text", 0, 0),
        ("interleaved", 64, 32),
    ):
        record = processor.encode_record(records[kind])
        assert (record.input_ids == image).sum() == slots
        assert (record.labels == image).sum() == targets


def test_special_tokens_in_user_text_are_inert(processor):
    nasty = "".join(SPECIAL_TOKENS)
    record = processor.encode_record(
        [{"role": "user", "content": nasty}, {"role": "assistant", "content": nasty}]
    )
    special = [int(one) for one in record.input_ids if one in set(processor.special_ids.values())]
    names = {value: key for key, value in processor.special_ids.items()}
    assert [names[one] for one in special] == ["<|bos|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]


def test_collate_pads_and_orders_images(processor, records):
    encoded = [
        processor.encode_record(records[kind])
        for kind in ("question", "text", "interleaved", "text_to_image")
    ]
    right = processor.collate(encoded)
    left = processor.collate(encoded, padding_side="left")
    for row, record in enumerate(encoded):
        length = len(record)
        assert right["input_ids"][row, :length].tolist() == record.input_ids.tolist()
        assert left["input_ids"][row, -length:].tolist() == record.input_ids.tolist()
        assert right["attention_mask"][row].sum() == length == left["attention_mask"][row].sum()
        assert (right["labels"][row, length:] == -100).all()
    assert right["pixel_codes"].shape == (6, 16, 3)
    expected = records["interleaved"][0]["content"][2]["semantic_codes"].reshape(16, 3)
    assert right["semantic_codes"][2].tolist() == expected.tolist()


def test_images_become_pixel_values(processor, image, other_image):
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, "and", {"type": "image", "image": other_image}],
        }
    ]
    batch = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert torch.equal(batch["pixel_values"][1:], processor.image_processor(other_image)["pixel_values"])
    assert "labels" not in batch


def test_bare_prompts_equal_one_user_turn(processor, image):
    by_call = processor("what is it", images=image)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, "what is it"]}]
    by_template = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert torch.equal(by_call["input_ids"], by_template["input_ids"])
    assert torch.equal(by_call["pixel_values"], by_template["pixel_values"])


def test_mistakes_are_named(processor, cached_image, image):
    mixed = [{"role": "user", "content": [cached_image(0), {"type": "image", "image": image}]}]
    with pytest.raises(UserError, match="mixes"):
        processor.collate([processor.encode_record(mixed)])
    wrong = {**cached_image(0), "pixel_codes": np.zeros((3, 4, 3), dtype=np.uint16)}
    with pytest.raises(UserError, match="12 positions"):
        processor.encode_record([{"role": "user", "content": [wrong]}])
    with pytest.raises(UserError, match="does not exist"):
        processor.encode_record([{"role": "user", "content": [{"type": "image", "image": "absent.png"}]}])
    with pytest.raises(UserError, match="empty batch"):
        processor.collate([])
