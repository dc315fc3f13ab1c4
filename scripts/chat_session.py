"""One conversation of `dualtoken chat`: what each line does, and its history."""

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..common.errors import UserError, shown
from ..common.files import atomic_file, atomic_folder
from ..common.outputs import examining, require_writable
from ..common.paths import user_path
from ..common.values import LARGEST_SEED, seed_number
from . import options

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

HELP = """\
  /image PATH   add an image to the next question; words after the path are the question
  /draw PROMPT  generate an image
  /seed N       seed of the next image
  /save FOLDER  write the conversation and its images
  /reset        forget the conversation
  /help         this list
  /quit         exit (as does Ctrl-D)
Anything else goes to the model, with the images that /image PATH in it names. A path with spaces may be in
quotes. Ctrl-C stops an answer or an image; the text until then is kept."""
COMMANDS = ("/image", "/draw", "/seed", "/save", "/reset", "/help", "/quit")
DIALOGUE = "dialogue.json"
#: A line of only these words is answered in words, also by a model that answers prompts with images.
_GREETING = (
    "hello hi hey hallo howdy greetings welcome good morning afternoon evening night day there you how are "
    "thanks thank bye goodbye again everyone all"
)
GREETING = frozenset(_GREETING.split())
MOST_WORDS_OF_A_PATH = 64


class ChatSession:
    """A conversation: its messages, images waiting for the next question, and the folder of new images."""

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
        """Handle one line; an error, or Ctrl-C before any answer, leaves the conversation as it was."""
        name, _, rest = line.partition(" ")
        if not line:
            return
        if name == "/image" or not line.startswith("/"):
            self.say(line)
        elif name == "/draw":
            self.draw(rest)
        elif name == "/seed":
            self.set_seed(rest.strip())
        elif name == "/save":
            self.save_dialogue(rest.strip())
        elif name == "/reset":
            self.messages, self.attached = [], []
            print("(forgotten)")
        elif name == "/help":
            print(HELP)
        else:
            raise UserError(f"unknown command {shown(name)[1:-1]}; there are {', '.join(COMMANDS)}")

    def say(self, line: str) -> None:
        """Attach the images that the line names, and ask its words, if any."""
        from ..common.images.reading import load_image

        text, paths = words_and_images(line)
        images = [load_image(path) for path in paths]
        if text:
            options.text_argument(text, "the question")
        for path, image in zip(paths, images, strict=True):
            self.attached.append(image)
            number, size = len(self.attached), f"{image.width} x {image.height}"
            print(f"(image {number} of the next question: {path}, {size})")
        if text:
            self.ask(text)

    def ask(self, text: str) -> None:
        """Ask about the attached images; the answer is printed as it is generated."""
        from ..mllm.conversation.messages import add_part

        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in self.attached]
        question = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
        options: dict[str, Any] = {"max_images": 0} if is_greeting(text) else {}
        answer: list[dict[str, Any]] = []
        parts: Any = self.pipeline.chat(
            [*self.messages, question],
            stream=True,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            progress=sys.stderr.isatty(),
            **options,
        )
        with closing(parts):
            try:
                for part in self.show(parts):
                    add_part(answer, part)
            except KeyboardInterrupt:
                print("\n(stopped)")
                if not answer:
                    return
        answered = {"role": "assistant", "content": answer or [{"type": "text", "text": ""}]}
        self.messages += [question, answered]
        self.attached = []

    def show(self, parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the parts, printed as they arrive; images are saved."""
        for part in parts:
            if part["type"] == "image":
                print(f"\n(image: {self.save(part['image'])})", flush=True)
            else:
                print(part["text"], end="", flush=True)
            yield part
        print()

    def draw(self, prompt: str) -> None:
        """Generate an image from the prompt alone, as in training; both stay in the conversation."""
        prompt = options.text_argument(prompt, "/draw")
        bar = sys.stderr.isatty()
        (image,) = self.pipeline.generate_images(prompt, num_images=1, seed=self.seed, progress=bar)
        print(f"(image: {self.save(image)})")
        self.messages += [
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
            {"role": "assistant", "content": [{"type": "image", "image": image}]},
        ]

    def set_seed(self, text: str) -> None:
        """The seed of the next image; later ones take the numbers after it."""
        try:
            self.seed = seed_number(int(text), "/seed")
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"/seed {shown(text)}: give an integer of 0 or more") from None
        print(f"(seed {self.seed})")

    def save(self, image: Image.Image) -> Path:
        """Write an image under the next free number, and advance the seed."""
        number = 0
        while os.path.lexists(path := self.folder / f"drawing_{number:03}.png"):
            number += 1
        with atomic_file(path) as temporary:
            image.save(temporary)
        self.seed = (self.seed + 1) % (LARGEST_SEED + 1)
        return path

    def save_dialogue(self, text: str) -> None:
        """Write the messages as JSON and their images as PNG into a folder, which must not exist."""
        if not text:
            raise UserError("/save needs the name of a folder")
        folder = user_path(text)
        with examining(folder, "/save"):
            if os.path.lexists(folder):
                raise UserError(f"/save {folder} exists already: give another name")
            require_writable(folder, "/save")
        with atomic_folder(folder) as partial:
            images = 0
            messages = [{**message, "content": list(message["content"])} for message in self.messages]
            for content in (message["content"] for message in messages):
                for index, part in enumerate(content):
                    if part["type"] == "image":
                        name = f"image_{images:03}.png"
                        part["image"].save(partial / name)
                        content[index] = {"type": "image", "image": name}
                        images += 1
            written = json.dumps({"messages": messages}, indent=2, ensure_ascii=False)
            (partial / DIALOGUE).write_text(written + "\n", encoding="utf-8")
        print(f"({len(messages)} turns and {images} images in {folder})")


def is_greeting(text: str) -> bool:
    """Whether a line only greets or thanks, which asks for no image."""
    words = re.findall(r"\w+", text.lower())
    return bool(words) and GREETING.issuperset(words)


def words_and_images(line: str) -> tuple[str, list[str]]:
    """The words of a line, and the paths that `/image PATH` names anywhere in it."""
    first, *pieces = re.split(r"(?:^|\s+)/image(?=\s|$)", line)
    words, paths = [first.strip()], []
    for piece in pieces:
        path, rest = leading_path(piece.strip())
        paths.append(path)
        words.append(rest)
    return " ".join(filter(None, words)), paths


def leading_path(text: str) -> tuple[str, str]:
    """The path at the beginning of `text`, and the rest.

    That is the longest path that exists; otherwise one in quotes, or the first word.
    """
    if not text:
        raise UserError("/image needs the path of a file")
    words = text.split(" ")
    for end in range(min(len(words), MOST_WORDS_OF_A_PATH), 0, -1):
        if _exists(candidate := " ".join(words[:end])):
            return candidate, " ".join(words[end:]).strip()
    source = io.StringIO(text)
    lexer = shlex.shlex(source, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        path = lexer.get_token() or ""
    except ValueError:
        raise UserError(f"/image {shown(text)} has a quote that is not closed") from None
    return path, source.read().strip()


def _exists(path: str) -> bool:
    try:
        return bool(path) and user_path(path).is_file()
    except (UserError, OSError):
        return False
