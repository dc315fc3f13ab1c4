"""`generate` of the unified model: text by transformers' machinery, images by the image loop, or both."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList

from ...common.errors import UserError, shown
from ...common.machine import suitable_threads
from ...common.values import whole_number
from ...tokenizer import VisualCodes
from ..assembly.storage import DualTokenStorage
from .image_generation import ImageGenerator, ImagePrompt, check_compile
from .image_watcher import ImageWatcher
from .interleaved import InterleavedOutput
from .own_random import OwnRandom
from .progress import Progress, shown_progress
from .sampling import ImageSamplingOptions, as_seeds

if TYPE_CHECKING:
    from ..modeling import DualTokenForConditionalGeneration

GENERATION_MODES = ("text", "image", "interleaved")
SAMPLING_FIELDS = ImageSamplingOptions.names()
IMAGE_INPUTS = ("pixel_values", "pixel_codes", "semantic_codes")
# What transformers' pipelines pass along with every call and an image has no use for.
TEXT_ONLY_ARGUMENTS = (
    "generation_config",
    "max_new_tokens",
    "tokenizer",
    "assistant_model",
    "assistant_tokenizer",
)
DECODE_BATCH = 16
# A model's compiled loop works in place, and torch's compiler knows one setting for all threads.
COMPILED_DRAWING = threading.RLock()


class DualTokenGeneration(DualTokenStorage, GenerationMixin):
    """Generation of text, images, or both."""

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
            guidance_scale, temperature, top_k, top_p, ...: of images, the fields of `ImageSamplingOptions`;
                the default is the model's own (`config.image_sampling`).
            compile: of images: True compiles the steps of the drawing loop (`torch.compile`, with CUDA graphs
                on CUDA); that takes a minute or more at the first drawing of a shape and is kept with the
                model. A string names another backend.
            progress: of images: True shows a bar on stderr; a function is called with (positions done,
                positions in all) after each, and when it returns False the drawing stops with
                `GenerationCancelled`.
            seed: of the images, one number or one per prompt: image j of a prompt depends on its seed and j
                only. Of sampled text, one number. What other threads draw changes neither.
            generator: a torch.Generator from which a missing `seed` is drawn.
            first_image_index: index j of each prompt's first image, to draw many images in parts.
            max_images: most images of an interleaved answer.

        Raises:
            UserError: an unknown mode or option, an image where text was to be generated, a value outside
                its range, right-padded prompts.
        """
        mode = generation_mode or "text"
        if mode not in GENERATION_MODES:
            raise UserError(f"generation_mode is {shown(mode)}; allowed: {', '.join(GENERATION_MODES)}")
        if inputs is not None:
            kwargs["input_ids"] = inputs
        with suitable_threads(self, self._rows(kwargs)):
            self._encode_inputs(kwargs)
            if mode == "text":
                return self._generate_text(watch=generation_mode is None, **kwargs)
            draw = self._generate_image if mode == "image" else self._generate_interleaved
            return draw(**kwargs)

    @torch.inference_mode()
    def decode_image_tokens(self, image_tokens: Tensor) -> Tensor:
        """Image-mode output (B, P x 2D) to pixels (B, 3, S, S) in the image processor's range."""
        return self.decode_pixel_codes(self.split_image_tokens(image_tokens).pixel)

    @torch.inference_mode()
    def decode_pixel_codes(self, codes: Tensor) -> Tensor:
        """Pixels (I, 3, S, S) of codes (I, P, D)."""
        tokenizer = self.require_visual_tokenizer()
        grid = codes.unflatten(1, tuple(self.config.grid_size))
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([tokenizer.decode(part) for part in grid.split(DECODE_BATCH)])

    def split_image_tokens(self, image_tokens: Tensor) -> VisualCodes:
        """Image-mode output (B, P x (Dp + Ds)) as codes (B, P, Dp) and (B, P, Ds)."""
        depths = [codebook.depth for codebook in self.config.codebooks.values()]
        if image_tokens.ndim != 2 or image_tokens.shape[1] != self.config.codes_per_image:
            raise UserError(
                f"image tokens must be (images, {self.config.codes_per_image}), not "
                f"{tuple(image_tokens.shape)}; "
                "pass what generate(generation_mode='image') returned"
            )
        pixel, semantic = image_tokens.unflatten(1, (self.config.num_positions, sum(depths))).split(
            depths, dim=-1
        )
        return VisualCodes(pixel=pixel, semantic=semantic)

    def unconditional_ids(self) -> Tensor:
        """The sequence (L,) that guidance's unconditional branch starts from; training shows it too."""
        config = self.config
        ids = config.unconditional_prompt_ids or [
            config.bos_token_id,
            config.user_token_id,
            config.unconditional_token_id,
            config.eos_token_id,
            config.assistant_token_id,
        ]
        return torch.tensor([*ids, config.image_start_token_id], dtype=torch.long, device="cpu")

    # ---- text

    def _generate_text(
        self,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        watch: bool = False,
        **kwargs: Any,
    ) -> Any:
        if "guidance_scale" in kwargs:
            raise UserError("guidance_scale is for images; leave it out, or set generation_mode='image'")
        _refuse_right_padding(kwargs.get("attention_mask"))
        if watch and (watcher := self._image_watcher(**kwargs)) is not None:
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or ()), watcher]
        kwargs["suppress_tokens"] = [*(kwargs.pop("suppress_tokens", None) or []), *self._never_text()]
        if seed is None and generator is None:
            return self._transformers_generate(**kwargs)
        (seed,) = _seeds(seed, generator, 1)
        with OwnRandom(seed, self.device):
            return self._transformers_generate(**kwargs)

    def _rows(self, kwargs: Mapping[str, Any]) -> int:
        """Sequences that go on side by side in one call. UserError for a number of copies that is none."""
        inputs = next(
            (one for key in ("input_ids", "inputs_embeds") if (one := kwargs.get(key)) is not None), ""
        )
        counts = {name: kwargs.get(name) for name in ("num_return_sequences", "num_beams")}
        copies = max(1 if given is None else whole_number(given, name, 1) for name, given in counts.items())
        return 2 * len(inputs) * copies  # guidance has two rows for each

    def _image_watcher(
        self,
        input_ids: Tensor | None = None,
        generation_config: Any = None,
        num_beams: int | None = None,
        **_: Any,
    ) -> ImageWatcher | None:
        """What notices a wish to draw; None where the model cannot draw."""
        if input_ids is None or not self._may_draw(input_ids.shape[1]):
            return None
        beams = num_beams or getattr(generation_config or self.generation_config, "num_beams", None) or 1
        ends = [one for one in (self.config.eos_token_id, self.config.pad_token_id) if one is not None]
        return ImageWatcher(self.config.image_start_token_id, ends, input_ids.shape[1], beams)

    def _get_logits_processor(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """Watchers come first: they look at what the model says, before anything is held back."""
        given = list(logits_processor or ())
        watchers = [one for one in given if isinstance(one, ImageWatcher)]
        others = LogitsProcessorList([one for one in given if not isinstance(one, ImageWatcher)])
        parent: Any = super()
        made = parent._get_logits_processor(*args, logits_processor=others, **kwargs)
        return LogitsProcessorList([*watchers, *made])

    def _transformers_generate(self, **kwargs: Any) -> Any:
        parent: Any = super()
        return parent.generate(**kwargs)

    def _never_text(self, allow_image_start: bool = False) -> list[int]:
        """Special tokens that no answer contains."""
        config = self.config
        ids = [config.bos_token_id, config.pad_token_id, config.user_token_id, config.assistant_token_id]
        # Some language models have none of one kind, or pad with the token that ends a turn.
        ids = [one for one in ids if one not in (None, config.eos_token_id)]
        ids += [config.image_token_id, config.image_end_token_id, config.unconditional_token_id]
        return ids if allow_image_start else [*ids, config.image_start_token_id]

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Images are consumed with the prompt; later steps see them through the cache."""
        parent: Any = super()
        model_inputs = parent.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for key in IMAGE_INPUTS:
                model_inputs.pop(key, None)
        return model_inputs

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat each prompt together with all of its images; plain repetition would tear them apart."""
        codes = {key: kwargs.pop(key) for key in IMAGE_INPUTS if kwargs.get(key) is not None}
        if codes and expand_size > 1:
            assert input_ids is not None
            per_prompt = input_ids.eq(self.config.image_token_id).sum(dim=1) // self.config.num_positions
            counts = per_prompt.tolist()
            codes = {
                key: torch.cat([part.repeat(expand_size, 1, 1) for part in value.split(counts)])
                for key, value in codes.items()
            }
        parent: Any = super()
        input_ids, kwargs = parent._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return input_ids, kwargs | codes

    # ---- images

    def _generate_image(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_codes: Tensor | None = None,
        semantic_codes: Tensor | None = None,
        num_return_sequences: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        first_image_index: int = 0,
        do_sample: bool | None = None,
        compile: bool | str = False,
        progress: Progress | bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        for key in TEXT_ONLY_ARGUMENTS:
            kwargs.pop(key, None)
        if "pixel" not in self.config.branches:
            raise UserError("this model has no pixel codes (visual_branches: semantic), so it cannot draw")
        if do_sample is False:
            kwargs["temperature"] = 0.0
        check_compile(compile)
        options = ImageSamplingOptions.of(self.config.image_sampling, kwargs)
        num_return_sequences = whole_number(num_return_sequences, "num_return_sequences", 1)
        first_image_index = whole_number(first_image_index, "first_image_index")
        codes = None
        if pixel_codes is not None and semantic_codes is not None:
            codes = VisualCodes(pixel=pixel_codes.long(), semantic=semantic_codes.long())
        prompt = self._image_prompt(input_ids, attention_mask, codes)
        seeds = _seeds(seed, generator, input_ids.shape[0])
        rows = input_ids.shape[0] * num_return_sequences
        longest = max(prompt.input_ids.shape[1], self.unconditional_ids().shape[0])
        capacity = longest + self.config.num_positions
        model = cast("DualTokenForConditionalGeneration", self)
        with shown_progress(progress) as tell, COMPILED_DRAWING if compile else nullcontext():
            drawn = self._image_generator(options, rows, capacity, compile).generate(
                model, prompt, num_return_sequences, seeds, first_image_index, tell
            )
        return torch.cat([drawn.pixel, drawn.semantic], dim=-1).flatten(1)

    def _image_generator(
        self, options: ImageSamplingOptions, rows: int, capacity: int, compile: bool | str
    ) -> ImageGenerator:
        """A generator for one call, or the kept one whose compiled steps fit."""
        model = cast("DualTokenForConditionalGeneration", self)
        if not compile:
            return ImageGenerator(model, options, rows, capacity)
        kept: ImageGenerator | None = self.__dict__.get("_compiled_generator")
        if kept is None or not kept.fits(model, options, rows, capacity, compile):
            kept = self.__dict__["_compiled_generator"] = ImageGenerator(
                model, options, rows, capacity, compile
            )
        return kept

    def _image_prompt(
        self, input_ids: Tensor, attention_mask: Tensor | None, codes: VisualCodes | None
    ) -> ImagePrompt:
        """The prompt with its picture opened."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        _refuse_right_padding(mask)
        start = self.config.image_start_token_id
        if not bool(input_ids[:, -1].eq(start).all()):
            input_ids = torch.nn.functional.pad(input_ids, (0, 1), value=start)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        return ImagePrompt(input_ids, mask, codes)

    def _encode_inputs(self, kwargs: dict[str, Any]) -> None:
        """Replace images by their codes once, before prompts are repeated or run in steps."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None:
            codes = self.encode_images(pixel_values)
            kwargs |= {"pixel_codes": codes.pixel, "semantic_codes": codes.semantic}

    # ---- both in turn

    def _generate_interleaved(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_codes: Tensor | None = None,
        semantic_codes: Tensor | None = None,
        max_images: int = 4,
        max_new_tokens: int = 256,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        streamer: Any = None,
        compile: bool | str = False,
        progress: Progress | bool | None = None,
        **kwargs: Any,
    ) -> InterleavedOutput:
        """Text until the model opens an image, the image, and on, until it ends its turn.

        Sampling options are those of the images, `do_sample` is that of the text. A `streamer` with a method
        `put_image` gets the tokens of each finished image.
        """
        if input_ids.shape[0] != 1 or (attention_mask is not None and not bool(attention_mask.all())):
            raise UserError("interleaved generation takes one prompt at a time, without padding")
        max_images = whole_number(max_images, "max_images")
        max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", 1)
        image_kwargs = {key: kwargs.pop(key) for key in SAMPLING_FIELDS if key in kwargs}
        # Said before the first word, also where no image follows.
        ImageSamplingOptions.of(self.config.image_sampling, image_kwargs)
        check_compile(compile)
        (image_seed,) = _seeds(seed, generator, 1)
        own_random = OwnRandom(image_seed, self.device)
        device, given = input_ids.device, 0 if pixel_codes is None else pixel_codes.shape[0]
        config, start = self.config, self.config.image_start_token_id
        pixel = [] if pixel_codes is None else [pixel_codes]
        semantic = [] if semantic_codes is None else [semantic_codes]
        left, prompt_length = max_new_tokens, input_ids.shape[1]
        for drawn in range(max_images + 1):
            images: dict[str, Any] = (
                {"pixel_codes": torch.cat(pixel), "semantic_codes": torch.cat(semantic)} if pixel else {}
            )
            length = input_ids.shape[1]
            with own_random:
                input_ids = self._transformers_generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    suppress_tokens=self._never_text(self._may_draw(length) and drawn < max_images),
                    eos_token_id=[config.eos_token_id, start],
                    max_new_tokens=left,
                    streamer=streamer,
                    **images,
                    **kwargs,
                )
            left -= input_ids.shape[1] - length
            if int(input_ids[0, -1]) != start:
                break
            tokens = self._generate_image(
                input_ids,
                seed=image_seed,
                first_image_index=drawn,
                compile=compile,
                progress=progress,
                **images,
                **image_kwargs,
            )
            if hasattr(streamer, "put_image"):
                streamer.put_image(tokens)
            codes = self.split_image_tokens(tokens)
            pixel.append(codes.pixel)
            semantic.append(codes.semantic)
            slots = [config.image_token_id] * config.num_positions + [config.image_end_token_id]
            input_ids = torch.cat([input_ids, torch.tensor([slots], device=device)], dim=1)
            if left <= 0:
                break
        empty = torch.zeros(0, config.num_positions, 1, dtype=torch.long, device=device)
        codes = VisualCodes(
            pixel=torch.cat(pixel)[given:] if pixel else empty,
            semantic=torch.cat(semantic)[given:] if semantic else empty,
        )
        return InterleavedOutput(
            sequences=input_ids,
            pixel_codes=codes.pixel,
            semantic_codes=codes.semantic,
            prompt_length=prompt_length,
            images=self._decoded(codes.pixel),
        )

    def _decoded(self, pixel_codes: Tensor) -> Tensor | None:
        """Pixels of codes (I, P, D), or None where there are none or no visual tokenizer."""
        if self.visual_tokenizer is None or not pixel_codes.shape[0]:
            return None
        return self.decode_pixel_codes(pixel_codes)

    def _may_draw(self, length: int) -> bool:
        """Whether the model draws at all, and its context holds `length` tokens and then a whole image."""
        if "pixel" not in self.config.branches:
            return False
        longest = getattr(self.config.text_config, "max_position_embeddings", None)
        return longest is None or length + self.config.num_positions + 2 <= longest


def _refuse_right_padding(mask: Any) -> None:
    """Raise UserError for prompts (B, L) that end in padding: what follows them would be nonsense."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, -1].all()):
        raise UserError(
            "prompts for generation are padded on the left; collate them with padding_side='left'"
        )


def _seeds(seed: int | Sequence[int] | None, generator: torch.Generator | None, prompts: int) -> list[int]:
    """One seed per prompt; a missing one is drawn from `generator` or torch's global generator."""
    if seed is None:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**31, (1,), generator=generator, device=device))
    return as_seeds(seed, prompts)
