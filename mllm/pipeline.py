"""The few-lines face of the unified model: questions, chats, drawings and reconstructions."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..common.errors import UserError
from ..common.model_source import NANO
from .model_folder import resolve_model
from .modeling import DualTokenForConditionalGeneration
from .processing import DualTokenProcessor
from .progress import Progress, shown_progress
from .quantization import quantized_loading, require_quantization
from .streaming import stream_parts

ImageSource = str | Path | Image.Image
DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """ "auto" takes cuda, then mps, then cpu. UserError for a device that is not there."""
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise UserError(f"device {name!r} is unknown; allowed: {', '.join(DEVICES)}")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[kind]:
        raise UserError(f"device {name!r} is not available here; use 'auto' or 'cpu'")
    return torch.device(name)


class DualTokenPipeline:
    """A model and its processor on one device, ready for use.

    >>> pipe = DualTokenPipeline.from_pretrained("nano")
    >>> pipe.answer("circle.png", "What colour is the circle?")
    >>> pipe.generate_images("a red circle", num_images=4, seed=0)
    """

    def __init__(self, model: DualTokenForConditionalGeneration, processor: DualTokenProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = NANO,
        device: str = "auto",
        dtype: torch.dtype | str = "auto",
        quantization: str = "none",
    ) -> "DualTokenPipeline":
        """Load "nano", a folder, or a hub id.

        Args:
            device: "auto" (cuda, then mps, then cpu), or one of them.
            dtype: of the language model and heads; "auto" is bfloat16 on cuda and float32 elsewhere. The
                visual tokenizer is always float32: its codes must not depend on the device.
            quantization: "8bit" or "4bit" quantizes the language model's linear layers with bitsandbytes, for
                less memory; on cuda only.

        Raises:
            UserError: no such model or device, a folder that is no model, or quantization that does not work
                here.
        """
        source, target = resolve_model(name), resolve_device(device)
        require_quantization(quantization, target)
        if dtype == "auto":
            dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
        placement = quantized_loading(quantization, source, target, dtype)
        model = DualTokenForConditionalGeneration.from_pretrained(source, dtype=dtype, **placement)
        processor = DualTokenProcessor.from_pretrained(source)
        return cls(model if placement else model.to(target), processor)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def answer(
        self, image: ImageSource | Sequence[ImageSource] | None, question: str, max_new_tokens: int = 128
    ) -> str:
        """The model's answer to a question about one image, several, or none (greedy)."""
        return self.answer_many([(image, question)], max_new_tokens=max_new_tokens)[0]

    def answer_many(
        self,
        items: Sequence[tuple[ImageSource | Sequence[ImageSource] | None, str]],
        max_new_tokens: int = 128,
        batch_size: int = 16,
    ) -> list[str]:
        """Answers to many (image or images, question) pairs; the same as `answer` on each, in batches."""
        answers: list[str] = []
        for start in range(0, len(items), batch_size):
            conversations = [_question(*item) for item in items[start : start + batch_size]]
            inputs = self._inputs(conversations)
            new_tokens = self._at_most(max_new_tokens, inputs)
            ids = self.model.generate(
                **inputs, generation_mode="text", max_new_tokens=new_tokens, do_sample=False
            )
            new = ids[:, inputs["input_ids"].shape[1] :]
            answers.extend(self.processor.tokenizer.batch_decode(new, skip_special_tokens=True))
        return answers

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        stream: bool = False,
        max_new_tokens: int = 256,
        **options: Any,
    ) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """The assistant's next turn: content parts, text and images in the order they were produced.

        Parts are `{"type": "text", "text": ...}` and `{"type": "image", "image": PIL image}`, so that
        `{"role": "assistant", "content": parts}` continues the conversation. With `stream=True` an iterator
        yields text in small parts and images as they are made; closing it stops the model. `options`: those
        of `generate` ("interleaved"), such as `do_sample`, `guidance_scale`, `seed`, `max_images`.
        """
        inputs = self._inputs([messages])
        options = {"do_sample": False, "max_new_tokens": self._at_most(max_new_tokens, inputs), **options}
        parts = self._stream(inputs, **options)
        return parts if stream else _joined(parts)

    def generate_images(
        self, prompt: str, num_images: int = 1, seed: int | None = None, batch_size: int = 16, **options: Any
    ) -> list[Image.Image]:
        """Draw a text prompt.

        Args:
            prompt: what to draw; not empty.
            num_images: how many; image i of a seed is the same however many are drawn.
            seed: of the random numbers; None draws one.
            batch_size: images drawn side by side.
            **options: `guidance_scale`, `temperature` and the other fields of `ImageSamplingOptions` (what is
                left out is the model's own default); `progress`, True for a bar or a function, and `compile`
                as in the model's `generate`.

        Raises:
            UserError: an empty prompt or an option outside its range.
        """
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
        """`num_images` drawings of every prompt; the same as `generate_images` on each, in batches.

        `seed`: one for all prompts, or one per prompt. `progress`: as in `generate_images`; a bar counts the
        positions of all batches, a function those of each.
        """
        if num_images < 1:
            raise UserError(f"num_images is {num_images}; it must be at least 1")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        seeds = _prompt_seeds(seed, len(prompts))
        for prompt in prompts:
            _require_text("the prompt", prompt)
        images: list[list[Image.Image]] = [[] for _ in prompts]
        together = max(1, batch_size // num_images)
        groups = [range(len(prompts))[start : start + together] for start in range(0, len(prompts), together)]
        firsts = range(0, num_images, batch_size)
        # The image itself, and the tokens that open and close it.
        room = self.model.config.num_positions + 2
        with shown_progress(progress, len(groups) * len(firsts)) as tell:
            for chosen in groups:
                inputs = self._inputs([_question(None, prompts[index]) for index in chosen], room)
                for first in firsts:
                    count = min(batch_size, num_images - first)
                    tokens = self.model.generate(
                        **inputs,
                        generation_mode="image",
                        num_return_sequences=count,
                        first_image_index=first,
                        seed=[seeds[index] for index in chosen],
                        progress=tell,
                        **options,
                    )
                    drawn = self._decode(tokens)
                    for place, index in enumerate(chosen):
                        images[index].extend(drawn[place * count : (place + 1) * count])
        return images

    def reconstruct(self, image: ImageSource) -> Image.Image:
        """The image as its pixel codes hold it, at the model's resolution."""
        tokenizer = self.model.require_visual_tokenizer()
        pixel_values = self.processor.image_processor(image, return_tensors="pt")["pixel_values"].to(
            self.device
        )
        with torch.inference_mode():
            decoded = tokenizer.decode(tokenizer.encode(pixel_values).pixel)
        return self.processor.image_processor.to_images(decoded)[0]

    # ---- parts

    def _inputs(self, conversations: Sequence[Sequence[Mapping[str, Any]]], room: int = 1) -> dict[str, Any]:
        """Left-padded model inputs on the device; UserError when `room` new tokens do not fit the context."""
        batch = self.processor.apply_chat_template(list(conversations), add_generation_prompt=True)
        length = batch["input_ids"].shape[1]
        if length + room > self._context_length:
            raise UserError(
                f"the conversation takes {length} tokens and needs {room} new ones; the model's context "
                f"holds {self._context_length}: shorten it or use fewer images"
            )
        return dict(batch.to(self.device))

    def _at_most(self, max_new_tokens: int, inputs: dict[str, Any]) -> int:
        """`max_new_tokens`, or what the context has left."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        return min(max_new_tokens, self._context_length - inputs["input_ids"].shape[1])

    @property
    def _context_length(self) -> int:
        return getattr(self.model.config.text_config, "max_position_embeddings", None) or sys.maxsize

    def _decode(self, tokens: torch.Tensor) -> list[Image.Image]:
        return self.processor.image_processor.to_images(self.model.decode_image_tokens(tokens))

    def _stream(self, inputs: dict[str, Any], **options: Any) -> Iterator[dict[str, Any]]:
        return stream_parts(self.model.generate, self.processor.tokenizer, self._decode, **inputs, **options)


def _question(images: ImageSource | Sequence[ImageSource] | None, question: str) -> list[dict[str, Any]]:
    """A user's turn: images first, then the text."""
    _require_text("the question" if images is not None else "the prompt", question)
    if images is None:
        images = []
    elif isinstance(images, (str, Path, Image.Image)):
        images = [images]
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _require_text(name: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{name} is empty; give at least one word")


def _prompt_seeds(seed: int | Sequence[int] | None, prompts: int) -> list[int]:
    """One seed per prompt, drawn once where none is given, so that batches do not change the images."""
    if seed is None:
        seed = int(torch.randint(2**31, (1,)))
    seeds = [seed] * prompts if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) != prompts:
        raise UserError(f"{len(seeds)} seeds for {prompts} prompts; give one seed, or one per prompt")
    return seeds


def _joined(parts: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Streamed parts with neighbouring texts put together."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "text" and joined and joined[-1]["type"] == "text":
            joined[-1]["text"] += part["text"]
        else:
            joined.append(part)
    return joined
