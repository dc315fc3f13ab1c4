"""An answer part by part, text and images, while a thread generates it."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

from .progress import shown_progress

Part = dict[str, Any]
Decoder = Callable[[torch.Tensor], list[Image.Image]]


def stream_parts(
    generate: Callable[..., object],
    text_tokenizer: Any,
    decode: Decoder,
    progress: Any = None,
    **options: Any,
) -> Iterator[Part]:
    """Content parts of one interleaved answer as they are generated; the thread's errors are raised here.

    Closing the iterator stops the model at its next token or position, and waits for that.

    Args:
        generate: the model's `generate`, called with `options`.
        decode: turns the tokens (1, P x 2D) of an image into a list of this image.
        progress: of each image, as in `generate`.
    """
    parts: queue.SimpleQueue[Part | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()
    streamer = PartStreamer(text_tokenizer, decode, parts)

    def stopped(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return torch.full(ids.shape[:1], closed.is_set(), dtype=torch.bool, device=ids.device)

    def work() -> None:
        try:
            with shown_progress(progress) as report:

                def may_continue(done: int, total: int) -> bool:
                    return (report is None or report(done, total) is not False) and not closed.is_set()

                generate(
                    generation_mode="interleaved",
                    streamer=streamer,
                    stopping_criteria=[stopped],
                    progress=may_continue,
                    **options,
                )
            parts.put(None)
        except BaseException as error:
            parts.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (part := parts.get()) is not None:
            if isinstance(part, BaseException):
                raise part
            yield part
    finally:
        # An error refers to this frame: if the frame kept the error, its traceback's tensors would stay.
        part = None
        closed.set()
        thread.join()


class PartStreamer(TextStreamer):
    """Puts finished text and images into a queue, as content parts."""

    def __init__(self, text_tokenizer: Any, decode: Decoder, parts: "queue.SimpleQueue[Any]") -> None:
        super().__init__(text_tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.decode_images, self.parts = decode, parts

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.parts.put({"type": "text", "text": text})

    def put_image(self, tokens: torch.Tensor) -> None:
        """Called by interleaved generation with the tokens (1, P x 2D) of a finished image."""
        self.parts.put({"type": "image", "image": self.decode_images(tokens)[0]})
