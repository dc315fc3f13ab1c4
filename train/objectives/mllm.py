"""The unified model: next-token prediction of text and visual codes, on records with cached codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...common.errors import UserError
from ...data_pipelines.codes.checksums import check_codes_belong, codes_checksum, preprocessing_checksum
from ...data_pipelines.records import Record
from ...data_pipelines.shards.sample_codec import CodeShape
from ...mllm import (
    ChatFormat,
    add_lora,
    merge_adapters,
    save_model,
)
from ...mllm.assembly.tokenizers import unconditional_prompt_ids
from ...mllm.assembly.weights import Weights
from ...mllm.conversation.collation import flash_attention_bounds
from ...mllm.outputs import TargetLosses
from ...tokenizer import DualTokenizer
from ..config.mllm import MllmObjectiveConfig
from ..planning.flops import ModelFlops, Work
from .base import Batch, LossTerm, Objective, cast, freeze_all_but
from .mllm_examples import MllmExamples
from .mllm_parts import new_parts, saved_parts
from .record_limit import RecordLimit

_CHARACTERS_PER_TOKEN = 4


class MllmObjective(Objective):
    """Trains ``DualTokenForConditionalGeneration``; exports it with its tokenizer as one folder.

    The vision tower is not in memory during training: records hold cached codes, the model holds the frozen
    codebooks.
    """

    examples: MllmExamples
    GROUPS = ("projectors", "heads", "embeddings", "llm")

    def __init__(
        self,
        config: MllmObjectiveConfig,
        seed: int,
        max_length: int = 0,
        init_from: str | None = None,
        weights: Weights = Weights.LOADED,
    ) -> None:
        """init_from: a saved model that gives architecture, weights and tokenizers."""
        super().__init__()
        self.config, self.seed = config, seed
        parts = new_parts(config, weights) if init_from is None else saved_parts(config, init_from, weights)
        self.model, self.processor, self._visual_tokenizer = parts
        self.codes_checksum = codes_checksum(self._visual_tokenizer)
        shape = self._visual_tokenizer.config
        self.examples = MllmExamples(
            self.processor,
            seed,
            code_shape=CodeShape.of(shape.grid_size, *map(vars, shape.quantizers.values())),
            limit=RecordLimit.of(self.model, self.processor, max_length),
            end=self.model.config.eos_token_id,
            prompt_dropout=config.prompt_dropout,
            shuffle_turns=config.shuffle_turns,
            image_token=self.model.config.image_token_id,
            losses=tuple(self.model.config.loss_weights),
        )
        self._add_adapters()
        if config.trained is not None:
            freeze_all_but(self.model, config.trained, "mllm.trained")
        self._flops = ModelFlops.of(self.model)
        self._target_losses: dict[str, TargetLosses] = {}

    def collate_packed(self, rows: list[list[Any]], length: int) -> Batch:
        batch: Batch = dict(self.processor.collate_packed(rows, length))
        # Positions start again at every record, and at the padding.
        starts = batch["position_ids"].flatten().eq(0).nonzero().squeeze(1)
        lengths = starts.diff(append=starts.new_tensor([batch["position_ids"].numel()])).tolist()
        batch = self.examples.with_facts(batch, lengths)
        if "flash" in str(self.model.language_model.config._attn_implementation):
            # From position_ids alone it finds the documents only in batches of one row.
            batch |= flash_attention_bounds(batch["position_ids"])
        return batch

    def check_source(self, name: str, manifest: Mapping[str, Any]) -> None:
        images = manifest["counts"]["images"]
        if images and "tokenizer" not in manifest:
            raise UserError(
                f"data.sources.{name} holds {images} images and no codes: encode them with `dualtoken "
                "tokenize`, and name that folder"
            )
        preprocessing = preprocessing_checksum(self.processor.image_processor)
        precision = self._visual_tokenizer.config.encode_precision
        where = f"data.sources.{name}"
        check_codes_belong(manifest, self.codes_checksum, where, preprocessing, precision)

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        parts = name.removeprefix("model.").split(".")
        if parts[0] == "branches":
            return "heads" if parts[2] == "depth_transformer" else "projectors"
        if parts[0] == "grid_position":
            return "projectors"
        layers = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        vocabulary = [one for layer in layers for one in layer.parameters()]
        return "embeddings" if any(parameter is one for one in vocabulary) else "llm"

    def record_length(self, record: Record) -> int:
        characters = sum(len(text) for text in record.texts())
        return len(record.image_parts()) * self.processor.num_positions + characters // _CHARACTERS_PER_TOKEN

    def target_counts(self, batch: Batch) -> dict[str, float]:
        counts: dict[str, float] = batch["counts"]
        return counts

    def forward(self, **batch: Any) -> dict[str, LossTerm]:
        inputs = {key: value for key, value in batch.items() if key not in ("counts", "lengths")}
        output = self.model(**inputs, reduction="sum")
        sums, weights = output.sums, self.model.config.loss_weights
        self._target_losses = output.target_losses
        return {name: LossTerm(getattr(sums, name), weight) for name, weight in weights.items()}

    def work(self, batch: Batch) -> Work:
        lengths, targets = batch["lengths"], batch["counts"]
        images = float(len(batch["pixel_codes"])) if "pixel_codes" in batch else 0.0
        visual = max(targets.get("pixel", 0.0), targets.get("semantic", 0.0))
        flops = self._flops.of_batch(
            lengths, targets["text"], visual * self.model.config.visual_target_fraction
        )
        return Work(float(sum(lengths)), images, flops)

    def source_sums(
        self, batch: Batch, source_ids: torch.Tensor, num_sources: int
    ) -> dict[str, torch.Tensor]:
        labels = batch["labels"]
        by_position = source_ids.to(labels.device)
        if by_position.ndim == 1:
            by_position = by_position.unsqueeze(1).expand_as(labels)
        by_target = by_position[:, 1:].flatten()
        sums = {}
        for name in self.model.config.loss_weights:
            total = torch.zeros(2, num_sources, dtype=torch.float64, device=labels.device)
            targets = self._target_losses[name]
            if targets.losses is not None:  # the same terms on all ranks, whatever their batches hold
                parts = torch.stack([targets.losses.double(), torch.ones_like(targets.losses).double()])
                total.index_add_(1, by_target[targets.positions], parts)
            sums[name] = total
        return sums

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        if self.config.lora is not None:
            # In the wider of both formats, in which the sum is rounded least.
            cast(self.model, torch.promote_types(self.model.dtype, dtype))
            merge_adapters(self.model)
        cast(self.model, dtype)
        self.model.attach_visual_tokenizer(self.load_visual_tokenizer())
        save_model(self.model, self.processor, folder)

    def load_visual_tokenizer(self) -> DualTokenizer:
        """The complete visual tokenizer, which training on cached codes does not need."""
        return self._visual_tokenizer.load()

    def rehearse_export(self, folder: Path) -> None:
        self.load_visual_tokenizer()  # its weights are not needed until the export
        self.processor.save_pretrained(folder)
        self.model.config.save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)

    def extra_state(self) -> dict[str, Any]:
        """The chat format: computed parts of a template (a date) must not change when the run is resumed."""
        chat_format = self.processor.chat_format
        return {} if chat_format.is_own else {"chat_format": asdict(chat_format)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if "chat_format" in state:
            self.processor.chat_format = ChatFormat(**state["chat_format"])
            self.model.config.unconditional_prompt_ids = unconditional_prompt_ids(
                self.processor.tokenizer, self.processor.chat_format
            )

    def _add_adapters(self) -> None:
        if self.config.lora is not None:
            add_lora(self.model, self.config.lora)
