"""The unified model in a few lines: answers, chats, generated images and reconstructions."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image

from ..common.devices import DTYPES, resolve_device, resolve_dtype
from ..common.errors import UserError
from ..common.images.reading import ImageSource
from ..common.loading.model_source import NANO
from ..common.loading.weight_files import HUB_OPTIONS
from ..common.values import flag, refuse_unknown, whole_number
from ..tokenizer.processing import processor_of
from . import arguments
from .assembly.model_folder import resolve_model
from .assembly.quantization import quantized_loading, require_quantization
from .assembly.storage import push_model, save_model
from .conversation.messages import add_part
from .conversation.processing import DualTokenProcessor
from .generation.progress import Progress, shown_progress
from .generation.sampling import prompt_seeds
from .generation.streaming import stream_parts
from .language_model import context_length
from .modeling import DualTokenForConditionalGeneration

#: The images of one question.
Images = ImageSource | Sequence[ImageSource] | None


class DualTokenPipeline:
    """A model and its processor on one device, ready for use.

    >>> pipe = DualTokenPipeline.from_pretrained("nano")
    >>> pipe.answer("circle.png", "What colour is the circle?")
    >>> pipe.generate_images("a red circle", num_images=4, seed=0)
    """

    def __init__(self, model: DualTokenForConditionalGeneration, processor: DualTokenProcessor) -> None:
        if processor.num_positions != model.config.num_positions:
            raise UserError(
                f"the processor has num_positions {processor.num_positions} (its processor_config.json), but "
                f"the model's images have {model.config.num_positions}; load both from one folder"
            )
        if model.codec.tokenizer is not None:
            processor_of(model.codec.tokenizer.config, processor.image_processor)
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = NANO,
        device: str | int | torch.device | None = "auto",
        dtype: torch.dtype | str | None = "auto",
        quantization: str = "none",
        **options: Any,
    ) -> "DualTokenPipeline":
        """Load "nano", a folder, or a hub id.

        Args:
            device: "auto" (cuda, then mps, then cpu), one of them, "cuda:1", or a torch.device.
            dtype: of the language model and heads, as torch's or by name ("bf16"); "auto" is bfloat16 on
                cuda, else float32. The visual tokenizer is always float32, so that codes do not depend on
                the device.
            quantization: "8bit" or "4bit" quantizes the language model's linear layers with bitsandbytes, for
                less memory; on cuda only.
            **options: of the hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`;
                `subfolder` of a folder or hub id; `attn_implementation` of the language model.

        Raises:
            UserError: no such model or device, a folder that is not a model, an unknown option, or a
                quantization that is not available here.
        """
        # Names of transformers: torch_dtype is the older one, and code of a folder is never run.
        dtype = options.pop("torch_dtype", dtype)
        options.pop("trust_remote_code", None)
        device = options.pop("device_map", device)
        known = (*HUB_OPTIONS, "attn_implementation", "device", "dtype", "quantization")
        refuse_unknown(options, known, "option")
        options = {key: value for key, value in options.items() if value is not None}
        target = resolve_device(device)
        dtype = resolve_dtype(dtype, target)
        require_quantization(quantization, target)
        source = resolve_model(name, options.get("subfolder", ""))
        if Path(source).is_dir():
            source = os.path.join(source, options.pop("subfolder", ""))
        placement = quantized_loading(quantization, source, target, dtype)
        model = DualTokenForConditionalGeneration.from_pretrained(source, dtype=dtype, **placement, **options)
        options.pop("attn_implementation", None)
        processor = DualTokenProcessor.from_pretrained(source, **options)
        return cls(model if placement else model.to(target), processor)

    def __repr__(self) -> str:
        count = sum(one.numel() for one in self.model.parameters()) / 1e6
        name = Path(self.model.config._name_or_path or "a new model").name
        kind = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({name!r}, {count:.1f} M parameters, {kind}, {self.device})"

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the language model and heads."""
        return self.model.dtype

    def to(
        self, *where: str | int | torch.device | torch.dtype, device: Any = None, dtype: Any = None
    ) -> "DualTokenPipeline":
        """Move the model to a device, a dtype or both, in place; returns the pipeline itself.

        Raises:
            UserError: no such device or dtype, or a quantized model, which cannot be moved.
        """
        for one in where:
            if isinstance(one, torch.dtype) or (isinstance(one, str) and one in DTYPES):
                dtype = one
            else:
                device = one
        if getattr(self.model, "is_quantized", False):
            raise UserError("a quantized model cannot be moved; name the device when loading it")
        if device is not None:
            self.model.to(resolve_device(device))
        if dtype is not None:
            self.model.to(resolve_dtype(dtype, self.device))
        return self

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """`save_model` of the model and its processor, with its `options` and errors."""
        save_model(self.model, self.processor, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """`push_model`: save the model to a repository of the hub, created if needed.

        `options`: `private`, `token`, `revision`, `commit_message` and `create_pr`.
        """
        refuse_unknown(options, push_model.__kwdefaults__ or (), "option")
        return push_model(self.model, self.processor, repo_id, **options)

    @overload
    def answer(self, image: Images, question: str, max_new_tokens: int = 128) -> str: ...

    @overload
    def answer(
        self, image: Images, question: list[str] | tuple[str, ...], max_new_tokens: int = 128
    ) -> list[str]: ...

    def answer(
        self, image: Images, question: str | list[str] | tuple[str, ...], max_new_tokens: int = 128
    ) -> str | list[str]:
        """The model's answer (greedy) to a question about one image, several, or none.

        A list of questions gives a list of answers.
        """
        if isinstance(question, list | tuple):
            return self.answer_many([(image, one) for one in question], max_new_tokens)
        return self.answer_many([(image, question)], max_new_tokens)[0]

    def answer_many(
        self, items: Sequence[tuple[Images, str]], max_new_tokens: int = 128, batch_size: int = 16
    ) -> list[str]:
        """Answers to many (image or images, question) pairs; the same as `answer` on each, in batches."""
        conversations = arguments.questions(items)
        batch_size = whole_number(batch_size, "batch_size", 1)
        answers: list[str] = []
        for start in range(0, len(conversations), batch_size):
            inputs = self._inputs(conversations[start : start + batch_size])
            options: Any = {"max_new_tokens": self._at_most(max_new_tokens, inputs), "do_sample": False}
            ids = self.model.generate(**inputs, generation_mode="text", **options)
            new = ids[:, inputs["input_ids"].shape[1] :]
            answers.extend(self.processor.tokenizer.batch_decode(new, skip_special_tokens=True))
        return answers

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        stream: Literal[False] = False,
        max_new_tokens: int = 256,
        **options: Any,
    ) -> list[dict[str, Any]]: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        stream: Literal[True],
        max_new_tokens: int = 256,
        **options: Any,
    ) -> Iterator[dict[str, Any]]: ...

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        stream: bool = False,
        max_new_tokens: int = 256,
        **options: Any,
    ) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """The assistant's next turn: content parts, text and images in the order of generation.

        Parts are `{"type": "text", "text": ...}` and `{"type": "image", "image": PIL image}`, so that
        `{"role": "assistant", "content": parts}` continues the conversation. With `stream=True` an iterator
        yields small parts of text, and images, as they are generated; closing it stops the model. `options`:
        those of `generate` ("interleaved"), such as `do_sample`, `guidance_scale`, `seed`, `max_images`.
        """
        flag(stream, "stream")
        arguments.check_chat_options(options)
        inputs = self._inputs([arguments.conversation(messages)])
        options = {"do_sample": False, "max_new_tokens": self._at_most(max_new_tokens, inputs), **options}
        tokenizer = self.processor.tokenizer
        parts = stream_parts(self.model.generate, tokenizer, self._decode, **inputs, **options)
        if stream:
            return parts
        answer: list[dict[str, Any]] = []
        for part in parts:
            add_part(answer, part)
        return answer

    def generate_images(
        self, prompt: str, num_images: int = 1, seed: int | None = None, batch_size: int = 16, **options: Any
    ) -> list[Image.Image]:
        """Images for a text prompt.

        Args:
            prompt: not empty.
            num_images: image i of a seed has the same random numbers for every `num_images`, and with
                `batch_invariant` (see `ImageSamplingConfig`) the same codes.
            seed: None takes a random one.
            batch_size: images generated side by side.
            **options: fields of `ImageSamplingConfig` (`guidance_scale`, `temperature`, ...), by default the
                model's own; `progress` and `compile` as in the model's `generate`.

        Raises:
            UserError: an empty prompt or an option outside its range.
        """
        prompt = arguments.given_text(prompt, "the prompt", "; generate_images_many takes a list of them")
        return self.generate_images_many([prompt], num_images, seed, batch_size, **options)[0]

    def generate_images_many(
        self,
        prompts: Sequence[str],
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        batch_size: int = 16,
        progress: Progress | bool | None = None,
        **options: Any,
    ) -> list[list[Image.Image]]:
        """`num_images` images for every prompt; the same as `generate_images` on each, in batches.

        `seed`: one for all prompts, or one per prompt. `progress`: a bar counts the positions of all batches,
        a function gets those of each.
        """
        return list(self.iter_images(prompts, num_images, seed, batch_size, progress, **options))

    def iter_images(
        self,
        prompts: Sequence[str],
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        batch_size: int = 16,
        progress: Progress | bool | None = None,
        **options: Any,
    ) -> Iterator[list[Image.Image]]:
        """As `generate_images_many`, yielding the images of each prompt when they are finished."""
        arguments.check_image_options(options)
        prompts = arguments.given_prompts(prompts)
        num_images = whole_number(num_images, "num_images", 1, arguments.MOST_IMAGES)
        batch_size = whole_number(batch_size, "batch_size", 1)
        seeds = prompt_seeds(seed, len(prompts))
        together = max(1, batch_size // num_images)
        starts, firsts = range(0, len(prompts), together), range(0, num_images, batch_size)
        room = self.model.config.num_positions + 2  # with the tokens that open and close the image
        with shown_progress(progress, len(starts) * len(firsts)) as report:
            for start in starts:
                chosen = prompts[start : start + together]
                inputs = self._inputs([arguments.question(None, prompt) for prompt in chosen], room)
                images: list[list[Image.Image]] = [[] for _ in chosen]
                for first in firsts:
                    count = min(batch_size, num_images - first)
                    tokens = self.model.generate(
                        **inputs,
                        generation_mode="image",
                        num_return_sequences=count,
                        first_image_index=first,
                        seed=seeds[start : start + together],
                        progress=report,
                        **options,
                    )
                    generated = iter(self._decode(tokens))
                    for of_prompt in images:
                        of_prompt.extend(islice(generated, count))
                yield from images

    @overload
    def reconstruct(self, image: list[Any] | tuple[Any, ...]) -> list[Image.Image]: ...

    @overload
    def reconstruct(self, image: Any) -> Image.Image: ...

    def reconstruct(self, image: Any) -> Image.Image | list[Image.Image]:
        """The image decoded from its pixel codes, at the model's resolution; a list gives a list."""
        self.model.require_visual_tokenizer()
        pixel_values = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            decoded = self.model.decode_pixel_codes(self.model.encode_images(pixel_values).pixel)
        images = self.processor.image_processor.to_images(decoded)
        return images if isinstance(image, list | tuple) else images[0]

    # ---- parts

    def _inputs(self, conversations: Sequence[Sequence[Mapping[str, Any]]], room: int = 1) -> dict[str, Any]:
        """Left-padded model inputs on the device; UserError when `room` new tokens do not fit the context."""
        batch = self.processor.apply_chat_template(list(conversations), add_generation_prompt=True)
        if self._room_after(batch) < room:
            raise UserError(
                f"the conversation has {batch['input_ids'].shape[1]} tokens and needs {room} new ones; the "
                f"model's context is {context_length(self.model.config.text_config)}: shorten the "
                "conversation or use fewer images"
            )
        return dict(batch.to(self.device))

    def _at_most(self, max_new_tokens: int, inputs: dict[str, Any]) -> int:
        """`max_new_tokens`, or the rest of the context where that is less."""
        return min(whole_number(max_new_tokens, "max_new_tokens", 1), self._room_after(inputs))

    def _room_after(self, inputs: Mapping[str, Any]) -> int:
        longest = context_length(self.model.config.text_config) or sys.maxsize
        return longest - inputs["input_ids"].shape[1]

    def _decode(self, tokens: torch.Tensor) -> list[Image.Image]:
        return self.processor.image_processor.to_images(self.model.decode_image_tokens(tokens))
