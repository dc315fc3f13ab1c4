"""One bad record costs one sample, in every objective and kind of batch; what check passes is trained."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualtoken.common.errors import LONGEST_MESSAGE, UserError
from dualtoken.data_pipelines.records import EncodedImage, Record, RecordError, assistant, image_part, user
from dualtoken.data_pipelines.shards.check import check_shards
from dualtoken.data_pipelines.shards.format import read_manifest
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.sample_codec import EncodedSample, encode_record
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.train.config.data import SourceConfig
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.objectives.record_limit import RecordLimit
from dualtoken.train.stream import Stream

from .conftest import QUANTIZER, Chain
from .test_stream import PACKED, alone

NUM_CODES, DEPTH = QUANTIZER["num_codes"], QUANTIZER["depth"]
CODES = "0.pixel.npy"
#: Of the tiny language model, transformers' default for its kind.
CONTEXT = 2048


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def text_record(name: str, *words: str, **metadata: Any) -> Record:
    return Record(name, [user(words[0]), assistant(*words[1:])], metadata)


def changed(sample: EncodedSample, member: str, data: bytes | None) -> EncodedSample:
    members = [(name, data if name == member else content) for name, content in sample.members]
    return EncodedSample([(name, content) for name, content in members if content is not None], 1)


def with_json(sample: EncodedSample, **changes: Any) -> EncodedSample:
    fields = json.loads(dict(sample.members)["json"])
    return changed(sample, "json", json.dumps({**fields, **changes}).encode())


def bad_samples(sample: EncodedSample) -> dict[str, EncodedSample]:
    """Faults of the data themselves, made of a good sample with codes."""
    shape = (4, 4, DEPTH)
    codes = {
        "code too large": np.full(shape, NUM_CODES, np.uint16),
        "wrong depth": np.zeros((4, 4, DEPTH + 1), np.uint16),
        "wrong grid": np.zeros((2, 8, DEPTH), np.uint16),
        "floats": np.zeros(shape, np.float32),
    }
    return {
        **{name: changed(sample, CODES, npy(array)) for name, array in codes.items()},
        "missing member": changed(sample, CODES, None),
        "surrogate": with_json(sample, messages=[user("\ud800"), assistant("x")]),
        "surrogate in the id": with_json(sample, id="\udfff"),
        "deep metadata": with_json(sample, metadata=deep(500)),
        "metadata is a list": with_json(sample, metadata=[]),
        "empty conversation": with_json(sample, messages=[]),
        "no target": with_json(sample, messages=[user("x")]),
        "role": with_json(sample, messages=[{"role": "judge", "content": "x"}]),
    }


def write(folder: Path, good: list[Record], bad: list[EncodedSample], like: Path) -> Path:
    """A folder of shards with the tokenizer of another one; good and bad records alternate."""
    made_by = read_manifest(like).get("tokenizer")
    extra = {} if made_by is None else {"tokenizer": made_by}
    with ShardWriter(folder, source="made for tests", licence="MIT", shard_size=10, extra=extra) as writer:
        for number in range(max(len(good), len(bad))):
            for sample in (*map(encode_record, good[number : number + 1]), *bad[number : number + 1]):
                writer.write_encoded(sample)
    return folder


def stream(arguments: list[str], folder: Path, *options: str) -> tuple[Stream, Any]:
    """A stream of that folder alone, and the objective, as a run has them."""
    recipe = parse_recipe([*arguments, *options])
    only = SourceConfig(str(folder))
    recipe = replace(recipe, data=replace(recipe.data, sources={"only": only}))
    opened = Stream.open(recipe, alone())
    return opened, build_objective(recipe)


def skips(output: Path) -> dict[int, str]:
    lines = (output / "skipped-records-0.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["index"]: line["reason"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def folder(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good records with codes, each followed by a bad one."""
    like = chain.folder / "codes_vqa"
    source = ShardDataset(like)
    bad = list(bad_samples(encode_record(source[0])).values())
    bad += [
        encode_record(text_record("thousands of words", "word " * 3000, "x")),
        encode_record(text_record("very long text", "word " * 60_000, "x")),
        encode_record(text_record("an answer of blanks", "x", "  ")),
        encode_record(Record("image", [user(image_part(Image.new("RGB", (16, 16)))), assistant("x")])),
    ]
    good = [source[number] for number in range(8)]
    return write(tmp_path_factory.mktemp("bad") / "codes", good, bad, like)


def good_ids(chain: Chain) -> set[str]:
    source = ShardDataset(chain.folder / "codes_vqa")
    return {source[number].id for number in range(8)}


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("packing", [(), PACKED], ids=["plain", "packed"])
def test_bad_records_are_skipped_and_named(
    packing: tuple[str, ...], workers: str, chain: Chain, folder: Path, tmp_path: Path
) -> None:
    arguments = chain.recipe("mllm", tmp_path / "run")
    opened, objective = stream(arguments, folder, *packing, "--data.num_workers", workers)
    batches = list(islice(opened.run(objective, 0), 24 if not packing else 6))
    ids = {name for batch in batches for name in batch.record_ids}
    assert ids <= good_ids(chain)
    assert len(ids) > 4
    assert max(batch.inputs["input_ids"].shape[1] for batch in batches) < CONTEXT
    named = skips(tmp_path / "run")
    total = len(opened.sources[0])
    reasons = " ".join(named.values())
    assert len(named) == total - 8, "every bad record has been met, and no good one"
    for reason in ("hold code 16", "have shape", "surrogate", "deeper", "nothing to learn", "without codes"):
        assert reason in reasons, named
    assert sum("tokens or more" in reason for reason in named.values()) == 2
    assert all(len(reason) <= LONGEST_MESSAGE for reason in named.values())
    assert opened.metrics()["data/skipped"] >= total - 8


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_resumed_stream_skips_and_takes_the_same(
    workers: str, chain: Chain, folder: Path, tmp_path: Path
) -> None:
    def batches(start: int, count: int, workers: str) -> list[torch.Tensor]:
        arguments = chain.recipe("mllm", tmp_path / "run")
        opened, objective = stream(arguments, folder, "--data.num_workers", workers)
        return [batch.inputs["input_ids"] for batch in islice(opened.run(objective, start), count)]

    whole = batches(0, 12, "0")
    for one, other in zip(whole[6:], batches(6, 6, workers), strict=True):
        assert torch.equal(one, other)


def test_check_names_what_a_stream_skips_for_its_data(chain: Chain, folder: Path, tmp_path: Path) -> None:
    """All faults of the data are found; and where nothing is found, nothing is skipped."""
    source = ShardDataset(folder)
    unusable = []
    for number in range(len(source)):
        try:
            if not source[number].has_target():
                unusable.append(number)
        except RecordError:
            unusable.append(number)
    found = [str(fault) for _, faults in check_shards(folder) for fault in faults]
    assert len(unusable) == len(bad_samples(encode_record(source[0]))) + 1  # and the answer of blanks
    positions = [f"train-{number // 10:05d}.tar: record {number % 10} (" for number in unusable]
    assert {next((one for one in positions if fault.startswith(one)), fault) for fault in found} == set(
        positions
    )

    whole = chain.folder / "codes_vqa"
    assert [fault for _, faults in check_shards(whole) for fault in faults] == []
    opened, objective = stream(chain.recipe("mllm", tmp_path / "run"), whole)
    list(islice(opened.run(objective, 0), 30))
    assert opened.metrics()["data/skipped"] == 0


def random_parts(image: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Contents of a message: most are of the schema, some are not."""
    words = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=8)
    text = st.builds(lambda value: {"type": "text", "text": value}, words)
    odd = st.sampled_from(
        [{"type": "unconditional"}, {"type": "video", "video": "x"}, {"type": "text"}, {"type": "image"}, 3]
    )
    parts = st.lists(st.one_of(text, text, st.just(image), odd), max_size=3)
    return st.one_of(words, parts, st.none())


def random_messages(image: dict[str, Any]) -> st.SearchStrategy[Any]:
    roles = st.sampled_from(["system", "user", "user", "assistant", "assistant", "judge"])
    message = st.builds(lambda role, content: {"role": role, "content": content}, roles, random_parts(image))
    return st.lists(message, max_size=4)


def test_what_check_accepts_is_trained_on(chain: Chain, tmp_path: Path) -> None:
    """Conversations of any form, system turns anywhere: both have the same schema."""
    sample = encode_record(ShardDataset(chain.folder / "codes_vqa")[0])
    image = next(p for m in json.loads(dict(sample.members)["json"])["messages"] for p in m["content"])
    assert image["type"] == "image"
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "run")))
    numbers = itertools.count()
    accepted: list[bool] = []

    @settings(max_examples=25, deadline=None)
    @given(st.lists(random_messages(image), min_size=8, max_size=8))
    def agree(conversations: list[Any]) -> None:
        folder = tmp_path / str(next(numbers))
        samples = [with_json(sample, messages=messages) for messages in conversations]
        write(folder, [], samples, chain.folder / "codes_vqa")
        found = [str(fault) for _, faults in check_shards(folder) for fault in faults]
        dataset = ShardDataset(folder)
        for number in range(len(dataset)):
            faults = [fault for fault in found if f": record {number} (" in fault]
            unused = [fault for fault in faults if "belongs to no image part" in fault]
            accepted.append(len(faults) == len(unused))
            if accepted[-1]:
                objective.prepare(dataset[number], number)
            else:
                with pytest.raises(RecordError):
                    objective.prepare(dataset[number], number)

    agree()
    assert 0 < sum(accepted) < len(accepted)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("packing", [(), PACKED], ids=["plain", "packed"])
def test_where_nothing_can_be_used_the_run_ends_in_one_line(
    packing: tuple[str, ...], workers: str, chain: Chain, tmp_path: Path
) -> None:
    like = chain.folder / "codes_vqa"
    bad = list(bad_samples(encode_record(ShardDataset(like)[0])).values())
    data = write(tmp_path / "data", [], bad, like)
    options = [*packing, "--data.num_workers", workers]
    opened, objective = stream(chain.recipe("mllm", tmp_path / "run"), data, *options)
    with pytest.raises(UserError, match="no record") as raised:
        next(opened.run(objective, 0))
    assert "Traceback" not in str(raised.value)
    assert "the last:" in str(raised.value)


def test_a_setting_bounds_the_length(chain: Chain, tmp_path: Path) -> None:
    records = [text_record(f"r{n}", "word " * n, "x") for n in (1, 2, 3, 40, 50, 60)]
    data = write(tmp_path / "data", records, [], chain.folder / "chat")
    opened, objective = stream(chain.recipe("mllm", tmp_path / "run"), data, "--data.max_length", "30")
    for batch in islice(opened.run(objective, 0), 12):
        assert batch.inputs["input_ids"].shape[1] <= 30
    named = skips(tmp_path / "run")
    assert set(named) == {3, 4, 5}
    assert all("data.max_length is 30" in reason for reason in named.values())


def test_a_book_is_refused_before_it_is_tokenized(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "run")))

    def encode(*given: Any) -> None:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(objective.processor, "encode_record", encode)
    with pytest.raises(RecordError, match="language model's context is 2048"):
        objective.prepare(text_record("book", "word " * 100_000, "x"), 0)
    image = ShardDataset(chain.folder / "codes_vqa")[0].image_parts()[0]
    with pytest.raises(RecordError, match="tokens or more"):
        objective.prepare(Record("album", [user(*[image] * 1000), assistant("x")]), 0)


def test_a_text_that_the_tokenizer_cannot_take_costs_its_record(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "run")))

    def encode(*given: Any) -> None:
        raise TypeError("TextEncodeInput must be Union")

    monkeypatch.setattr(objective.processor, "encode_record", encode)
    with pytest.raises(RecordError, match=r"'r'.*TypeError.*TextEncodeInput"):
        objective.prepare(text_record("r", "x", "y"), 0)


@pytest.mark.parametrize(
    ("context", "setting", "limit"),
    [
        (2048, 0, 2048),
        (2048, 100, 100),
        (2048, 10**6, 2048),
        (None, 0, 32_768),
        (-1, 5, 5),
        (None, 10**6, 10**6),
    ],
)
def test_every_run_has_a_limit(context: int | None, setting: int, limit: int) -> None:
    """Also of a language model that states no context, as those without positions."""
    model = SimpleNamespace(
        config=SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=context))
    )
    vocabulary = {"abc": 0, "a": 1}
    processor = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocabulary), num_positions=16)
    found = RecordLimit.of(model, processor, setting)
    assert (found.tokens, found.characters) == (limit, 3)
    found.check(text_record("x", "x", "y"), limit)
    with pytest.raises(RecordError, match=str(limit)):
        found.check(text_record("x", "x", "y"), limit + 1)


# --- objectives on images ----------------------------------------


def broken_png() -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue()[:900], "png")


def image_records(chain: Chain) -> tuple[list[Record], dict[str, Record]]:
    """Good records, and bad ones by what is wrong with them."""
    source = ShardDataset(chain.folder / "t2i")
    good = [source[number] for number in range(8)]
    image = image_part(Image.new("RGB", (16, 16), "red"))
    part = ShardDataset(chain.folder / "codes_vqa")[0].image_parts()[0]
    bad = {
        "no image": text_record("no-image", "x", "y"),
        "codes": Record("codes", [user("red"), assistant(part)]),
        "broken": Record("broken", [user("red"), assistant(image_part(broken_png()))]),
        "no PNG": Record("none", [user("red"), assistant(image_part(EncodedImage(b"text", "png")))]),
        "no caption": Record("silent", [user(image), assistant(image)]),
    }
    return good, bad


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("name", ["contrastive", "tokenizer"])
def test_objectives_on_images_skip_what_has_none(
    name: str, workers: str, chain: Chain, tmp_path: Path
) -> None:
    good, bad = image_records(chain)
    scenes: list[Any] = [5, {}, {"objects": [[]]}, {"objects": [{}] * 5}, {"objects": "x" * 9}, deep(40)]
    scenes.append({"objects": [{"shape": "circle", "colour": "red", "x": 1e300, "y": 0, "radius": 1}]})
    if name == "contrastive":
        for number, scene in enumerate(scenes):
            bad[f"scene {number}"] = Record(f"s{number}", good[0].messages, {"scene": scene})
    else:
        bad.pop("no caption")
    long = Record("long", [user("red " * 50_000), *good[0].messages[1:]])  # cut, as the recipe asks
    data = write(
        tmp_path / "data", [*good, long], list(map(encode_record, bad.values())), chain.folder / "t2i"
    )
    arguments = chain.recipe(name, tmp_path / "run")
    opened, objective = stream(arguments, data, "--data.num_workers", workers)
    ids = {one for batch in islice(opened.run(objective, 0), 16) for one in batch.record_ids}
    assert ids == {record.id for record in (*good, long)}
    named = skips(tmp_path / "run")
    assert len(named) == len(bad), named


def test_captions_in_a_batch_are_those_of_one(chain: Chain, tmp_path: Path) -> None:
    """Captions are tokenized one by one, so that one cannot break the others; the ids are the same."""
    objective: Any = build_objective(parse_recipe(chain.recipe("contrastive", tmp_path / "run")))
    texts = ["a red circle", "x", "a blue square above a green triangle " * 5]
    image = image_part(Image.new("RGB", (16, 16)))
    examples = [
        objective.prepare(Record(str(n), [user(text), assistant(image)]), n) for n, text in enumerate(texts)
    ]
    together = objective.tokenizer(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    assert torch.equal(objective.collate(examples)["input_ids"], together["input_ids"])
