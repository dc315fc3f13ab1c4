"""Cached codes are the codes of the tokenizer, record for record, and are bound to it."""

import numpy as np
import pytest
import torch

from dualtoken.data_pipelines.code_cache import check_codes_belong, codes_checksum, tokenize_shards
from dualtoken.data_pipelines.records import EncodedImage, Record, assistant, image_part, user
from dualtoken.data_pipelines.scenes import random_scene, render
from dualtoken.data_pipelines.shards import ShardDataset, ShardWriter
from dualtoken.scripts import cli
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor, StoredTokenizer
from dualtoken.tokenizer.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer) -> DualTokenizer:
    """4 × 4 positions, 3 codes of 24 per branch."""
    return tiny_tokenizer()


def picture(seed: int):
    return image_part(render(random_scene(np.random.default_rng(seed)), 24))


@pytest.fixture
def images(tmp_path):
    broken = image_part(EncodedImage(b"\x89PNG\r\n\x1a\n broken", "png"))
    with ShardWriter(tmp_path / "images", source="s", licence="l", shard_size=4) as writer:
        for number in range(7):
            writer.write(Record(f"t{number}", [user("draw"), assistant(picture(number))], {"n": number}))
        writer.write(Record("two", [user(picture(20), picture(21), "both"), assistant("yes")]), "heldout")
        writer.write(Record("text", [user("hi"), assistant("ho")]), "heldout")
        writer.write(Record("broken", [user(broken, "?"), assistant("!")]), "heldout")
    return tmp_path / "images"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_codes_replace_images_and_nothing_else_changes(tokenizer, images, tmp_path, batch_size):
    output = tmp_path / "codes"
    manifest = tokenize_shards(tokenizer, images, output, batch_size=batch_size, progress=False)
    assert manifest["counts"]["splits"] == {"train": 7, "heldout": 2}
    assert manifest["counts"]["rejected"] == 1
    processor = DualTokenizerImageProcessor(size=16)
    for split in ("train", "heldout"):
        before, after = ShardDataset(images, split), ShardDataset(output, split)
        for index in range(len(after)):
            old, new = before[index], after[index]
            assert (old.id, old.texts(), old.metadata) == (new.id, new.texts(), new.metadata)
            for image, part in zip(old.image_parts(), new.image_parts(), strict=True):
                codes = tokenizer.encode(processor(image["image"])["pixel_values"])
                assert part["pixel_codes"].dtype == np.uint16
                # Batches of other sizes may round differently, which seldom moves a code.
                assert (part["pixel_codes"] == codes.pixel[0].numpy()).mean() > 0.95
                assert (part["semantic_codes"] == codes.semantic[0].numpy()).mean() > 0.95


def test_codes_belong_to_their_tokenizer(tokenizer, images, tmp_path):
    manifest = tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False)
    check_codes_belong(manifest, codes_checksum(tokenizer))
    check_codes_belong(ShardDataset(images).manifest, codes_checksum(tokenizer))
    state = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    try:
        with torch.no_grad():
            next(tokenizer.pixel_decoder.parameters()).add_(1.0)
        check_codes_belong(manifest, codes_checksum(tokenizer))  # the decoder does not touch the codes
        with torch.no_grad():
            next(tokenizer.backbone.parameters()).add_(1.0)
        with pytest.raises(UserError, match="another tokenizer"):
            check_codes_belong(manifest, codes_checksum(tokenizer))
    finally:
        tokenizer.load_state_dict(state)


def test_the_checksum_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert codes_checksum(DualTokenizer.from_pretrained(tmp_path)) == codes_checksum(tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_have_the_checksum_of_the_tokenizer(tiny_tokenizer, tmp_path, dtype):
    """Whatever the number format and the number of files."""
    tiny_tokenizer().to(dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, stored = DualTokenizer.from_pretrained(tmp_path), StoredTokenizer.from_pretrained(tmp_path)
    assert codes_checksum(stored) == codes_checksum(loaded)
    state = loaded.state_dict()
    assert set(stored.state_dict()) == set(state)
    assert all(torch.equal(stored.state_dict()[name], state[name]) for name in state)
    assert torch.equal(
        stored.load().state_dict()["pixel_quantizer.codebooks.vectors"],
        loaded.pixel_quantizer.codebook_tensor(),
    )


def test_codes_are_not_tokenized_again(tokenizer, images, tmp_path):
    tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False)
    with pytest.raises(UserError, match="codes already"):
        tokenize_shards(tokenizer, tmp_path / "codes", tmp_path / "again", progress=False)


def test_the_command(tokenizer, images, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    DualTokenizerImageProcessor(size=16).save_pretrained(tmp_path / "tokenizer")
    arguments = ["tokenize", "--input", str(images), "--output", str(tmp_path / "out"), "--no-progress"]
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "tokenizer"), "--device", "cpu"]) == 0
    assert "9 records" in capsys.readouterr().out
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "nothing")]) == 2
    assert "--tokenizer" in capsys.readouterr().err
