"""Arguments of the pipeline: accepted where their meaning is clear, else refused in one line."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from ..common.errors import UserError, shown
from ..common.images.reading import ImageSource
from ..common.values import flag, refuse_unknown
from .conversation.messages import text_problem
from .generation.image_generation import TEXT_ONLY_ARGUMENTS
from .generation.sampling import ImageSamplingConfig

#: Images of one prompt in one call, which are all kept until the last one is generated.
MOST_IMAGES = 1_000_000
#: Options of `chat` in addition to those of image sampling and of transformers' generation.
_CHAT = ("compile", "generator", "max_images", "progress", "seed", "stopping_criteria", "logits_processor")
#: Options of `generate_images` and its like in addition to those of image sampling.
_IMAGES = ("batch_size", "compile", "do_sample", "generator", "num_images", "progress", "seed")


def given_text(text: Any, name: str, hint: str = "") -> str:
    """A string that is not empty; bytes are UTF-8. UserError, with `hint` at its end, for any other value."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{name} is bytes that are not UTF-8; give a string") from None
    if not isinstance(text, str):
        raise UserError(f"{name} is {shown(text)}; give a string{hint}")
    if not text.strip():
        raise UserError(f"{name} is empty; give at least one word")
    if problem := text_problem(text):
        raise UserError(f"{name} cannot be used: {problem}")
    return text


def given_prompts(prompts: Any) -> list[str]:
    """Prompts of images. UserError for a single string, and any other value that is not a list of strings."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise UserError(
            f"prompts is {shown(prompts)}; give a list of strings, or call generate_images for one"
        )
    return [given_text(prompt, f"prompt {number}") for number, prompt in enumerate(prompts, start=1)]


def question(images: ImageSource | Sequence[ImageSource] | None, text: Any) -> list[dict[str, Any]]:
    """A user's turn: images, then the text. Swapped arguments are put in order where that is certain."""
    if isinstance(images, str | bytes) and not isinstance(text, str | bytes | list | tuple | None):
        images, text = text, images
    if isinstance(images, str) and isinstance(text, str) and _is_file(text) and not _is_file(images):
        raise UserError(
            f"the image comes first, then the question: ({shown(text)}, {shown(images)}), not the other way"
        )
    text = given_text(text, "the prompt" if images is None else "the question")
    given = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in given]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def questions(items: Any) -> list[list[dict[str, Any]]]:
    """The turns of many (image or images, question) pairs."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Sequence):
        raise UserError(f"items is {shown(items)}; give a list of pairs (image, question)")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise UserError(f"item {number} is {shown(item)}; give a pair (image, question)")
    return [question(*item) for item in items]


def conversation(messages: Any) -> Any:
    """Messages; a string is one user's turn, a single message a conversation of one."""
    if isinstance(messages, str | bytes):
        return question(None, messages)
    return [messages] if isinstance(messages, Mapping) else messages


def check_chat_options(options: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown option of `chat`, or a `do_sample` that is not a flag."""
    generation = GenerationConfig().to_dict()
    refuse_unknown(options, {"stream", *_CHAT, *ImageSamplingConfig.names(), *generation}, "option of chat")
    if options.get("do_sample") is not None:
        flag(options["do_sample"], "do_sample")


def check_image_options(options: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown option of image generation; the suggestion may be any argument."""
    known = {*_IMAGES, *TEXT_ONLY_ARGUMENTS, *ImageSamplingConfig.names()}
    refuse_unknown(options, known, "option of image generation")


def _is_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):
        return False
