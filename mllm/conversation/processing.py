"""The processor: conversations, texts and images to model inputs, and outputs back to texts and images.

Shapes: B sequences, L length, I images in order of appearance, P visual positions, D depths.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from ...common.errors import UserError, shown
from ...common.images.reading import load_image
from ...common.loading.hub_upload import UploadedWhole
from ...common.loading.model_files import check_model_files
from ...common.loading.model_source import model_source
from ...common.loading.strict import loading_reason
from ...common.values import whole_number
from ...tokenizer import DualTokenizerImageProcessor
from ..generation.outputs import InterleavedOutput
from .chat_format import OWN, ChatFormat
from .collation import IGNORE, CachedCodes, EncodedRecord, collate_images, pack, pad
from .image_slots import NoImage, distribute, filled, placeholders, text_segments
from .messages import has_cached_codes
from .rendering import Segment, continue_last_message, render, segments_text
from .special_tokens import IMAGE, SPECIAL_TOKENS, VISUAL_TOKENS, special_strings
from .text_tokenizer import encode_segments, special_pattern

#: Of one image; a longer sequence fits no language model.
MOST_POSITIONS = 1 << 20


class DualTokenProcessor(UploadedWhole, ProcessorMixin):
    """Image processor and text tokenizer under the one conversation template.

    Args:
        image_processor: the visual tokenizer's `DualTokenizerImageProcessor`.
        tokenizer: text tokenizer that holds DualToken's special tokens.
        num_positions: visual positions of one image, the number of `<|image|>` slots it takes.
        chat_format: the strings around turns, a `ChatFormat` or its fields; None is DualToken's own.
    """

    _has_weights = False

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_positions: int = 64,
        chat_template: str | None = None,
        chat_format: ChatFormat | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # chat_template.jinja belongs to the text tokenizer, for when that is loaded without this processor.
        super().__init__(image_processor, tokenizer, **kwargs)
        if not isinstance(image_processor, DualTokenizerImageProcessor | None):
            kind = type(image_processor).__name__
            raise UserError(f"the image processor is a {kind}; give a DualTokenizerImageProcessor")
        self.num_positions = whole_number(num_positions, "num_positions", 1, MOST_POSITIONS)
        self.chat_format = (
            ChatFormat(**chat_format) if isinstance(chat_format, Mapping) else chat_format or OWN
        )
        vocabulary = tokenizer.get_vocab()
        needed = SPECIAL_TOKENS if self.chat_format.is_own else VISUAL_TOKENS
        missing = [token for token in needed if token not in vocabulary]
        if missing:
            raise UserError(
                f"the text tokenizer lacks {missing}; add them with "
                "mllm.conversation.text_tokenizer.add_special_tokens"
            )
        if tokenizer.pad_token_id is None:
            raise UserError(
                "the text tokenizer has no pad token (in its tokenizer_config.json); set one, as "
                "mllm.conversation.text_tokenizer.add_special_tokens does"
            )
        self.special_ids: dict[str, int] = {token: vocabulary[token] for token in needed}
        self._special = special_pattern(tokenizer)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> Any:
        """The processor of a saved model: a folder, a hub id, or "nano". No code of the folder is run.

        Raises:
            UserError: there is no model, or it has no usable processor and text tokenizer.
        """
        source = model_source(pretrained_model_name_or_path)
        check_model_files(source, kwargs.get("subfolder"))
        try:
            return super().from_pretrained(source, **{**kwargs, "trust_remote_code": False})
        except Exception as error:  # untrusted files, read by transformers and tokenizers
            raise UserError(
                f"{source} has no usable processor and text tokenizer: {loading_reason(error)}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The content of processor_config.json; DualToken's own chat format is left out."""
        settings = {**super().to_dict(), "chat_format": asdict(self.chat_format)}
        if self.chat_format.is_own:
            del settings["chat_format"]
        return settings

    def __repr__(self) -> str:
        chat_format = "own" if self.chat_format.is_own else "the language model's"
        return (
            f"{type(self).__name__}({self.num_positions} positions an image, {len(self.tokenizer)} tokens, "
            f"{chat_format} chat format)"
        )

    # ---- records

    def encode_record(self, messages: Iterable[Mapping[str, Any]]) -> EncodedRecord:
        """A conversation for training: ids, labels (targets are the assistant's turns) and images.

        Raises:
            UserError: the conversation is malformed, or an image is missing, broken or of the wrong size.
        """
        return self.encode_segments(render(messages, chat_format=self.chat_format))

    def encode_segments(self, segments: Sequence[Segment]) -> EncodedRecord:
        """The ids of rendered segments, with the mask of targets built at the same time."""
        ids: list[int] = []
        labels: list[int] = []
        images: list[Image.Image | CachedCodes] = []
        for piece, segment in encode_segments(self.tokenizer, segments, self.num_positions, self._special):
            ids.extend(piece)
            labels.extend(piece if segment.is_target else [IGNORE] * len(piece))
            if segment.image is not None:
                images.append(self._image(segment.image))
        return EncodedRecord(np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64), images)

    def collate(
        self, records: Sequence[EncodedRecord], padding_side: str = "right", with_labels: bool = True
    ) -> dict[str, Tensor]:
        """A batch for the model: input_ids, attention_mask, labels (B, L) and the images of all records.

        Images come as `pixel_values` (I, 3, S, S), or, when cached, as `pixel_codes` and `semantic_codes`
        (I, P, D) int64. Pad on the right for training, on the left for generation.

        Raises:
            UserError: the batch mixes images and cached codes, or is empty.
        """
        batch = pad(records, self.tokenizer.pad_token_id, padding_side)
        if not with_labels:
            del batch["labels"]
        return batch | self._images_of(records)

    def collate_packed(self, rows: Sequence[Sequence[EncodedRecord]], length: int) -> dict[str, Tensor]:
        """A batch whose rows hold several records, as `pack`, and the images of all records as `collate`."""
        batch = pack(rows, self.tokenizer.pad_token_id, length)
        return batch | self._images_of([record for records in rows for record in records])

    # ---- generation

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        images: Any = None,
        **kwargs: Any,
    ) -> Any:
        """One conversation, or a list of them, as left-padded model inputs, or with `tokenize=False` as text.

        Args:
            chat_template: must stay None; the template is fixed (see `rendering` and `chat_format`).
            return_dict: False returns only the ids.
            images: of parts `{"type": "image"}` without an image, in order of appearance: an image or a list;
                for several conversations a list per conversation, or one list of all.

        Returns:
            A BatchFeature with input_ids, attention_mask and pixel_values or cached codes.

        Raises:
            UserError: a malformed conversation, an image that cannot be read, images and parts that do not
                fit, or a `chat_template`.
        """
        if chat_template is not None:
            raise UserError("DualToken's conversation template is fixed; leave chat_template out")
        conversations = [conversation] if _is_single(conversation) else list(conversation)
        if images is not None:
            given = distribute(images, [placeholders(messages) for messages in conversations])
            conversations = [filled(*pair) for pair in zip(conversations, given, strict=True)]
        elif not tokenize:
            conversations = [filled(messages, repeat(NoImage())) for messages in conversations]
        rendered = [render(messages, add_generation_prompt, self.chat_format) for messages in conversations]
        if continue_final_message:
            rendered = [continue_last_message(segments, self.chat_format) for segments in rendered]
        if not tokenize:
            texts = [segments_text(segments) for segments in rendered]
            return texts[0] if _is_single(conversation) else texts
        batch = self._batch(rendered, return_tensors, **kwargs)
        return batch if return_dict else batch["input_ids"]

    def __call__(
        self, text: Any = None, images: Any = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Texts and images as left-padded inputs of the model, for it to answer.

        A text rendered by `apply_chat_template(..., tokenize=False)` is kept, with `images` in its slots. A
        plain text becomes one user turn, with images before it (or at its `<|image|>`). Messages are
        accepted as well.

        Args:
            images: for one text an image or a list; for several texts an image or a list of images per text,
                or one list of all.

        Raises:
            UserError: an image cannot be read, or the numbers of images and slots differ.
        """
        if isinstance(images, str) and not isinstance(text, str | list | tuple):
            text, images = images, text  # processor(image, "question")
        if isinstance(text, list | tuple) and text and not isinstance(text[0], str):
            options = {"return_tensors": return_tensors, "images": images, **kwargs}
            return self.apply_chat_template(text, add_generation_prompt=True, **options)
        texts = list(text) if isinstance(text, list | tuple) else [text]
        for one in texts:
            if not isinstance(one, str | None):
                raise UserError(f"text is {shown(one)}; give a string or a list of strings, and images=")
        never_first = {self.tokenizer.unk_token, self.tokenizer.pad_token, *VISUAL_TOKENS}
        starts = [token for token in special_strings(self.tokenizer) if token not in never_first]
        segments = text_segments(texts, images, self.num_positions, self.chat_format, starts)
        return self._batch(segments, return_tensors, **kwargs)

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Outputs of `generate` as strings, PIL images or content parts.

        Ids (B, L) become strings; in image mode decoded pixels (B, 3, S, S) become PIL images; an
        `InterleavedOutput` becomes the answer's content parts, text and images in turn, without the prompt.
        """
        if isinstance(generated_outputs, InterleavedOutput):
            return self._answer_parts(generated_outputs, skip_special_tokens)
        if generation_mode in (None, "text"):
            return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)
        if generation_mode == "image":
            return self.image_processor.to_images(generated_outputs)
        raise UserError(
            f"generation_mode is {generation_mode!r}; allowed: text, image, interleaved (for its output)"
        )

    # ---- parts

    def _batch(
        self, rendered: Sequence[Sequence[Segment]], return_tensors: str | None, **kwargs: Any
    ) -> BatchFeature:
        """Model inputs of rendered conversations.

        Options of transformers' callers in `kwargs` are followed, or refused where ignoring them would give
        wrong inputs.
        """
        options = {**kwargs, **(kwargs.get("processor_kwargs") or {})}
        for name in ("tools", "documents", "videos", "audio"):
            if options.get(name):
                raise UserError(f"{name} are not supported: only text and images are; leave {name} out")
        if return_tensors not in (None, "pt", "np"):
            raise UserError(f"return_tensors is {shown(return_tensors)}; allowed: 'pt', 'np' or None")
        if options.get("padding") == "max_length":
            raise UserError("padding is 'max_length'; conversations are padded to the longest, with True")
        max_length = options.get("max_length") if options.get("truncation") else None
        records = [self.encode_segments(segments) for segments in rendered]
        longest = max(map(len, records), default=0)
        if max_length is not None and longest > max_length:
            raise UserError(
                f"a conversation has {longest} tokens, and max_length is {max_length}: it cannot be "
                "truncated, as an image would lose its codes; make it shorter"
            )
        batch = self.collate(records, options.get("padding_side") or "left", with_labels=False)
        convert = {"pt": lambda value: value, "np": Tensor.numpy, None: Tensor.tolist}[return_tensors]
        return BatchFeature({key: convert(value) for key, value in batch.items()})

    def _answer_parts(self, output: InterleavedOutput, skip_special_tokens: bool) -> list[dict[str, Any]]:
        """The content parts of an interleaved answer."""
        if output.images is None and output.pixel_codes.shape[0]:
            raise UserError("the answer has codes of images but no pixels: the model has no visual tokenizer")
        images = iter([] if output.images is None else self.image_processor.to_images(output.images))
        slot, new = self.special_ids[IMAGE], output.sequences[0, output.prompt_length :].tolist()
        parts: list[dict[str, Any]] = []
        for is_image, run in groupby(new, lambda one: one == slot):
            if is_image:
                count = len(list(run)) // self.num_positions
                parts += [{"type": "image", "image": next(images)} for _ in range(count)]
            elif text := self.tokenizer.decode(list(run), skip_special_tokens=skip_special_tokens):
                parts.append({"type": "text", "text": text})
        return parts

    def _image(self, part: Mapping[str, Any]) -> Image.Image | CachedCodes:
        if not has_cached_codes(part):
            return load_image(part["image"], self.image_processor.max_pixels)
        return CachedCodes(*(self._codes(name, part[name]) for name in ("pixel_codes", "semantic_codes")))

    def _codes(self, name: str, codes: Any) -> NDArray[Any]:
        """Codes (H, W, D) or (P, D) as (P, D)."""
        array = np.asarray(codes)
        if array.ndim not in (2, 3) or array.dtype.kind not in "iu":
            raise UserError(
                f"{name} must be integers of shape (H, W, D) or (P, D), not {array.dtype} {array.shape}"
            )
        array = array.reshape(-1, array.shape[-1])
        if array.shape[0] != self.num_positions:
            raise UserError(
                f"{name} has {array.shape[0]} positions, the model {self.num_positions}; cache the "
                "codes with the model's visual tokenizer"
            )
        return array

    def _images_of(self, records: Iterable[EncodedRecord]) -> dict[str, Tensor]:
        return collate_images([image for one in records for image in one.images], self.image_processor)


def _is_single(conversation: Sequence[Any]) -> bool:
    """Whether this is one conversation (a list of messages) and not a list of conversations."""
    return not conversation or isinstance(conversation[0], Mapping)
