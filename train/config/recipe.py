"""The recipe of a training run: frozen dataclasses, read strictly from one YAML file.

A recipe holds exactly one objective section (``contrastive``, ``tokenizer`` or ``mllm``); every other
section is shared. Unknown keys, wrong types and impossible combinations are errors before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ...common.errors import UserError, shown
from ...common.json_files import read_text
from ...common.limits import in_range, limited
from ...common.limits import problems as out_of_range
from ...common.paths import user_path
from ...common.values import LARGEST_SEED
from ...common.yaml_files import LARGEST_YAML, check_yaml
from ...mllm.assembly.adapters import LoraSettings
from .adversarial import AdversarialConfig

_ROOT = Path(__file__).resolve().parents[2]
#: The recipes that the package brings.
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_WEIGHT = 1e6  # no loss has a greater one


def _locate(section: Any, *names: str) -> None:
    """Expand the paths in these fields: ~ is home, and pretrained/… also what the package brings."""
    for name in names:
        path = getattr(section, name)
        if not isinstance(path, str):
            continue
        if path.startswith("~"):
            path = str(user_path(path, name))
        elif path.startswith("pretrained/") and not Path(path).exists() and (_ROOT / path).exists():
            path = str(_ROOT / path)
        object.__setattr__(section, name, path)


@dataclass(frozen=True)
class SourceConfig:
    """One named set of shards in the mixture.

    Args:
        path: folder of shards, as written by ``dualtoken prepare`` or ``dualtoken tokenize``, or its URL
            (``s3://bucket/folder``, ``https://…``).
        weight: relative share of the drawn records; only ratios between sources matter.
        max_repeats: a source is not drawn more often than this many epochs; its share then goes to the
            others. None sets no limit; at least one source must have none.
    """

    path: str
    weight: float = limited(1.0, above=0.0, most=1e9)
    max_repeats: float | None = limited(None, above=0.0, most=1e9)

    def __post_init__(self) -> None:
        _locate(self, "path")


@dataclass(frozen=True)
class DataConfig:
    """What the run reads, and in which portions.

    Args:
        sources: the mixture, by name.
        micro_batch_size: records per rank and forward pass; with packing, rows.
        sort_window: this many micro-batches are drawn together and sorted by length, so that a batch holds
            records of like length and little padding; their order is shuffled again. 1 switches sorting off.
        num_workers: processes that decode images ahead of the loop; 0 decodes in the loop's own process.
        pack_length: rows of this many tokens, each of several records that do not see one another; longer
            records are skipped, counted and named. 0 puts one record into a row. For ``mllm`` only.
        pack_window: records that are packed together. More fill the rows better and take more memory.
        max_length: records of more tokens than this, or than the language model's context, are skipped,
            counted and named; 0 leaves only the context. Together with ``micro_batch_size`` it bounds what a
            step takes in memory. For ``mllm`` only.
    """

    sources: dict[str, SourceConfig]
    micro_batch_size: int = limited(32, least=1, most=65_535)
    sort_window: int = limited(1, least=1, most=10_000)
    num_workers: int = limited(0, least=0, most=256)
    pack_length: int = limited(0, least=0, most=2**22)
    pack_window: int = limited(256, least=1, most=1_000_000)
    max_length: int = limited(0, least=0, most=2**22)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and Muon for the matrices inside the transformer layers where ``muon_lr`` is given.

    Args:
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon (0.02 is usual), for the two-dimensional weights of transformer
            layers; embeddings, classifiers, vectors and adapters stay with AdamW. None trains all with AdamW.
            With ZeRO it needs ``gradient_clipping`` 0, as DeepSpeed would clip Muon's updates.
        muon_momentum: of Muon.
        lr_scale: factor on the rate of parameters whose name contains the key (the longest match wins).
        group_lr: peak learning rate of AdamW for a named group instead of ``lr``. The unified model has the
            groups projectors, heads (both depth transformers), embeddings (of text, and the output layer)
            and llm (all else, adapters too).
        weight_decay: for matrices; vectors (biases, norms) never decay.
        gradient_clipping: largest global gradient norm; 0 switches clipping off.
    """

    lr: float = limited(1e-3, least=0.0, most=10.0)
    muon_lr: float | None = limited(None, least=0.0, most=10.0)
    muon_momentum: float = limited(0.95, least=0.0, below=1.0)
    lr_scale: dict[str, float] = field(default_factory=dict, metadata=in_range(least=0.0, most=1e6))
    group_lr: dict[str, float] = field(default_factory=dict, metadata=in_range(least=0.0, most=10.0))
    betas: tuple[float, float] = limited((0.9, 0.95), least=0.0, below=1.0)
    eps: float = limited(1e-8, least=0.0, most=1.0)
    weight_decay: float = limited(0.05, least=0.0, most=10.0)
    gradient_clipping: float = limited(1.0, least=0.0, most=1e9)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run: linear warm-up, then ``kind`` down to ``final_ratio`` of the peak.

    Args:
        kind: "wsd" (warm up, stay, decay) keeps the peak and falls linearly over the last steps only, so that
            a run can be made longer from any checkpoint before its decay.
        decay_share: share of the run's steps in that decay.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = limited(100, least=0, most=10**9)
    final_ratio: float = limited(0.05, least=0.0, most=1.0)
    decay_share: float = limited(0.1, least=0.0, most=1.0)


@dataclass(frozen=True)
class RunConfig:
    """Length of the run, numerical setting, logging and checkpoints.

    Args:
        steps: optimizer steps.
        precision: "bf16" keeps bf16 weights with fp32 masters in the optimizer (DeepSpeed),
            "bf16_autocast" keeps fp32 weights and does the matrix products in bf16 (quantization stays
            fp32 in all of them).
        attention: implementation that transformers uses in training. On a CPU "eager" is up to 1.4 times as
            fast, because the backward pass of torch's fused kernel is slow there.
        gradient_checkpointing: recompute the layers of transformers' models in the backward pass, for less
            memory. Quantizers are never recomputed.
        weight_average: export an exponential moving average of the weights with this decay (0.999, say)
            instead of the last ones; checkpoints hold both. None exports the last.
        zero_stage: DeepSpeed ZeRO stage, 0-3. Divided among the GPUs are: nothing, the optimizer's state (1),
            gradients too (2), weights too (3). bf16 needs a stage >= 1 (its optimizer at stage 0 drifts).
        offload: what ZeRO keeps in the machine's memory instead of the GPU's: the optimizer's state and step
            (stage 1-3), or the weights too ("all", stage 3).
        threads: CPU threads per process; 0 is torch's choice, but one for a small model whose threads would
            spin while they wait for one another.
        save_every: steps between checkpoints; 0 writes only the last one.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        keep_best: the checkpoint with the lowest loss stays besides (the validation loss where there is one,
            else the mean training loss since the checkpoint before); ``checkpoints/best.json`` names it.
        export_dtype: number format of the exported weights. Codes depend on the weights' last bits, so a
            tokenizer that is to ship in bf16 must be exported in bf16 before codes are cached with it.
        spike_factor: a step whose gradient norm is above this many times the median of the last steps' norms
            is skipped (10 is usual); 0 lets every finite step pass. A step whose loss or norm is no number is
            always skipped.
        max_skipped: the run stops with an error after this many skipped steps in a row.
        timeout_minutes: a process that waits longer than this for the others, or for data, ends with an error
            that names its rank and what it was doing.
        peak_tflops: of one GPU in the run's precision, for the model FLOPs utilisation in the log; 0 looks
            the GPU up by its name.
        wandb_project: also log to this project of Weights & Biases (the package wandb must be installed).
        stop_after: leave cleanly, with a checkpoint, once this many steps are done; 0 runs to the end. The
            schedule is that of the whole run, so the same recipe without it goes on as if it had never
            stopped.
    """

    steps: int = limited(least=1, most=10**9)
    gradient_accumulation_steps: int = limited(1, least=1, most=65_535)
    precision: Literal["fp32", "bf16", "bf16_autocast"] = "fp32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    weight_average: float | None = limited(None, above=0.0, below=1.0)
    zero_stage: int = limited(0, least=0, most=3)
    offload: Literal["none", "optimizer", "all"] = "none"
    threads: int = limited(0, least=0, most=1024)
    log_every: int = limited(10, least=1, most=10**9)
    save_every: int = limited(500, least=0, most=10**9)
    keep_checkpoints: int = limited(2, least=1, most=10_000)
    keep_best: bool = True
    export_dtype: Literal["fp32", "bf16"] = "fp32"
    spike_factor: float = limited(0.0, least=0.0, most=1e9)
    max_skipped: int = limited(10, least=1, most=10**9)
    timeout_minutes: float = limited(30.0, above=0.0, most=100_000.0)
    peak_tflops: float = limited(0.0, least=0.0, most=1e9)
    wandb_project: str | None = None
    stop_after: int = limited(0, least=0, most=10**9)


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured on the side while a run goes on, always on the same records.

    Args:
        every: steps between validations; one more follows the last step.
        sources: held-out shards by name; each gives its own losses.
        batches: micro-batches (of ``data.micro_batch_size`` records) of every source, over all ranks.
        prompts: drawn at each validation, with the same seeds, into ``validation/`` and TensorBoard. Not at
            ZeRO stage 3.
        seed: of the drawings.
        guidance_scale: of the drawings; None takes the model's own.
    """

    every: int = limited(least=1, most=10**9)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    batches: int = limited(8, least=1, most=1_000_000)
    prompts: list[str] = field(default_factory=list)
    seed: int = limited(0, least=0, most=LARGEST_SEED)
    guidance_scale: float | None = limited(None, least=0.0, most=1000.0)


@dataclass(frozen=True)
class ContrastiveConfig:
    """A SigLIP from scratch: image and caption towers, sigmoid loss, optional dense supervision by scene
    patches.

    Args:
        vision_config: fields of ``SiglipVisionConfig``.
        text_config: fields of ``SiglipTextConfig``; ``vocab_size`` is taken from the text tokenizer.
        text_tokenizer: folder of the text tokenizer.
        contrastive_weight: weight of open_clip's SigLIP loss.
        patch_weight: weight of the per-patch class loss at ``patch_layer``; records without a scene are
            left out of it.
        patch_layer: encoder layer whose states are classified (the tokenizer's semantic layer).
        background_weight: weight of a patch without an object in that loss; most patches have none.
        consistency_weight: weight of drawing together the states of repeated backgrounds at that layer.
        max_text_length: caption length in tokens; captions are padded to it, as SigLIP expects.
    """

    vision_config: dict[str, Any]
    text_config: dict[str, Any]
    text_tokenizer: str
    contrastive_weight: float = limited(1.0, least=0.0, most=_WEIGHT)
    patch_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    patch_layer: int = limited(-1, least=-1000, most=1000)
    background_weight: float = limited(1.0, least=0.0, most=_WEIGHT)
    consistency_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    max_text_length: int = limited(32, least=1, most=65_536)

    def __post_init__(self) -> None:
        _locate(self, "text_tokenizer")


@dataclass(frozen=True)
class TokenizerObjectiveConfig:
    """The dual tokenizer against its frozen teacher: semantic distillation, reconstruction, commitment.

    Args:
        teacher: folder or hub id of the SigLIP model that is both the initial backbone and the frozen
            teacher.
        model: fields of ``DualTokenizerConfig`` except ``vision_config`` and ``text_config``, which come
            from the teacher.
        semantic_weight: weight of MSE - cos at the semantic layer (paper: L_sem; released weight 5).
        pooled_weight: the same at the pooled output (released weight 1).
        mse_weight, l1_weight, gradient_weight: pixel losses; ``gradient`` compares finite differences,
            which keeps edges.
        pixel_commitment_weight, semantic_commitment_weight: commitment of each quantizer.
        pixel_consistency_weight, semantic_consistency_weight: weight of drawing together what each quantizer
            gets for patches with equal pixels (semantic: for repeated backgrounds only).
        perceptual_weight: weight of LPIPS (released: 1).
        perceptual_weights: file with the weights of LPIPS and its VGG-16; None fetches them.
        adversarial: PatchGAN discriminator and its settings; None trains without.
        trained: parts of the model that are trained, as beginnings of parameter names or shell patterns
            (backbone.vision_model.encoder.layers.[6-9].*); None trains all.
            A codebook moves where its own name (pixel_quantizer) or that of the projection before it
            (pixel_projection) is among them.
        semantic_fraction: share of every batch that goes through the semantic branch. Below 1 it saves time
            where the backbone starts from its teacher, so that the deep branch has little to learn and the
            shallow one a lot.
        unquantized_steps: steps before quantization begins; the codebooks are then initialised by k-means.
            None quantizes from the first step with the codebooks as they are (a run with init_from).
        initialisation_vectors: at least this many feature vectors are collected for the k-means.
    """

    teacher: str
    model: dict[str, Any]
    semantic_weight: float = limited(5.0, least=0.0, most=_WEIGHT)
    pooled_weight: float = limited(1.0, least=0.0, most=_WEIGHT)
    mse_weight: float = limited(5.0, least=0.0, most=_WEIGHT)
    l1_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    gradient_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    pixel_commitment_weight: float = limited(5.0, least=0.0, most=_WEIGHT)
    semantic_commitment_weight: float = limited(5.0, least=0.0, most=_WEIGHT)
    pixel_consistency_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    semantic_consistency_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    perceptual_weight: float = limited(0.0, least=0.0, most=_WEIGHT)
    perceptual_weights: str | None = None
    adversarial: AdversarialConfig | None = None
    trained: list[str] | None = None
    semantic_fraction: float = limited(1.0, above=0.0, most=1.0)
    unquantized_steps: int | None = limited(0, least=0, most=10**9)
    initialisation_vectors: int = limited(16384, least=1, most=10**9)

    def __post_init__(self) -> None:
        _locate(self, "teacher", "perceptual_weights")


@dataclass(frozen=True)
class MllmObjectiveConfig:
    """The unified model on records with cached codes.

    Args:
        llm: either a folder or hub id of a causal LLM, or the fields of a transformers config (with
            ``model_type``) to start from random weights.
        visual_tokenizer: folder of the trained DualTokenizer; the codebooks are copied from it.
        text_tokenizer: folder of the text tokenizer; None takes the LLM's own.
        model: further fields of ``DualTokenConfig`` (depth transformers, loss weights, conditioning).
        prompt_dropout: probability that a drawing prompt becomes the unconditional token (classifier-free
            guidance).
        shuffle_turns: question-answer turns about one image are shuffled anew at every visit, but for
            records whose metadata say "ordered": true, because a turn builds on the one before.
        trained: parts of the model that are trained, as beginnings of parameter names or shell patterns
            ([visual_embedding, pixel_head, semantic_head] warms projectors and heads up); None trains all.
        lora: trains low-rank adapters instead of the LLM's weights, beside the projectors, the depth
            transformers and the special tokens; the exported model has them merged. None trains everything.
    """

    llm: str | dict[str, Any]
    visual_tokenizer: str
    text_tokenizer: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    prompt_dropout: float = limited(0.1, least=0.0, most=1.0)
    shuffle_turns: bool = False
    trained: list[str] | None = None
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        _locate(self, "llm", "visual_tokenizer", "text_tokenizer")


@dataclass(frozen=True)
class Recipe:
    """A whole training run. See the section classes for each field.

    Args:
        output: folder of the run: checkpoints, logs, and the exported model in ``model/``.
        init_from: exported folder whose weights start the run (not a resume: step, optimizer and data
            begin anew).
    """

    output: str
    data: DataConfig
    run: RunConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    contrastive: ContrastiveConfig | None = None
    tokenizer: TokenizerObjectiveConfig | None = None
    mllm: MllmObjectiveConfig | None = None
    validation: ValidationConfig | None = None
    init_from: str | None = None
    seed: int = limited(0, least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        _locate(self, "output", "init_from")
        wrong = out_of_range(self)
        if wrong:  # first of all, because the checks below calculate with these numbers
            raise UserError("recipe: " + "; ".join(wrong))
        sections = [name for name in ("contrastive", "tokenizer", "mllm") if getattr(self, name) is not None]
        problems = []
        if len(sections) != 1:
            problems.append(
                f"exactly one of contrastive, tokenizer, mllm must be given, not {sections or 'none'}"
            )
        if not self.output.strip():
            problems.append("output is empty; give the folder of the run")
        if not self.data.sources:
            problems.append("data.sources is empty; name at least one folder of shards")
        problems += _sharding_problems(self)
        optimizer = self.optimizer
        if optimizer.muon_lr is not None and self.run.zero_stage and optimizer.gradient_clipping:
            problems.append(
                "optimizer.muon_lr with run.zero_stage 1 to 3 needs optimizer.gradient_clipping 0 (DeepSpeed "
                "would clip Muon's updates there, not the gradients)"
            )
        if optimizer.muon_lr is not None and self.run.zero_stage == 3:
            problems.append(
                "optimizer.muon_lr works with run.zero_stage 0, 1 or 2 (at 3 no GPU has a whole gradient)"
            )
        if self.run.precision == "bf16" and self.run.zero_stage == 0:
            problems.append(
                "run.precision bf16 needs run.zero_stage 1 to 3 (the stage-0 bf16 optimizer drifts)"
            )
        problems += _guard_problems(self) + _validation_problems(self)
        if self.mllm is not None and self.mllm.lora is not None:
            self.mllm.lora.validate()
            if self.mllm.trained is not None:
                problems.append(
                    "mllm.trained and mllm.lora both say what is trained; leave one of them out (adapters "
                    "come with the projectors, the heads and the special tokens)"
                )
            if not isinstance(self.mllm.llm, str) and self.init_from is None:
                problems.append(
                    "mllm.lora adapts a trained LLM, but mllm.llm is a configuration of random weights; name "
                    "a folder or hub id, or give init_from"
                )
        problems += self._data_problems()
        if problems:
            raise UserError("recipe: " + "; ".join(problems))

    def _data_problems(self) -> list[str]:
        """What is wrong with the repeats of the sources and with packing."""
        data, problems = self.data, []
        limits = [source.max_repeats for source in data.sources.values()]
        if limits and None not in limits:
            problems.append(
                "every source has max_repeats, so the data would end; leave it out for at least one of "
                "data.sources"
            )
        if data.max_length and self.mllm is None:
            problems.append("data.max_length is for token sequences, so only mllm can have it; set it to 0")
        if data.pack_length and self.mllm is None:
            problems.append("data.pack_length packs token sequences, so only mllm can have it; set it to 0")
        if data.pack_length and data.sort_window > 1:
            problems.append("data.pack_length leaves nothing to sort; set data.sort_window to 1")
        return problems

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _sharding_problems(recipe: Recipe) -> list[str]:
    """What ZeRO's stage and offloading cannot do."""
    run, problems = recipe.run, []
    if run.offload == "optimizer" and run.zero_stage == 0:
        problems.append("run.offload optimizer needs run.zero_stage 1, 2 or 3")
    if run.zero_stage == 3 and recipe.mllm is None:
        problems.append("run.zero_stage 3 is for the unified model (mllm); a tokenizer fits stage 2")
    if run.zero_stage == 3 and run.weight_average is not None:
        problems.append("run.weight_average needs run.zero_stage 0-2; at 3 no process has whole weights")
    if run.offload == "all" and run.zero_stage != 3:
        problems.append("run.offload all needs run.zero_stage 3; only there are the weights divided")
    return problems


def _guard_problems(recipe: Recipe) -> list[str]:
    run, problems = recipe.run, []
    if 0 < run.spike_factor <= 1.0:
        problems.append(f"run.spike_factor is {run.spike_factor}; it must be above 1, or 0 to switch it off")
    if run.spike_factor and recipe.optimizer.muon_lr is not None and run.zero_stage:
        problems.append(
            "run.spike_factor with optimizer.muon_lr needs run.zero_stage 0; beyond it the norm that "
            "DeepSpeed reports is that of Muon's updates, which have no spikes"
        )
    return problems


def _validation_problems(recipe: Recipe) -> list[str]:
    validation, problems = recipe.validation, []
    if validation is None:
        return []
    if not all(prompt.strip() for prompt in validation.prompts):
        problems.append("validation.prompts holds an empty one; give each at least one word")
    if not validation.sources and not validation.prompts:
        problems.append("validation has neither sources nor prompts; give one of them or leave it out")
    if recipe.tokenizer is not None and recipe.tokenizer.adversarial is not None:
        problems.append("validation does not go with tokenizer.adversarial, whose losses change as it trains")
    if validation.prompts and recipe.run.zero_stage == 3:
        problems.append(
            "validation.prompts need run.zero_stage 0-2; at 3 no process has whole weights to draw"
        )
    if validation.prompts and recipe.mllm is None:
        problems.append("validation.prompts are for the unified model (section mllm); only it draws")
    return problems


def parse_recipe(arguments: list[str]) -> Recipe:
    """Read ``[RECIPE, --section.key value, ...]`` into a Recipe.

    RECIPE is a YAML file, or the name of one that the package brings (nano_sft).

    Errors:
        UserError for a file that is not there, an unknown key, a wrong type or an impossible combination.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(
        exit_on_error=False,
        prog="dualtoken train",
        description="Train by a recipe. Every key of the YAML can be overridden on the command line.",
        epilog="example: dualtoken train train/recipes/nano_mllm.yaml --run.steps 200 --optimizer.lr 1e-3",
    )
    parser.add_argument(
        "--config", action="config", help="the recipe (may also be given as the first argument)"
    )
    parser.add_class_arguments(Recipe)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    try:
        namespace = parser.parse_args(_with_recipe_files(arguments))
        namespace.pop("config", None)
        return Recipe(**vars(parser.instantiate(namespace)))
    except UserError:
        raise
    except (ArgumentError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        # Beside its own errors jsonargparse lets some pass that a value of the wrong kind caused in it.
        raise UserError(f"recipe: {_reason(error)}") from error


#: Lines in which jsonargparse tells how it is built, not what is wrong.
_SCAFFOLD = re.compile(
    r"Parser key |Does not validate|Subtypes:|Errors:|Problem with given class_path|Given value|"
    r"Subclass types|Expected a <class 'NoneType'>|a class path|a dict w"
)
#: Its words for what is wrong, and ours.
_WORDS = (
    (re.compile(r"<class 'int'>"), "whole number"),
    (re.compile(r"<class 'float'>"), "number"),
    (re.compile(r"<class 'str'>"), "text"),
    (re.compile(r"<class 'bool'>"), "truth value (true or false)"),
    (re.compile(r"<class 'dict'>"), "mapping"),
    (re.compile(r"<class '(list|tuple)'>"), "list"),
    (re.compile(r"Expected a typing\.Literal\[(.*?)\]\."), r"Expected one of \1."),
    (re.compile(r"Expected a dot import path string: (.*)"), r"Expected a mapping. Got value: \1"),
    (re.compile(r"Not a valid subclass of \w+\."), "Expected a mapping."),
    (re.compile(r"the following arguments are required: (.*)"), r"\1 is missing"),
)


def _reason(error: BaseException) -> str:
    """jsonargparse's explanation as one line: which key, and what is wrong with it."""
    text = str(error)
    lines = [line.strip(" -") for line in text.splitlines()]
    reason = next((line for line in lines if line and not _SCAFFOLD.match(line)), text)
    for theirs, ours in _WORDS:
        reason = theirs.sub(ours, reason)
    keys = ".".join(re.findall(r'^[\s-]*Parser key "([^"]+)":\s*$', text, re.MULTILINE))
    return f"{keys}: {reason}" if keys else reason


def _with_recipe_files(arguments: list[str]) -> list[str]:
    """The arguments with every ``--config`` replaced by its file, read through once."""
    found = list(arguments)
    for number, (option, value) in enumerate(itertools.pairwise(found)):
        if option == "--config":
            found[number + 1] = str(_recipe_file(value))
    return [
        f"--config={_recipe_file(word.partition('=')[2])}" if word.startswith("--config=") else word
        for word in found
    ]


def _recipe_file(given: str) -> Path:
    """The file of a recipe that is given by path or by name, if YAML of a bounded size is in it."""
    path = user_path(given, "recipe")
    if not path.exists():
        folders = (RECIPES, RECIPES / "stages")
        names = {file.stem: file for folder in folders for file in folder.glob("*.yaml")}
        if given not in names:
            raise UserError(
                f"recipe {shown(given)} is not a file; give a YAML file, or one of {', '.join(sorted(names))}"
            )
        path = names[given]
    check_yaml(read_text(path, LARGEST_YAML), path)
    return path


def save_resolved(recipe: Recipe, path: Path) -> None:
    """Write the recipe as it was understood, defaults and overrides included."""
    path.write_text(yaml.safe_dump(plain_recipe(recipe), sort_keys=False))


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as `save_resolved` writes it: mappings, lists, texts and numbers."""
    plain: dict[str, Any] = _plain(recipe.as_dict())
    return plain


def _plain(value: Any) -> Any:
    """Tuples to lists, so that the YAML stays readable by any parser."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
