"""Estimate the memory of a recipe from configurations alone.

The parameters are counted on a model without storage (torch's meta device). What DeepSpeed holds for each of
them follows from the stage (ZeRO, arXiv 1910.02054) and its fixed buffers; activations follow from the
tensors that autograd keeps for each layer. The memory of CUDA itself, of the allocator's gaps and of NCCL
comes on top: leave 10 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from ...common.errors import UserError, first_line
from ...mllm import DualTokenConfig, DualTokenForConditionalGeneration, add_lora
from ...mllm.assembly.gguf import gguf_config, is_gguf
from ...mllm.linear_cross_entropy import rows_at_once
from ...mllm.settings import CodebookConfig, DepthTransformerConfig, ModelSettings
from ...tokenizer import StoredTokenizer
from ..backend.deepspeed_config import REDUCE_BUCKET
from ..config.mllm import MllmObjectiveConfig
from ..config.recipe import Recipe
from ..config.starting_point import StartingPoint
from ..objectives.base import freeze_all_but
from ..objectives.mllm import MllmObjective
from ..optimizers import require_groups
from .known_llms import KNOWN_LLMS
from .sizes import Sizes
from .start import HEADER, rows

GIB = 2**30
GPUS = (1, 8, 16, 64)
SETTINGS = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (2, "optimizer"),
    (3, "none"),
    (3, "optimizer"),
    (3, "all"),
)
# DeepSpeed's default, in numbers (not bytes).
MAX_LIVE_PARAMETERS = 1e9
#: Assumed for a tokenizer that does not exist yet: the released so400m-384.
ASSUMED_GRID = (27, 27)
ASSUMED_CODEBOOK = CodebookConfig(num_codes=16384, code_dim=32, depth=8)
ASSUMED_TEXT = 256  # tokens of text with one image, where records are not packed


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU by what they hold, and on the host for each GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    host: float = 0.0
    averages: float = 0.0

    @property
    def total(self) -> float:
        kept = self.weights + self.gradients + self.optimizer + self.averages
        return kept + self.activations + self.logits + self.buffers


@dataclass(frozen=True)
class Estimate:
    """The memory of one recipe, for any stage and number of GPUs."""

    recipe: Recipe
    config: DualTokenConfig
    sizes: Sizes
    length: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe) -> Estimate:
        """Estimate a recipe's model.

        Errors:
            UserError for another objective, or a language model without an available configuration.
        """
        if recipe.mllm is None:
            raise UserError("--estimate is for recipes of the unified model; this one has no section mllm")
        require_groups(recipe.optimizer, MllmObjective.GROUPS)
        config, notes = _model_config(recipe)
        length = recipe.data.pack_length
        if not length:
            length = config.num_positions + ASSUMED_TEXT
            notes.append(f"sequences of {length} tokens assumed: one image and {ASSUMED_TEXT} tokens of text")
        return cls(recipe, config, count_parameters(config, recipe.mllm), length, tuple(notes))

    def memory(self, stage: int, offload: str, gpus: int, checkpointing: bool | None = None) -> Memory:
        """With the recipe's precision, micro-batch and (unless given) gradient checkpointing."""
        run, sizes = self.recipe.run, self.sizes
        bf16 = run.precision == "bf16"
        width = 2 if bf16 else 4
        shares = {part: gpus if stage >= least else 1 for part, least in _FIRST_STAGE.items()}
        weights = width * sizes.total / shares["weights"]
        if run.precision == "bf16_autocast":  # keeps them in bf16 from the forward to the backward pass
            weights += 2 * sizes.total
        gradients = 4 * sizes.trained / shares["gradients"]  # in fp32 also for bf16 weights
        # Two moments, and from stage 1 on or in bf16 the fp32 weights that they move.
        optimizer = (12 if bf16 or stage else 8) * sizes.trained / shares["optimizer"]
        if checkpointing is None:
            checkpointing = run.gradient_checkpointing
        host = (optimizer if offload != "none" else 0.0) + (weights if offload == "all" else 0.0)
        if offload != "none":  # from stage 2 on gradients move there as they come
            host += 4 * sizes.trained / shares["optimizer"]
            gradients = gradients if stage == 1 else 0.0
        if run.async_save:  # the copy of what the main process writes
            host += optimizer + (weights if stage < 3 else 0.0)
        activations = self._activations(checkpointing)
        # At stage 1 the step copies its share of the gradients, when the activations are gone.
        step = 4 * sizes.trained / shares["optimizer"] if stage == 1 and offload == "none" else 0.0
        return Memory(
            weights=(0.0 if offload == "all" else weights) + sizes.buffer_bytes,
            gradients=gradients,
            optimizer=0.0 if offload != "none" else optimizer,
            activations=activations,
            logits=self._logits(),
            buffers=self._buffers(stage, width) + max(0.0, step - activations),
            host=host,
            averages=0.0 if run.weight_average is None else 4.0 * sizes.trained,
        )

    def _activations(self, checkpointing: bool) -> float:
        micro = self.recipe.data.micro_batch_size
        width = 4 if self.recipe.run.precision == "fp32" else 2
        text, tokens = self.config.text_config, micro * self.length
        layer = llm_layer_bytes(text, width) * tokens
        kept = text.hidden_size * width * tokens
        layers = text.num_hidden_layers
        llm = layers * kept + layer if checkpointing else layers * layer
        # At most all tokens are visual targets; a record without packing is taken to have one image.
        visual = tokens if self.recipe.data.pack_length else micro * self.config.num_positions
        targets = visual * self.config.visual_target_fraction
        heads = sum(
            targets * depth_head_bytes(self.config.depth_transformer, codebook.depth, width)
            for codebook in self._codebooks()
        )
        return llm + heads

    def _codebooks(self) -> list[CodebookConfig]:
        return [self.config.codebooks[name] for name in self.config.branches]

    def _logits(self) -> float:
        """The largest chunk of logits in fp32, its product in the compute format, and the classifier's
        gradient."""
        text = self.config.text_config
        classifiers = [(text.vocab_size, text.hidden_size)]
        width = self.config.depth_transformer.hidden_size
        classifiers += [(book.num_codes, width) for book in self._codebooks()]
        return max(6.0 * rows_at_once(n, w) * n + 4.0 * n * w for n, w in classifiers)

    def _buffers(self, stage: int, width: int) -> float:
        bucket = min(self.sizes.trained, REDUCE_BUCKET)
        if stage in (1, 2):  # the bucket being filled and the one being reduced, and its fp32 copy
            return (2 * (4 if stage == 1 else width) + 4) * bucket
        if stage == 3:
            return width * min(self.sizes.total, MAX_LIVE_PARAMETERS) + 4 * bucket
        return 0.0

    def table(self) -> str:
        """What `dualtoken train RECIPE --estimate` prints (Markdown)."""
        run, sizes = self.recipe.run, self.sizes
        lines = [
            f"{sizes.total / 1e9:.2f} G parameters, {sizes.trained / 1e9:.2f} G of them trained; "
            f"{run.precision}, micro-batches of {self.recipe.data.micro_batch_size} x {self.length} tokens",
            *(f"note: {note}" for note in self.notes),
            "",
            f"This recipe (ZeRO {run.zero_stage}, offload {run.offload}), GiB on each GPU:",
            "",
            _row(["GPUs", *_PARTS, "total", "host memory each"]),
            _row(["---"] * (len(_PARTS) + 3)),
        ]
        for gpus in GPUS:
            memory = self.memory(run.zero_stage, run.offload, gpus)
            parts = [getattr(memory, part) for part in _PARTS]
            lines.append(_row([str(gpus), *_gib([*parts, memory.total, memory.host])]))
        lines += ["", "Start, resume and checkpoints, before the first step, GiB:", ""]
        lines += [_row(HEADER), _row(["---"] * len(HEADER))]
        lines += [_row([str(gpus), *_gib(cells)]) for gpus, cells in rows(self.recipe, sizes, GPUS)]
        for checkpointing in (False, True):
            word = "with" if checkpointing else "without"
            lines += ["", f"Total on each GPU in GiB, {word} gradient checkpointing:", ""]
            lines += [
                _row(["setting", *("1 GPU" if gpus == 1 else f"{gpus} GPUs" for gpus in GPUS)]),
                _row(["---"] * (len(GPUS) + 1)),
            ]
            for stage, offload in SETTINGS:
                if stage == 0 and run.precision == "bf16":
                    continue  # refused
                name = (
                    f"ZeRO {stage}"
                    + {"none": "", "optimizer": ", optimizer on CPU", "all": ", all on CPU"}[offload]
                )
                totals = [self.memory(stage, offload, gpus, checkpointing).total for gpus in GPUS]
                lines.append(_row([name, *_gib(totals)]))
        return "\n".join(lines)


_FIRST_STAGE = {"optimizer": 1, "gradients": 2, "weights": 3}
_PARTS = ("weights", "gradients", "optimizer", "averages", "activations", "logits", "buffers")


def count_parameters(config: DualTokenConfig, objective: MllmObjectiveConfig) -> Sizes:
    """The parameters of a recipe's model, with adapters and frozen parts."""
    with torch.device("meta"):
        model = DualTokenForConditionalGeneration(config)
        if objective.lora is not None:
            add_lora(model, objective.lora)
    if objective.trained is not None:
        freeze_all_but(model, objective.trained, "mllm.trained")
    return Sizes.of(model)


def llm_layer_bytes(config: PreTrainedConfig, width: int) -> float:
    """Bytes that autograd keeps for one token in a layer of a Llama-like LLM without checkpointing.

    Norms work in fp32 and keep their input and its normalised form; the attention is fused, so no scores.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    norms = 2 * (4 * hidden + width * hidden)
    # Inputs of the projections; rotated queries and keys, values, and the attention's result; gate, its
    # activation, up, and their product.
    attention = width * (hidden + 2 * queries + 2 * keys)
    return norms + attention + width * (hidden + 4 * inner)


def depth_head_bytes(sizes: DepthTransformerConfig, depth: int, width: int) -> float:
    """Bytes that autograd keeps for one visual target in a depth transformer: `depth` positions a layer.

    The attention is not fused, so its weights are among them.
    """
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    layer = width * (8 * hidden + 2 * inner + sizes.num_heads * depth)
    return depth * (sizes.num_layers * layer + 2 * width * hidden)


def _model_config(recipe: Recipe) -> tuple[DualTokenConfig, list[str]]:
    """The configuration of a recipe's model, and notes on assumptions."""
    start, objective = StartingPoint.open(recipe.init_from), recipe.mllm
    assert objective is not None  # checked by Estimate.of
    if start is not None and start.objective == "mllm":
        return start.model_config(objective.model), []
    if objective.llm is None:
        raise UserError(f"no model at init_from {recipe.init_from}, so its memory cannot be estimated")
    notes: list[str] = []
    grid, books = ASSUMED_GRID, {"pixel": ASSUMED_CODEBOOK, "semantic": ASSUMED_CODEBOOK}
    try:
        visual = StoredTokenizer.from_pretrained(objective.visual_tokenizer or "").config
        grid = (visual.grid_size[0], visual.grid_size[1])
        books = {name: CodebookConfig.of(visual.quantizers[name]) for name in books}
    except (UserError, OSError):
        notes.append(
            f"no visual tokenizer at {objective.visual_tokenizer}; {grid[0]} x {grid[1]} positions and 8 + 8 "
            "codes of 16384 (so400m-384) assumed"
        )
    text_config = llm_config(objective.llm)
    if isinstance(objective.llm, dict) and "vocab_size" not in objective.llm:
        notes.append(
            f"a vocabulary of {text_config.vocab_size} assumed; the run takes the text tokenizer's "
            "(give --mllm.llm.vocab_size N)"
        )
    config = DualTokenConfig(
        text_config=text_config,
        grid_size=list(grid),
        pixel_codebook=books["pixel"],
        semantic_codebook=books["semantic"],
        **vars(objective.model or ModelSettings()),
    )
    return config, notes


def llm_config(llm: str | dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a recipe's LLM: given by its fields, known by its name, or read.

    Errors:
        UserError for a folder or hub id without one, or that cannot be reached.
    """
    if isinstance(llm, str) and (fields := KNOWN_LLMS.get(llm.removesuffix("-Instruct"))):
        llm = fields
    if isinstance(llm, dict):
        others = {key: value for key, value in llm.items() if key != "model_type"}
        return AutoConfig.for_model(str(llm["model_type"]), **others)
    if is_gguf(llm):
        return gguf_config(llm)
    try:
        return AutoConfig.from_pretrained(llm, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no configuration of a language model at {llm} ({first_line(error)}); give a folder, a hub id "
            "that can be reached, or the configuration's fields as mllm.llm"
        ) from error


def _gib(values: Iterable[float]) -> list[str]:
    return [f"{value / GIB:.1f}" for value in values]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
