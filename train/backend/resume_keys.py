"""What a changed key of the recipe means for a run that resumes. Every key of the recipe is listed here."""

from __future__ import annotations

from enum import Enum
from fnmatch import fnmatchcase

from ..config.deepspeed_keys import LAYOUT


class Rule(Enum):
    """FREE: used from the next step on. FIXED: refused. PATH: a folder or file, which may have moved."""

    FREE = "may change"
    FIXED = "must stay"
    PATH = "may move"


#: Speed, logging, length, rates: weights, moments and the position in the data keep their meaning.
_FREE = {
    "": "output",
    # Micro-batches only together with the accumulation: records per step are compared.
    # Packed rows hold pieces or not: there the checkpoint's packing is compared.
    "data": "num_workers micro_batch_size cache cache_gb long_text",
    "run": (
        "steps gradient_accumulation_steps attention gradient_checkpointing weight_average zero_stage "
        "deepspeed offload threads log_every save_every async_save keep_checkpoints keep_best export_dtype "
        "spike_factor max_skipped timeout_minutes peak_tflops wandb_project stop_after"
    ),
    # Which parameters share a rate must stay: parameter groups are compared.
    "optimizer": "lr muon_lr muon_momentum lr_scale group_lr betas eps weight_decay gradient_clipping",
    "schedule": "kind warmup_steps final_ratio decay_share",
    "validation": "every batches prompts seed guidance_scale general_questions",
    "validation.sources.*": "path weight max_repeats shuffle shuffle_window",
    # Of the exported model, not of its training.
    "mllm.model.image_sampling": (
        "guidance_scale temperature top_k top_p truncate_from_level guidance_schedule sampler batch_invariant"
    ),
}
#: The order and content of batches, the shapes of weights, the losses, and the layout of checkpoints.
_FIXED = {
    "": "seed",
    "data": "sort_window pack_length pack_window max_length",
    "data.sources.*": "weight max_repeats shuffle shuffle_window",
    "run": "precision",
    "run.deepspeed": " ".join(LAYOUT),
    "contrastive": (
        "vision_config text_config contrastive_weight patch_weight patch_layer background_weight "
        "consistency_weight max_text_length resize_mode resample"
    ),
    "tokenizer": (
        "semantic_weight pooled_weight mse_weight l1_weight gradient_weight pixel_commitment_weight "
        "semantic_commitment_weight pixel_consistency_weight semantic_consistency_weight perceptual_weight "
        "trained semantic_fraction unquantized_steps initialisation_vectors"
    ),
    "tokenizer.adversarial": (
        "weight start_step warmup_steps layers channels lr betas adaptive_min adaptive_max leak"
    ),
    "tokenizer.model": (
        "pixel_layer semantic_layer shortcut_layer shortcut_weight causal_post_projection shared_quantizer "
        "separate_encoders encode_precision resize_mode resample pad_colour"
    ),
    **{
        f"tokenizer.model.{branch}_quantizer": (
            "num_codes code_dim depth shared_codebook decay restart_unused_codes restart_every "
            "restart_threshold update_each_depth"
        )
        for branch in ("pixel", "semantic")
    },
    "tokenizer.model.decoder": (
        "latent_size in_channels ch ch_mult num_res_blocks attn_resolutions norm_groups out_channels "
        "patch_skip"
    ),
    "mllm": "vocabulary_multiple prompt_dropout shuffle_turns trained encode_precision",
    "mllm.lora": "rank alpha dropout dora target_modules",
    "mllm.model": (
        "visual_branches pixel_condition semantic_condition shared_classifier visual_position "
        "text_loss_weight pixel_loss_weight semantic_loss_weight pixel_depth_weights "
        "semantic_depth_weights visual_target_fraction"
    ),
    "mllm.model.depth_transformer": "hidden_size num_layers num_heads intermediate_size",
}
_PATHS = {
    "": "init_from",
    "data.sources.*": "path",
    "contrastive": "text_tokenizer",
    "tokenizer": "teacher perceptual_weights",
    "mllm": "llm visual_tokenizer text_tokenizer",
}


def _listed(sections: dict[str, str], rule: Rule) -> dict[str, Rule]:
    return {
        f"{section}.{name}".lstrip("."): rule for section, names in sections.items() for name in names.split()
    }


#: The rule of every key; sources have the name "*".
RULES = {**_listed(_FREE, Rule.FREE), **_listed(_FIXED, Rule.FIXED), **_listed(_PATHS, Rule.PATH)}
#: How records are packed, and how many a step has: a changed value is known from the checkpoint too.
PACKING = ("data.pack_length", "data.pack_window", "data.max_length", "data.long_text")
BATCH = ("data.micro_batch_size", "run.gradient_accumulation_steps")
PATHS = tuple(key for key, rule in RULES.items() if rule is Rule.PATH)


def rule_of(key: str) -> Rule:
    """The rule of a dotted key, of a key within a mapping (mllm.llm.hidden_size), or of a section.

    A section that appears or disappears has the strictest rule in it; an unknown key is FIXED.
    """
    parts = key.split(".")
    if parts[0] in ("data", "validation") and parts[1:2] == ["sources"] and len(parts) > 2:
        parts[2] = "*"
    key = ".".join(parts)
    for length in range(len(parts), 0, -1):
        if (rule := RULES.get(".".join(parts[:length]))) is not None:
            # What a mapping instead of a path holds cannot have moved.
            return Rule.FIXED if rule is Rule.PATH and length < len(parts) else rule
    inner = {rule for one, rule in RULES.items() if one.startswith(f"{key}.")}
    return Rule.FREE if inner == {Rule.FREE} else Rule.FIXED


def is_named(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `names`, in a section that is, or matches a shell pattern."""
    return any(key.startswith(f"{name}.") or fnmatchcase(key, name) for name in names)
