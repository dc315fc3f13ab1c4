"""The unified model: one causal language model that reads and writes text and dual visual codes.

Shapes: B sequences, L their length, I images of the batch in order of appearance, P visual positions per
    image,
D depths, C code dimension, H hidden size, V text vocabulary. Source: DualToken, arXiv 2503.14324, section
3.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput, is_torchvision_available

from ..common.errors import UserError
from ..tokenizer import DualTokenizer, StoredTokenizer, VisualCodes
from .assembly.storage import DualTokenStorage
from .configuration import DualTokenConfig
from .conversation.collation import IGNORE
from .depth_transformer import DepthTransformer
from .generation.generate import generate
from .generation.outputs import split_image_tokens
from .generation.text import IMAGE_INPUTS, ImageAnswerDetector, repeat_codes
from .language_model import CACHE_NAME, visible_positions
from .losses import CodeLoss, LossTerms, code_log_likelihood, code_loss, soft_capped, text_losses
from .visual_embedding import CodeProjector, FrozenCodebook, GridPosition, VisualEmbedding

DECODE_BATCH = 16
BRANCHES = ("pixel", "semantic")


@dataclass(frozen=True)
class TargetLosses:
    """Detached losses (T,) of single targets, and their places (T,) in the flattened (B * (L-1)) labels after
    the first; `losses` is None where a fused loss does not tell them."""

    places: Tensor
    losses: Tensor | None


@dataclass
class DualTokenOutput(ModelOutput):
    """Result of a forward pass.

    `loss` is the weighted sum of the three losses: of their means (`reduction="mean"`) or of their sums
        ("sum").
    `text_loss`, `pixel_loss`, `semantic_loss` are means. `sums` and `counts` let a trainer form means over a
    global batch: `(sums.text / global_count.text) * weight + ...`. The counts follow from the labels alone;
        where only a
    subset of the visual targets is trained on, the sums are scaled up to all of them. `pixel_depth_losses`
    and `semantic_depth_losses` (D,) are the detached mean cross-entropies of each depth. `target_losses` has
    the loss of every single target, detached. `logits` (B, kept, V) only without labels.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    pixel_loss: Tensor | None = None
    semantic_loss: Tensor | None = None
    sums: LossTerms | None = None
    counts: LossTerms | None = None
    pixel_depth_losses: Tensor | None = None
    semantic_depth_losses: Tensor | None = None
    target_losses: dict[str, TargetLosses] | None = None
    logits: Tensor | None = None
    # Under the name that the installed transformers reads.
    if CACHE_NAME == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class VisualTargets:
    """Where codes are predicted: `rows` index the flattened (B * (L-1)) states, `slots` the (I * P) codes."""

    rows: Tensor
    slots: Tensor

    def codes(self, images: VisualCodes) -> VisualCodes:
        """The targets' codes (T, D), out of those of all images (I, P, D)."""
        return VisualCodes(
            pixel=images.pixel.flatten(0, 1)[self.slots], semantic=images.semantic.flatten(0, 1)[self.slots]
        )


class DualTokenForConditionalGeneration(DualTokenStorage, GenerationMixin):
    """An LLM with two frozen codebooks, two code projectors and two depth transformers.

    `visual_tokenizer` (a `DualTokenizer` or None) turns images into codes and back. It is frozen, stays in
    fp32 and in eval mode, and is no part of this module's parameters or state dict; it is saved beside them.
    """

    config_class = DualTokenConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    # Transformers' any-to-any pipeline wants torchvision for images, which our image processor does without.
    input_modalities = ["image", "text"] if is_torchvision_available() else ["text"]
    output_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"pixel_codebook", "semantic_codebook"}

    def __init__(self, config: DualTokenConfig, language_model: PreTrainedModel | None = None) -> None:
        """A new model; a trained `language_model` is taken over as it is."""
        super().__init__(config)
        hidden_size = config.text_config.hidden_size
        pixel, semantic = config.pixel_codebook, config.semantic_codebook
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        self.pixel_codebook = FrozenCodebook(**vars(pixel))
        self.semantic_codebook = FrozenCodebook(**vars(semantic))
        rows, columns = config.grid_size
        self.visual_embedding = VisualEmbedding(
            pixel.code_dim if "pixel" in config.branches else None,
            semantic.code_dim if "semantic" in config.branches else None,
            hidden_size,
            (rows, columns),
            config.visual_position == "learned",
        )
        # A branch that an ablation leaves out has no head.
        self.pixel_head, self.semantic_head = self._new_head("pixel"), self._new_head("semantic")
        self._hold_visual_tokenizer(None)
        self.post_init()

    @classmethod
    def from_llm(
        cls,
        llm: str | Path | Mapping[str, Any] | PreTrainedConfig | PreTrainedModel,
        visual_tokenizer: str | Path | DualTokenizer | StoredTokenizer,
        text_tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        attn_implementation: str | None = None,
        load_visual_tokenizer: bool = True,
        **settings: Any,
    ) -> "DualTokenForConditionalGeneration":
        """A unified model around any causal language model; see `build_model`, which this calls.

        >>> llm = "Qwen/Qwen2.5-0.5B-Instruct"
        >>> model = DualTokenForConditionalGeneration.from_llm(llm, "path/to/visual_tokenizer")
        >>> save_model(model, build_processor("path/to/visual_tokenizer", llm), "path/to/model")
        """
        from .assembly.assemble import build_model

        return build_model(
            llm,
            visual_tokenizer,
            text_tokenizer,
            attn_implementation=attn_implementation,
            load_visual_tokenizer=load_visual_tokenizer,
            **settings,
        )

    # ---- codes and images

    def embed_codes(self, pixel_codes: Tensor, semantic_codes: Tensor, positions: Tensor) -> Tensor:
        """LLM inputs of visual positions: codes (..., D) of both branches, indices (...) -> (..., H)."""
        pixel, semantic = self.pixel_codebook.embed(pixel_codes), self.semantic_codebook.embed(semantic_codes)
        return self.visual_embedding(pixel, semantic, positions)

    def pixel_condition(self, semantic_codes: Tensor) -> Tensor | None:
        """What the pixel head sees of the position's semantic codes (..., D): (..., C), or None."""
        return (
            self.semantic_codebook.embed(semantic_codes)
            if self.config.pixel_condition == "semantic"
            else None
        )

    def semantic_condition(self, pixel_codes: Tensor) -> Tensor | None:
        """What the semantic head sees of the position's pixel codes (..., D): (..., C), or None."""
        return self.pixel_codebook.embed(pixel_codes) if self.config.semantic_condition == "pixel" else None

    @torch.inference_mode()
    def decode_image_tokens(self, image_tokens: Tensor) -> Tensor:
        """Image-mode output (B, P x 2D) to pixels (B, 3, S, S) in the image processor's range."""
        return self.decode_pixel_codes(split_image_tokens(self.config, image_tokens).pixel)

    @torch.inference_mode()
    def decode_pixel_codes(self, codes: Tensor) -> Tensor:
        """Pixels (I, 3, S, S) of codes (I, P, D)."""
        tokenizer = self.require_visual_tokenizer()
        grid = codes.unflatten(1, tuple(self.config.grid_size))
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([tokenizer.decode(part) for part in grid.split(DECODE_BATCH)])

    # ---- forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_codes: Tensor | None = None,
        semantic_codes: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        reduction: str = "mean",
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> DualTokenOutput:
        """Losses when `labels` are given, logits of the next text token otherwise.

        Args:
            input_ids: (B, L); one `<|image|>` per visual position.
            attention_mask: (B, L), 1 for real tokens; padding may be on either side.
            cache: the same as `past_key_values`, as newer transformers call it.
            pixel_values: (I, 3, S, S) images, in order of appearance in the batch, or instead of them
            pixel_codes, semantic_codes: (I, P, D) cached codes.
            labels: (B, L): a text id, -100 (not trained), or the `<|image|>` id where a position's codes are
                a target. Each is predicted by the state one place to its left.
            reduction: "mean" or "sum"; what `loss` adds up.

        Raises:
            ValueError: `<|image|>` slots and images do not fit together.
        """
        past = past_key_values if cache is None else cache
        codes = self.given_codes(pixel_values, pixel_codes, semantic_codes)
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("pass input_ids or inputs_embeds")
            inputs_embeds = self.embed_sequence(input_ids, codes)
        if position_ids is None and past is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = visible_positions(attention_mask)
        outputs = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=not self.training and labels is None if use_cache is None else use_cache,
            **{CACHE_NAME: past},
            **kwargs,
        )
        states = outputs.last_hidden_state
        if labels is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result = DualTokenOutput(logits=self.text_logits(states[:, kept]))
        else:
            if input_ids is None:
                raise ValueError("labels need input_ids: they say which images the visual targets belong to")
            result = self._losses(states, input_ids, labels, codes, reduction)
        setattr(result, CACHE_NAME, getattr(outputs, CACHE_NAME, None))
        result.hidden_states, result.attentions = outputs.hidden_states, outputs.attentions
        return result

    def text_logits(self, states: Tensor) -> Tensor:
        """Logits of the text vocabulary: (..., H) -> (..., V)."""
        return soft_capped(self.language_model.get_output_embeddings()(states), self._softcap)

    @torch.no_grad()
    def visual_log_likelihood(self, input_ids: Tensor, labels: Tensor, **inputs: Any) -> LossTerms:
        """Teacher-forced log-likelihoods in nats of every visual target.

        Returns `pixel` and `semantic`, each (T, D) over the T targets in order of appearance; `text` and a
        branch that the model does not have are empty. Arguments as in `forward`.
        """
        codes = self.given_codes(
            *(inputs.pop(key, None) for key in ("pixel_values", "pixel_codes", "semantic_codes"))
        )
        if codes is None:
            raise ValueError(
                "the visual likelihood needs images: pass pixel_values or pixel_codes and semantic_codes"
            )
        embeds = self.embed_sequence(input_ids, codes)
        mask = inputs.get("attention_mask")
        position_ids = None if mask is None else visible_positions(mask)
        states = self.language_model.base_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        targets = self._visual_targets(input_ids, labels)
        states = states[:, :-1].flatten(0, 1)[targets.rows]
        chosen = targets.codes(codes)
        likelihoods = {
            name: code_log_likelihood(*part)
            if (part := self._head_inputs(name, states, chosen))
            else states[:0]
            for name in BRANCHES
        }
        return LossTerms(text=states.new_zeros(0), **likelihoods)

    # ---- generation

    def generate(
        self, inputs: Tensor | None = None, generation_mode: str | None = None, **kwargs: Any
    ) -> Any:
        """Continue a batch of left-padded prompts (what the processor's `apply_chat_template` returns).

        Args:
            inputs: prompt ids (B, L); the same as `input_ids`.
            generation_mode: "text": ids (B x num_return_sequences, L + new), by transformers' `generate`,
                with all its options and streamers. None (default) is the same, but raises UserError where the
                model wants to answer with an image: words alone would be nonsense there. "image": codes (B x
                num_return_sequences, P x (pixel depth + semantic depth)), position by position and pixel
                before semantic; `decode_image_tokens` turns them into pixels. "interleaved": an
                `InterleavedOutput`, for one prompt; the processor's `post_process_multimodal_output` makes
                content parts of it.
            num_return_sequences: answers per prompt.
            guidance_scale, temperature, top_k, top_p, ...: of images, the fields of `ImageSamplingConfig`;
                the default is the model's own (`config.image_sampling`).
            compile: of images: True compiles the steps of the image loop (`torch.compile`, with CUDA graphs
                on CUDA); that takes a minute or more at the first image of a shape and is kept as long as the
                model. A string names another backend.
            progress: of images: True shows a bar on stderr; a function is called with (positions done,
                positions in all) after each, and when it returns False the call ends with
                `GenerationCancelled`.
            seed: of the images, one number or one per prompt: image j of a prompt depends on its seed and j
                only. Of sampled text, one number. Random numbers of other threads change neither.
            generator: a torch.Generator from which a missing `seed` is drawn.
            first_image_index: index j of each prompt's first image, to generate many images in parts.
            max_images: most images of an interleaved answer.

        Raises:
            UserError: an unknown mode or option, an image where text was to be generated, a value outside
                its range, right-padded prompts.
        """
        if inputs is not None:
            kwargs["input_ids"] = inputs
        return generate(self, generation_mode, kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Images are consumed with the prompt; later steps see them through the cache."""
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for key in IMAGE_INPUTS:
                model_inputs.pop(key, None)
        return model_inputs

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat each prompt together with all of its images; plain repetition would tear them apart."""
        codes = {key: kwargs.pop(key) for key in IMAGE_INPUTS if kwargs.get(key) is not None}
        if codes and expand_size > 1:
            codes = repeat_codes(codes, input_ids, expand_size, self.config)
        parent: Any = super()
        ids, kwargs = parent._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return ids, kwargs | codes

    def _get_logits_processor(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """Detectors come first: they look at what the model says, before any token is suppressed."""
        given = list(logits_processor or ())
        detectors = [one for one in given if isinstance(one, ImageAnswerDetector)]
        others = LogitsProcessorList([one for one in given if one not in detectors])
        parent: Any = super()
        made = parent._get_logits_processor(*args, logits_processor=others, **kwargs)
        return LogitsProcessorList([*detectors, *made])

    # ---- parts of forward

    def _new_head(self, branch: str) -> DepthTransformer | None:
        if branch not in self.config.branches:
            return None
        codebook, other = self.config.pixel_codebook, self.config.semantic_codebook
        conditioned = self.config.pixel_condition == "semantic"
        if branch == "semantic":
            codebook, other = other, codebook
            conditioned = self.config.semantic_condition == "pixel"
        sizes = self.config.depth_transformer
        return DepthTransformer(
            hidden_size=self.config.text_config.hidden_size,
            code_dim=codebook.code_dim,
            num_codes=codebook.num_codes,
            depth=codebook.depth,
            width=sizes.hidden_size,
            num_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
            intermediate_size=sizes.intermediate_size,
            shared_classifier=self.config.shared_classifier,
            condition_dim=other.code_dim if conditioned else None,
        )

    def _head_inputs(
        self, branch: str, states: Tensor, codes: VisualCodes
    ) -> tuple[DepthTransformer, Tensor, Tensor, FrozenCodebook, Tensor | None] | None:
        """Head, states (T, H), codes (T, D), codebook, condition of a branch; None where it is left out."""
        if branch == "pixel":
            head, own, codebook = self.pixel_head, codes.pixel, self.pixel_codebook
            condition = self.pixel_condition(codes.semantic)
        else:
            head, own, codebook = self.semantic_head, codes.semantic, self.semantic_codebook
            condition = self.semantic_condition(codes.pixel)
        return None if head is None else (head, states, own, codebook, condition)

    def given_codes(
        self, pixel_values: Tensor | None, pixel_codes: Tensor | None, semantic_codes: Tensor | None
    ) -> VisualCodes | None:
        """The batch's codes as (I, P, D), encoding images where no codes were given."""
        if (pixel_codes is None) != (semantic_codes is None):
            raise ValueError("pixel_codes and semantic_codes go together; only one was given")
        if pixel_codes is not None and semantic_codes is not None:
            if pixel_values is not None:
                raise ValueError("pass pixel_values or cached codes, not both")
            return VisualCodes(pixel=pixel_codes.long(), semantic=semantic_codes.long())
        return None if pixel_values is None else self.encode_images(pixel_values)

    def embed_sequence(self, input_ids: Tensor, codes: VisualCodes | None) -> Tensor:
        """LLM inputs (B, L, H): text embeddings with the `<|image|>` slots replaced by visual embeddings."""
        embeds = self.get_input_embeddings()(input_ids)
        if codes is None:
            return embeds + self._unused_projectors(embeds) if self._touch_everything() else embeds
        slots = input_ids.eq(self._image_id).flatten().nonzero().squeeze(1)
        count, positions, _ = codes.pixel.shape
        if slots.numel() != count * positions:
            raise UserError(
                f"{slots.numel()} <|image|> slots for {count} images of {positions} positions each"
            )
        index = torch.arange(positions, device=embeds.device).expand(count, positions)
        visual = self.embed_codes(codes.pixel, codes.semantic, index).flatten(0, 1)
        return embeds.flatten(0, 1).index_copy(0, slots, visual.to(embeds.dtype)).view_as(embeds)

    def _losses(
        self, states: Tensor, input_ids: Tensor, labels: Tensor, codes: VisualCodes | None, reduction: str
    ) -> DualTokenOutput:
        """All losses; states and logits are gathered at targets only, never held for other places."""
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; allowed: mean, sum")
        flat = states[:, :-1].flatten(0, 1)
        text_sum, text_targets = self._text_loss(flat, labels[:, 1:].flatten())
        targets = self._visual_targets(input_ids, labels)
        count = targets.rows.numel()
        if self.training and self.config.visual_target_fraction < 1.0:
            targets = _random_subset(targets, self.config.visual_target_fraction)
        used = targets.rows.numel()
        if used:
            assert codes is not None, "the slots were matched with the images when they were embedded"
            at, chosen = flat[targets.rows], targets.codes(codes)
            weight = count / used
        else:
            # No visual target: one made-up position with weight zero, so that every parameter still gets a
            # gradient.
            at, weight = flat[:1] if self._touch_everything() else flat[:0], 0.0
            chosen = self._made_up_codes(labels, at.shape[0])
        pixel_loss = self._code_loss("pixel", at, chosen)
        semantic_loss = self._code_loss("semantic", at, chosen)
        sums = LossTerms(text=text_sum, pixel=pixel_loss.sum * weight, semantic=semantic_loss.sum * weight)
        text_count, visual_count = labels.new_tensor(text_targets.places.numel()), labels.new_tensor(count)
        counts = LossTerms(text=text_count, pixel=visual_count, semantic=visual_count)
        means = sums.means(counts)
        return DualTokenOutput(
            loss=(means if reduction == "mean" else sums).weighted(self.config.loss_weights),
            text_loss=means.text,
            pixel_loss=means.pixel,
            semantic_loss=means.semantic,
            sums=sums,
            counts=counts,
            pixel_depth_losses=pixel_loss.per_depth * weight / max(count, 1),
            semantic_depth_losses=semantic_loss.per_depth * weight / max(count, 1),
            target_losses={
                "text": text_targets,
                "pixel": TargetLosses(targets.rows, pixel_loss.per_position[:used]),
                "semantic": TargetLosses(targets.rows, semantic_loss.per_position[:used]),
            },
        )

    def _code_loss(self, branch: str, states: Tensor, codes: VisualCodes) -> CodeLoss:
        inputs = self._head_inputs(branch, states, codes)
        if inputs is None:
            depth = getattr(codes, branch).shape[-1]
            nothing = states.new_zeros(())
            return CodeLoss(nothing, states.new_zeros(depth), nothing.expand(len(states)))
        return code_loss(*inputs, self.config.depth_weights[branch])

    def _text_loss(self, states: Tensor, targets: Tensor) -> tuple[Tensor, TargetLosses]:
        """Summed text cross-entropy, and its targets."""
        rows = ((targets != IGNORE) & (targets != self._image_id)).nonzero().squeeze(1)
        head = self.language_model.get_output_embeddings()
        total, losses = text_losses(head, states[rows], targets[rows], self._softcap)
        return total, TargetLosses(rows, losses)

    def _visual_targets(self, input_ids: Tensor, labels: Tensor) -> VisualTargets:
        is_image = input_ids.eq(self._image_id)
        order = (is_image.flatten().cumsum(0) - 1).view_as(input_ids)
        rows = labels[:, 1:].eq(self._image_id).flatten().nonzero().squeeze(1)
        return VisualTargets(rows=rows, slots=order[:, 1:].flatten()[rows])

    def _touch_everything(self) -> bool:
        # Under ZeRO a module left out of one rank's step crashes, hangs or silently reuses its last gradient.
        return self.training and torch.is_grad_enabled()

    def _unused_projectors(self, embeds: Tensor) -> Tensor:
        """Zero that depends on every parameter of the visual embedding."""
        position = torch.zeros(1, dtype=torch.long, device=embeds.device)
        codes = self._made_up_codes(position, 1)
        return self.embed_codes(codes.pixel, codes.semantic, position).sum().to(embeds.dtype) * 0.0

    def _made_up_codes(self, like: Tensor, count: int) -> VisualCodes:
        """Codes (count, D) of places that do not exist."""
        depths = self.config.pixel_codebook.depth, self.config.semantic_codebook.depth
        return VisualCodes(
            *(torch.zeros(count, depth, dtype=torch.long, device=like.device) for depth in depths)
        )

    @property
    def _image_id(self) -> int:
        return int(self.config.image_token_id)

    @property
    def _softcap(self) -> float | None:
        return getattr(self.config.text_config, "final_logit_softcapping", None)

    # ---- transformers' conventions

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def _initialize_weights(self, module: torch.nn.Module, is_custom_code: bool = False) -> None:
        # In models from outside itself transformers passes over modules without parameters of their own, so
        # that projectors and heads would keep the start of their layers. All of ours heed what is loaded.
        super()._initialize_weights(module, is_custom_code=False)

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CodeProjector):
            # Some language models (Gemma) scale what they look up; projectors speak at that volume.
            scale = float(getattr(self.get_input_embeddings(), "scalar_embed_scale", 1.0))
            module.reset(self.config.initializer_range * scale)
        elif isinstance(module, DepthTransformer):
            module.reset(self.config.initializer_range)
        elif isinstance(module, GridPosition):
            module.reset()


def _random_subset(targets: VisualTargets, fraction: float) -> VisualTargets:
    """A random share of the targets, at least one where there is any."""
    count = targets.rows.numel()
    kept = (
        torch.randperm(count, device=targets.rows.device)[: max(1, round(count * fraction))]
        if count
        else slice(0)
    )
    return VisualTargets(rows=targets.rows[kept], slots=targets.slots[kept])
