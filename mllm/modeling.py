"""The unified model: one causal language model that reads and writes text and dual visual codes.

Source: DualToken, arXiv 2503.14324, section 3.3. Shapes: B sequences of length L, I images of the batch in
order of appearance, P visual positions of an image, D depths, H hidden size, V text vocabulary.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import is_torchvision_available

from ..common.errors import UserError
from ..common.loading.hub_upload import UploadedWhole
from ..tokenizer import DualTokenizer, StoredTokenizer, VisualCodes
from .assembly.assemble import assemble
from .assembly.llm import LanguageModelSource
from .assembly.storage import load_model, save_with_tokenizer
from .assembly.tokenizers import TextTokenizerSource, VisualTokenizerSource, stored_codebooks
from .batch_index import BatchIndex, image_slots
from .branch import Branches
from .configuration import DualTokenConfig
from .depth_transformer import DepthTransformer
from .generation.generate import generate
from .generation.outputs import split_image_tokens
from .generation.text import IMAGE_INPUTS, ImageAnswerDetector, repeat_codes
from .language_model import CACHE_NAME, kept_states, run_language_model
from .linear_cross_entropy import Classifier, without_padding
from .losses import check_reduction, model_losses, soft_capped, visual_log_likelihood
from .outputs import DualTokenOutput, LossTerms
from .visual_codec import VisualCodec
from .visual_embedding import CodeProjector, GridPosition


class DualTokenForConditionalGeneration(UploadedWhole, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An LLM with a branch for pixel codes and one for semantic codes.

    Its `visual_tokenizer` (a `DualTokenizer` or None) turns images into codes and back. It is frozen, stays
    in fp32 and in eval mode, and is not part of this module's parameters or state dict.
    """

    config: DualTokenConfig
    config_class = DualTokenConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    # Transformers' any-to-any pipeline requires torchvision for images; our image processor does not need it.
    input_modalities = ["image", "text"] if is_torchvision_available() else ["text"]
    output_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"codebook"}

    def __init__(self, config: DualTokenConfig, language_model: PreTrainedModel | None = None) -> None:
        """A new model; a trained `language_model` is used unchanged."""
        super().__init__(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        self.set_output_embeddings(self.get_output_embeddings())
        self.branches = Branches(config)
        self.grid_position = GridPosition(config) if config.visual_position == "learned" else None
        self.codec = VisualCodec()
        #: peft's tuners; in a list, as they contain the language model and must not be submodules.
        self.adapters: list[Any] = []
        self.post_init()

    # ---- assembly and storage

    @classmethod
    def from_llm(
        cls,
        llm: LanguageModelSource,
        visual_tokenizer: VisualTokenizerSource,
        text_tokenizer: TextTokenizerSource | None = None,
        **options: Any,
    ) -> "DualTokenForConditionalGeneration":
        """A unified model around any causal language model; arguments as of `assemble`.

        >>> llm = "Qwen/Qwen2.5-0.5B-Instruct"
        >>> model = DualTokenForConditionalGeneration.from_llm(llm, "path/to/visual_tokenizer")
        >>> save_model(model, build_processor("path/to/visual_tokenizer", llm), "path/to/model")
        """
        return assemble(cls, llm, visual_tokenizer, text_tokenizer, **options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, load_visual_tokenizer: bool = True, **kwargs: Any
    ) -> Any:
        """Load a saved model with its visual tokenizer: a folder, a hub id, or "nano"; see `load_model`."""
        load = super().from_pretrained
        return load_model(cls, load, pretrained_model_name_or_path, load_visual_tokenizer, *args, **kwargs)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[Any], **kwargs: Any
    ) -> Any:
        """Save config.json, model*.safetensors and, when there is one, `visual_tokenizer/`.

        Raises:
            UserError: the model has adapters, which a plain model folder cannot hold.
        """
        return save_with_tokenizer(self, super().save_pretrained, save_directory, **kwargs)

    # ---- the visual tokenizer

    @property
    def visual_tokenizer(self) -> DualTokenizer | None:
        """The frozen visual tokenizer, or None for a model that was loaded for cached codes only."""
        return self.codec.tokenizer

    def require_visual_tokenizer(self) -> DualTokenizer:
        """The visual tokenizer; raises UserError for a model without one."""
        return self.codec.required

    def attach_visual_tokenizer(self, visual_tokenizer: DualTokenizer) -> None:
        """Freeze and hold `visual_tokenizer`, and copy its codebooks; errors as `copy_codebooks`."""
        self.copy_codebooks(visual_tokenizer)
        self.codec.hold(visual_tokenizer, self.device)

    def detach_visual_tokenizer(self) -> None:
        """Drop the visual tokenizer; the codebooks stay, which training on cached codes needs."""
        self.codec.tokenizer = None

    def copy_codebooks(self, visual_tokenizer: DualTokenizer | StoredTokenizer) -> None:
        """Copy the code vectors of the quantizers.

        Raises:
            UserError: grid or codebooks do not have the sizes of this model's configuration.
        """
        vectors = stored_codebooks(visual_tokenizer, self.config)
        for name, branch in self.branches.items():
            branch.codebook.assign(vectors[name])

    def encode_images(self, pixel_values: Tensor) -> VisualCodes:
        """Codes of images: (I, 3, S, S) in the processor's range -> pixel and semantic, each (I, P, D)."""
        return self.codec.encode(pixel_values)

    def decode_pixel_codes(self, codes: Tensor) -> Tensor:
        """Pixels (I, 3, S, S) of pixel codes (I, P, D)."""
        return self.codec.decode(codes)

    def decode_image_tokens(self, image_tokens: Tensor) -> Tensor:
        """Image-mode output (B, P x 2D) to pixels (B, 3, S, S) in the image processor's range."""
        return self.codec.decode(split_image_tokens(self.config, image_tokens).pixel)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        self.codec.to(self.device)
        return result

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
        index: BatchIndex | None = None,
        **kwargs: Any,
    ) -> DualTokenOutput:
        """Losses when `labels` are given, logits of the next text token otherwise.

        Args:
            input_ids: (B, L); one `<|image|>` per visual position.
            attention_mask: (B, past + L), 1 for tokens, 0 for padding on either side; with a cache it covers
                the cached tokens too. Positions follow from it unless `position_ids` are given.
            cache: newer transformers' name of `past_key_values`.
            pixel_values: (I, 3, S, S) images, in order of appearance in the batch, or instead of them
            pixel_codes, semantic_codes: (I, P, D) cached codes.
            labels: (B, L): a text id, -100 (not trained), or the `<|image|>` id where a position's codes are
                a target. Each is predicted by the state one position to its left.
            index: of `input_ids` and `labels`, if known on the host; otherwise found on the device.
            reduction: "mean" or "sum": `loss` adds the means or the sums of the three losses.

        Raises:
            ValueError: the numbers of `<|image|>` slots and images differ.
        """
        check_reduction(reduction)
        codes = self.codec.given(pixel_values, pixel_codes, semantic_codes)
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("pass input_ids or inputs_embeds")
            inputs_embeds = self.embed_sequence(input_ids, codes, index)
        outputs = run_language_model(
            self.language_model,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values if cache is None else cache,
            use_cache=not self.training and labels is None if use_cache is None else use_cache,
            **kwargs,
        )
        if labels is None:
            result = DualTokenOutput(logits=self.text_logits(kept_states(outputs, logits_to_keep)))
        elif input_ids is None:
            raise ValueError("labels need input_ids, which assign the visual targets to images")
        else:
            index = index or BatchIndex.of(input_ids, labels, self.config.image_token_id)
            result = model_losses(self, outputs.last_hidden_state, labels, index, codes, reduction)
        setattr(result, CACHE_NAME, getattr(outputs, CACHE_NAME, None))
        result.hidden_states, result.attentions = outputs.hidden_states, outputs.attentions
        return result

    def text_logits(self, states: Tensor) -> Tensor:
        """Logits of the text vocabulary: (..., H) -> (..., V); -inf for rows without a token."""
        logits = soft_capped(self.get_output_embeddings()(states), self.config.softcap)
        return without_padding(logits, self.config.num_text_tokens)

    @torch.no_grad()
    def visual_log_likelihood(self, input_ids: Tensor, labels: Tensor, **inputs: Any) -> LossTerms:
        """Teacher-forced log-likelihoods in nats of every visual target.

        Returns `pixel` and `semantic`, each (T, D) over the T targets in order of appearance; `text` and a
        branch that the model lacks are empty. Arguments as in `forward`.
        """
        codes = self.codec.given(*(inputs.pop(key, None) for key in IMAGE_INPUTS))
        if codes is None:
            raise ValueError(
                "the visual likelihood needs images: pass pixel_values or pixel_codes and semantic_codes"
            )
        embeds = self.embed_sequence(input_ids, codes)
        states = run_language_model(self.language_model, embeds, **inputs).last_hidden_state
        return visual_log_likelihood(self, states, input_ids, labels, codes)

    # ---- generation

    def generate(
        self, inputs: Tensor | None = None, generation_mode: str | None = None, **kwargs: Any
    ) -> Any:
        """Continue left-padded prompts (what the processor's `apply_chat_template` returns).

        `generation_mode` is "text", "image" or "interleaved"; the function `generate` in
        dualtoken.mllm.generation.generate describes the results and all arguments.
        """
        if inputs is not None:
            kwargs["input_ids"] = inputs
        return generate(self, generation_mode, kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Inputs with images at the first step only; later steps see them through the cache."""
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for key in IMAGE_INPUTS:
                model_inputs.pop(key, None)
        return model_inputs

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat each prompt together with all of its images."""
        codes = {key: kwargs.pop(key) for key in IMAGE_INPUTS if kwargs.get(key) is not None}
        if codes and expand_size > 1:
            codes = repeat_codes(codes, input_ids, expand_size, self.config)
        parent: Any = super()
        ids, kwargs = parent._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return ids, kwargs | codes

    def _get_logits_processor(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """Detectors come first: they read the model's scores before any token is suppressed."""
        given = list(logits_processor or ())
        detectors = [one for one in given if isinstance(one, ImageAnswerDetector)]
        others = LogitsProcessorList([one for one in given if one not in detectors])
        parent: Any = super()
        made = parent._get_logits_processor(*args, logits_processor=others, **kwargs)
        return LogitsProcessorList([*detectors, *made])

    # ---- parts of forward

    def embed_codes(self, codes: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        """LLM inputs of visual positions: codes (..., D) by branch, indices (...) -> (..., H)."""
        embeds = self.branches.embed(codes)
        return embeds if self.grid_position is None else embeds + self.grid_position(positions)

    def embed_sequence(self, input_ids: Tensor, codes: VisualCodes | None, index: Any = None) -> Tensor:
        """LLM inputs (B, L, H): text embeddings with the `<|image|>` slots replaced by visual embeddings."""
        embeds = self.get_input_embeddings()(input_ids)
        if codes is None:
            if self.touches_everything():
                position = torch.zeros(1, dtype=torch.long, device=embeds.device)
                unused = self.embed_codes(self.config.made_up_codes(1, embeds.device), position)
                embeds = embeds + unused.sum().to(embeds.dtype) * 0.0
            return embeds
        slots = image_slots(input_ids, self.config.image_token_id) if index is None else index.image_slots
        count, positions, _ = codes.pixel.shape
        if slots.numel() != count * positions:
            raise UserError(f"{len(slots)} <|image|> slots for {count} images of {positions} positions each")
        order = torch.arange(positions, device=embeds.device).expand(count, positions)
        visual = self.embed_codes(vars(codes), order).flatten(0, 1)
        return embeds.flatten(0, 1).index_copy(0, slots, visual.to(embeds.dtype)).view_as(embeds)

    def touches_everything(self) -> bool:
        """Whether every parameter has to take part in this pass."""
        # Under ZeRO a module left out of one rank's step crashes, hangs or silently reuses its last gradient.
        return self.training and torch.is_grad_enabled()

    # ---- transformers' conventions

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_output_embeddings(Classifier.of(value))

    def _initialize_weights(self, module: torch.nn.Module, *_: bool, **__: bool) -> None:
        # Told that a model is external, transformers skips modules without direct parameters, so that
        # projectors and depth transformers would keep their layers' defaults. Loaded weights are kept in
        # either case.
        super()._initialize_weights(module)

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CodeProjector):
            # Some language models (Gemma) scale what they look up; projectors are initialised to that RMS.
            scale = float(getattr(self.get_input_embeddings(), "scalar_embed_scale", 1.0))
            module.reset(self.config.initializer_range * scale)
        elif isinstance(module, DepthTransformer):
            module.reset(self.config.initializer_range)
        elif isinstance(module, GridPosition):
            module.reset()


#: `from_llm` as a function.
build_model = DualTokenForConditionalGeneration.from_llm
