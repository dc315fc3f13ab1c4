"""The run's data: packed batches teach what separate records do, resume exactly; lost shards are counted."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, RecordError, assistant
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.mllm.conversation.collation import flash_attention_bounds
from dualtoken.train.backend.distributed import World
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.stream import Stream

from .conftest import Chain, run_training
from .test_training import assert_same_losses, losses

PACKED = ("--data.pack_length", "256", "--data.pack_window", "16", "--data.sort_window", "1")
EXACT = ("--mllm.model.visual_target_fraction", "1.0")


def alone() -> World:
    return World()


def bounded_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """What flash_attention_2 does with the bounds: documents of the flattened batch, each for itself."""
    assert attention_mask is None
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    q, k, v = (
        t.transpose(1, 2).reshape(batch * length, -1, size).transpose(0, 1) for t in (query, key, value)
    )
    k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
    bounds = given["cu_seq_lens_q"].tolist()
    assert given["max_length_q"] == max(b - a for a, b in pairwise(bounds))
    documents = [
        scaled_dot_product_attention(q[:, a:b], k[:, a:b], v[:, a:b], is_causal=True, scale=scaling)
        for a, b in pairwise(bounds)
    ]
    return torch.cat(documents, dim=1).transpose(0, 1).reshape(batch, length, heads, size), None


AttentionInterface.register("bounded", bounded_attention)
AttentionMaskInterface.register("bounded", lambda *args, **kwargs: None)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "bounded"])
def test_packed_rows_have_the_losses_of_their_records(attention: str, chain: Chain, tmp_path: Path) -> None:
    """Several rows, with questions, image generation and plain text, and their gradients."""
    arguments = [*chain.recipe("mllm", tmp_path / "x"), *EXACT]
    objective: Any = build_objective(parse_recipe(arguments))
    objective.train()
    names = ("codes_vqa", "codes_t2i", "chat")
    sources = [ShardDataset(chain.folder / name) for name in names]
    examples = [objective.prepare(source[index], index) for source in sources for index in range(4)]
    separate = [objective(**objective.collate([example])) for example in examples]
    totals = {name: sum(terms[name].total for terms in separate) for name in separate[0]}
    sum(totals.values()).backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()

    objective.set_attention(attention)
    rows = [examples[:5], examples[5:10], examples[10:]]
    length = max(sum(map(len, row)) for row in rows) + 3
    batch = objective.collate_packed(rows, length)
    assert batch["input_ids"].shape == (3, length)
    if attention == "bounded":
        batch |= flash_attention_bounds(batch["position_ids"])
    assert objective.target_counts(batch) == {
        name: sum(objective.target_counts(objective.collate([e]))[name] for e in examples) for name in totals
    }
    packed = objective(**batch)
    for name, total in totals.items():
        torch.testing.assert_close(packed[name].total, total, rtol=1e-4, atol=1e-4)
    sum(term.total for term in packed.values()).backward()
    for name, parameter in objective.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=2e-3)


def test_flash_attention_is_given_the_bounds(chain: Chain, tmp_path: Path) -> None:
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "x")))
    example = objective.prepare(ShardDataset(chain.folder / "chat")[0], 0)
    assert "cu_seq_lens_q" not in objective.collate_packed([[example]], 64)
    n = len(example)
    for version in (2, 3):
        objective.model.language_model.config._attn_implementation = f"flash_attention_{version}"
        batch = objective.collate_packed([[example, example], [example]], 64)
        assert batch["cu_seq_lens_q"].tolist() == [0, n, 2 * n, 64, 64 + n, 128]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_packed_run_resumes_with_the_same_losses(workers: str, chain: Chain, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*PACKED, "--run.gradient_accumulation_steps", "2"]
    run_training([*chain.recipe("mllm", whole), *options], processes=2)
    run_training([*chain.recipe("mllm", resumed), *options, "--run.stop_after", "3"], processes=2)
    run_training([*chain.recipe("mllm", resumed), *options, "--data.num_workers", workers], processes=2)
    assert [line["step"] for line in losses(whole)] == [1, 2, 3, 4, 5, 6]
    assert_same_losses(losses(whole), losses(resumed))
    last = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert 0.5 < last["data/fill_share"] <= 1.0
    assert last["data/fill_share"] + last["data/padding_share"] == pytest.approx(1.0)
    assert last["data/skipped"] == 0
    assert sum(last[f"data/share/{name}"] for name in ("t2i", "vqa", "chat")) == pytest.approx(1.0, abs=1e-4)


def test_a_checkpoint_and_a_recipe_that_pack_differently_are_refused(chain: Chain, tmp_path: Path) -> None:
    def stream(*options: str) -> Stream:
        return Stream.open(parse_recipe([*chain.recipe("mllm", tmp_path / "x"), *options]), alone())

    state = stream(*PACKED).state_dict()
    stream(*PACKED).load_state_dict(state)
    with pytest.raises(UserError, match="pack as before"):
        stream(*PACKED, "--data.pack_length", "64").load_state_dict(state)
    with pytest.raises(UserError, match="pack as before"):
        stream().load_state_dict(state)
    with pytest.raises(UserError, match="written without packing"):
        stream(*PACKED).run(None, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.pack_length", "128"], "sort_window"),
        (["--data.pack_length", "-1"], "data.pack_length is -1"),
        (["--data.sources.chat.max_repeats", "0"], "chat.max_repeats is 0"),
    ],
)
def test_impossible_settings_are_named(
    options: list[str], message: str, chain: Chain, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe([*chain.recipe("mllm", tmp_path / "x"), *options])


def test_only_token_sequences_are_packed_or_have_a_length(chain: Chain, tmp_path: Path) -> None:
    for setting in ("pack_length", "max_length"):
        with pytest.raises(UserError, match="only mllm"):
            parse_recipe([*chain.recipe("contrastive", tmp_path / "x"), f"--data.{setting}", "128"])


def test_one_source_must_be_without_max_repeats(chain: Chain, tmp_path: Path) -> None:
    limits = [word for name in ("t2i", "vqa", "chat") for word in (f"--data.sources.{name}.max_repeats", "2")]
    with pytest.raises(UserError, match="at least one"):
        parse_recipe([*chain.recipe("mllm", tmp_path / "x"), *limits])


@pytest.mark.parametrize("packing", [(), PACKED])
@pytest.mark.parametrize("damage", ["deleted", "cut short", "garbage"])
def test_a_lost_shard_is_counted_and_named(
    damage: str, packing: tuple[str, ...], chain: Chain, tmp_path: Path
) -> None:
    """In mid-run, and at a new start: the run continues with the other records."""
    from shutil import copytree

    copytree(chain.folder / "codes_vqa", tmp_path / "vqa")
    shard = next((tmp_path / "vqa").glob("train-*.tar"))
    other = ["--data.sources.vqa.path", str(tmp_path / "vqa")]
    recipe = parse_recipe([*chain.recipe("mllm", tmp_path / "run"), *packing, *other])
    objective = build_objective(recipe)
    stream = Stream.open(recipe, alone())
    if damage == "deleted":
        shard.unlink()
        if len(list((tmp_path / "vqa").glob("train-*.tar"))) == 0:
            with pytest.raises(UserError, match="lost"):
                Stream.open(recipe, alone())
    else:
        data = shard.read_bytes()
        rest = b"" if damage == "cut short" else np.random.default_rng(0).bytes(len(data) // 2)
        shard.write_bytes(data[: len(data) // 2] + rest)
        again = Stream.open(recipe, alone())
        assert len(again.sources[1]) == len(stream.sources[1])
        assert len(list(islice(again.run(objective, 0), 20))) == 20
        assert again.metrics()["data/skipped"] > 0
    batches = list(islice(stream.run(objective, 0), 20))
    assert len(batches) == 20
    skipped = stream.metrics()["data/skipped"]
    names = (tmp_path / "run" / "skipped-records-0.jsonl").read_text()
    lines = [json.loads(line) for line in names.splitlines()]
    assert skipped > 0
    assert len(lines) >= skipped
    assert {line["source"] for line in lines} == {"vqa"}
    assert "skipped" in stream.summary()


def test_a_long_document_is_split_where_the_recipe_does_not_say_skip(chain: Chain, tmp_path: Path) -> None:
    arguments = [*chain.recipe("mllm", tmp_path / "x"), "--data.max_length", "64"]
    record = Record("long", [assistant("a red circle and a blue star " * 60)])
    objective: Any = build_objective(parse_recipe(arguments))
    pieces = objective.prepare_pieces(record, 0, 48)
    assert len(pieces) > 4
    assert all(len(piece) <= 48 for piece in pieces)
    pieces = objective.prepare_pieces(record, 0, 1000)
    taken = {tuple(objective.prepare(record, draw).input_ids.tolist()) for draw in range(50)}
    assert taken == {tuple(piece.input_ids.tolist()) for piece in pieces}  # one for each draw
    objective = build_objective(parse_recipe([*arguments, "--data.long_text", "skip"]))
    with pytest.raises(RecordError, match=r"data\.max_length is 64"):
        objective.prepare(record, 0)
