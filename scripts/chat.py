"""Talk with a model: ask about images, have it draw, in turns. With --question: one answer, nothing else.

In a conversation: /image PATH adds an image to the next question, /draw PROMPT draws one, /reset forgets
everything, /help, /quit (or Ctrl-D). Drawings are saved in the folder of --output and stay part of the
conversation. With --question the answer alone goes to the standard output.

Example:
  dualtoken chat
  dualtoken chat --image scene.png --question "What shape is the purple object?"
  dualtoken chat --image before.png --image after.png --question "What has changed?"
"""

import argparse
import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..common.errors import UserError
from .options import (
    add_device_argument,
    add_model_argument,
    add_quantization_argument,
    integer,
    load_pipeline,
    resolve_device,
    text_argument,
)

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

HELP = """\
  /image PATH   add an image to the next question (several are possible)
  /draw PROMPT  draw an image
  /reset        forget the conversation
  /help         this list
  /quit         leave (as does Ctrl-D)
Anything else is said to the model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", metavar="FILE", action="append", default=[], help="an image; may be repeated"
    )
    parser.add_argument("--question", help="ask this, print the answer, and leave")
    parser.add_argument(
        "--max-new-tokens", type=integer(1), default=128, help="longest answer (default: 128)"
    )
    parser.add_argument(
        "--seed",
        type=integer(0),
        default=0,
        help="of the first drawing; each one takes the next (default: 0)",
    )
    parser.add_argument(
        "--output", metavar="DIR", default="drawings", help="folder of drawings (default: ./drawings)"
    )
    add_model_argument(parser)
    add_device_argument(parser)
    add_quantization_argument(parser)


def run(args: argparse.Namespace) -> int:
    from ..tokenizer.processing import load_image

    question = None if args.question is None else text_argument(args.question, "--question")
    images = [load_image(file) for file in args.image]
    pipeline = load_pipeline(args.model, resolve_device(args.device), args.quantization)
    if question is not None:
        print(pipeline.answer(images or None, question, max_new_tokens=args.max_new_tokens))
        return 0
    session = ChatSession(pipeline, Path(args.output), args.max_new_tokens, args.seed)
    session.attached.extend(images)
    print(f"model {args.model} on {pipeline.device}; /help lists the commands")
    converse(session)
    return 0


def converse(session: "ChatSession") -> None:
    """Hand lines to the session until /quit or the end of the input; a mistake costs only its line."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (gives input() line editing and history)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        try:
            session.handle(line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


class ChatSession:
    """One conversation: its messages, the images waiting for the next question, and where drawings go."""

    def __init__(
        self, pipeline: "DualTokenPipeline", folder: Path, max_new_tokens: int = 128, seed: int = 0
    ) -> None:
        self.pipeline = pipeline
        self.folder = folder
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.messages: list[dict[str, Any]] = []
        self.attached: list[Image.Image] = []

    def handle(self, line: str) -> None:
        """Do what one line says. UserError leaves the conversation as it was."""
        name, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self.ask(line)
        elif name == "/image":
            self.attach(rest)
        elif name == "/draw":
            self.draw(rest)
        elif name == "/reset":
            self.messages, self.attached = [], []
            print("(forgotten)")
        elif name == "/help":
            print(HELP)
        else:
            raise UserError(f"unknown command {name}; /help lists the commands")

    def ask(self, text: str) -> None:
        """A question with the attached images; the answer is printed as it comes."""
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in self.attached]
        question = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
        parts = self.pipeline.chat(
            [*self.messages, question], stream=True, max_new_tokens=self.max_new_tokens, seed=self.seed
        )
        answer = self.show(parts)
        self.messages += [question, {"role": "assistant", "content": answer}]
        self.attached = []

    def attach(self, path: str) -> None:
        from ..tokenizer.processing import load_image

        path = path.strip().strip("'\"")
        if not path:
            raise UserError("/image needs the path of a file")
        image = load_image(path)
        self.attached.append(image)
        print(f"(image {len(self.attached)} of the next question: {path}, {image.width} x {image.height})")

    def draw(self, prompt: str) -> None:
        """Draw from the prompt alone, as the model was trained to, and keep both in the conversation."""
        prompt = text_argument(prompt, "/draw")
        (image,) = self.pipeline.generate_images(prompt, num_images=1, seed=self.seed)
        print(f"(drawn: {self.save(image)})")
        self.messages += [
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
            {"role": "assistant", "content": [{"type": "image", "image": image}]},
        ]

    def show(self, parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Print parts as they arrive, save images, and return them with neighbouring texts joined."""
        answer: list[dict[str, Any]] = []
        for part in parts:
            if part["type"] == "image":
                print(f"\n(drawn: {self.save(part['image'])})", flush=True)
                answer.append(part)
                continue
            print(part["text"], end="", flush=True)
            if answer and answer[-1]["type"] == "text":
                answer[-1]["text"] += part["text"]
            else:
                answer.append(dict(part))
        print()
        return answer or [{"type": "text", "text": ""}]

    def save(self, image: Image.Image) -> Path:
        """Write a drawing under the next free number; each drawing of a session takes a seed of its own."""
        from ..common.files import atomic_file

        number = 0
        while (path := self.folder / f"drawing_{number:03}.png").exists():
            number += 1
        with atomic_file(path) as temporary:
            image.save(temporary)
        self.seed += 1
        return path


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["chat", *sys.argv[1:]]))
