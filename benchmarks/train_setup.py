"""Models, records and recipes for the benchmark of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from conversations import WEIGHTS, conversation, random_codes
from transformers import AutoConfig, AutoModelForCausalLM

from dualtoken.data_pipelines.records import Record
from dualtoken.data_pipelines.stream.packing import shuffled_rows
from dualtoken.mllm import DepthTransformerConfig, ModelSettings
from dualtoken.tokenizer import DecoderConfig, DualTokenizer, DualTokenizerConfig, QuantizerConfig
from dualtoken.train.backend.distributed import World
from dualtoken.train.config.data import DataConfig, SourceConfig
from dualtoken.train.config.mllm import MllmObjectiveConfig
from dualtoken.train.config.optimizer import OptimizerConfig
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.config.run import RunConfig
from dualtoken.train.config.schedule import ScheduleConfig
from dualtoken.train.metrics import Metrics
from dualtoken.train.objectives import build_objective
from dualtoken.train.objectives.mllm import MllmObjective
from dualtoken.train.trainer import Trainer, initialise_engine

NANO = Path(__file__).resolve().parents[1] / "pretrained" / "nano"
LEARNING_RATE, BETAS, CLIPPING = 1e-4, (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Size:
    """Sizes of a model, of the records of one step, and of micro-batches.

    A micro-batch has `rows` packed rows of `pack_length` tokens, or `padded` records in the plain step: about
    as many real tokens.
    """

    name: str
    llm: dict[str, Any]
    heads: dict[str, int]
    codebook: dict[str, Any]
    vocabulary: int
    side: int
    records: int
    longest_chat: int
    pack_length: int
    rows: int
    padded: int
    precision: str


NANO_SHAPE = Size(  # of the model in the package
    name="nano",
    llm={"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 512},
    heads={"hidden_size": 128, "num_layers": 3, "num_heads": 4, "intermediate_size": 256},
    codebook={"num_codes": 512, "code_dim": 32, "depth": 4, "shared_codebook": False},
    vocabulary=2048,
    side=8,
    records=48,
    longest_chat=120,
    pack_length=256,
    rows=4,
    padded=8,
    precision="fp32",
)
MANY_CLASSES = replace(
    NANO_SHAPE,
    name="nano with 16,384 words and 4,096 codes",
    codebook={**NANO_SHAPE.codebook, "num_codes": 4096},
    vocabulary=16384,
    records=16,
)
HALF_A_BILLION = Size(
    name="Qwen2.5-0.5B with the codes of so400m_384_rvq8",
    llm={
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
    heads={"hidden_size": 768, "num_layers": 3, "num_heads": 12, "intermediate_size": 3072},
    codebook={"num_codes": 16384, "code_dim": 32, "depth": 8, "shared_codebook": True},
    vocabulary=151936,
    side=27,
    records=64,
    longest_chat=1200,
    pack_length=4096,
    rows=2,
    padded=8,
    precision="bf16_autocast",
)
# The trainer's step is measured with the first of each.
SIZES = {"small": (NANO_SHAPE, MANY_CLASSES), "full": (HALF_A_BILLION,)}


def write_visual_tokenizer(folder: Path, size: Size) -> None:
    """Save a tokenizer with tiny towers: training on cached codes reads only its codebooks."""
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = DualTokenizerConfig(
        vision_config={**tower, "image_size": 2 * size.side, "patch_size": 2},
        text_config={**tower, "vocab_size": 8, "max_position_embeddings": 8},
        pixel_layer=1,
        shortcut_layer=None,
        semantic_layer=2,
        pixel_quantizer=QuantizerConfig(**size.codebook),
        semantic_quantizer=QuantizerConfig(**size.codebook),
        decoder=DecoderConfig(size.side, in_channels=32, ch=32, ch_mult=(1, 1)),
    )
    DualTokenizer(config).save_pretrained(folder)


def write_llm(folder: Path, layers: int = 24, vocabulary: int = HALF_A_BILLION.vocabulary) -> None:
    """Save a language model of Qwen2.5-0.5B's shape with random weights, in bf16."""
    sizes = {**HALF_A_BILLION.llm, "num_hidden_layers": layers, "tie_word_embeddings": True}
    config = AutoConfig.for_model("qwen2", vocab_size=vocabulary, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.save_pretrained(folder, max_shard_size="200MB")


def make_trainer(recipe: Recipe, world: World, objective: Any, stream: Any, last_step: int = 0) -> Trainer:
    """A trainer without callbacks at step 0, on a stream of the benchmark's own."""
    engine, _ = initialise_engine(recipe, world, objective)
    return Trainer(
        recipe=recipe,
        world=world,
        objective=objective,
        engine=engine,
        stream=stream,
        metrics=Metrics(world),
        step=0,
        last_step=last_step,
    )


def make_recipe(size: Size, visual_tokenizer: Path) -> Recipe:
    """The recipe of the measured steps."""
    return Recipe(
        output="unused",
        data=DataConfig({"mixture": SourceConfig("unused")}, size.rows, pack_length=size.pack_length),
        run=RunConfig(steps=1000, precision=cast(Any, size.precision)),
        optimizer=OptimizerConfig(
            lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, gradient_clipping=CLIPPING
        ),
        schedule=ScheduleConfig("constant", warmup_steps=0),
        mllm=MllmObjectiveConfig(
            llm={
                "model_type": "llama",
                "max_position_embeddings": size.pack_length,
                "tie_word_embeddings": True,
                **size.llm,
            },
            visual_tokenizer=str(visual_tokenizer),
            text_tokenizer=str(NANO),
            model=ModelSettings(
                depth_transformer=DepthTransformerConfig(**size.heads),
                shared_classifier=bool(size.codebook["shared_codebook"]),
            ),
        ),
    )


def make_objective(recipe: Recipe, size: Size, device: str | torch.device) -> MllmObjective:
    """The objective with its model, always with the same weights."""
    torch.manual_seed(0)
    objective = cast(MllmObjective, build_objective(recipe))
    objective.set_attention(recipe.run.attention)
    objective.model.language_model.resize_token_embeddings(size.vocabulary, mean_resizing=False)
    return objective.to(device).train()


def make_records(size: Size) -> list[Record]:
    """The records of a step, in random order."""
    rng = np.random.default_rng(0)
    image_of = random_codes(size.side, size.codebook["depth"], size.codebook["num_codes"])
    kinds = [kind for kind, share in WEIGHTS.items() for _ in range(round(share * size.records))]
    records = [
        Record(f"{number}", conversation(kind, rng, image_of, size.longest_chat))
        for number, kind in enumerate(kinds)
    ]
    return [records[number] for number in rng.permutation(len(records))]


def packed(objective: Any, examples: Sequence[Any], size: Size) -> list[dict[str, Any]]:
    """Micro-batches of packed rows."""
    rows = shuffled_rows([len(one.input_ids) for one in examples], size.pack_length, seed=0, window=0)
    filled = [[examples[number] for number in row] for row in rows]
    return [
        objective.collate_packed(filled[start : start + size.rows], size.pack_length)
        for start in range(0, len(filled), size.rows)
    ]


def prepared(objective: Any, size: Size) -> list[Any]:
    return [objective.prepare(record, draw) for draw, record in enumerate(make_records(size))]
