"""Options and argparse types that several commands share, and the model and device that they name."""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import arguments
from ..common.arguments import as_argument
from ..common.errors import UserError, first_line, shown
from ..common.json_files import is_encodable
from ..common.outputs import examining
from ..common.paths import user_path

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

DEVICES = ("auto", "cpu", "cuda", "mps")
#: Characters of a prompt or question; no model's context holds more.
LONGEST_TEXT = 1_000_000


#: Argparse types; a value is allowed by all commands or by none.
path, integer, number = arguments.path, arguments.integer, arguments.number
seed, share = arguments.seed, arguments.share
num_images = integer(1, 10_000)
batch_size = integer(1, 65_536)
batch_invariant = integer(0, 1024)
max_new_tokens = integer(1, 1_000_000)
guidance = number(0, 100)
temperature = number(0, 100)
top_k = integer(0, 10_000_000)
top_p = number(0, 1, above=0)


def model_name(text: str) -> str:
    """An argparse type: what `--model` may be, whether it exists or not."""
    if not text.strip() or "\0" in text or len(text) > 4096:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a model: give nano, a folder, or a hub id")
    return text


#: Options with one meaning in all commands that have them: what argparse's `add_argument` takes.
_SHARED: dict[str, dict[str, Any]] = {
    "--model": {
        "type": model_name,
        "default": "nano",
        "help": "nano (comes with the package), a model's folder, or a hub id (default: nano)",
    },
    "--device": {
        "choices": DEVICES,
        "default": "auto",
        "help": "auto takes cuda, then mps, then cpu (default: auto)",
    },
    "--quantization": {
        "choices": ("none", "8bit", "4bit"),
        "default": "none",
        "help": "load the language model in fewer bits; needs cuda and the extra gpu (default: none)",
    },
    "--no-progress": {"action": "store_true", "help": "no progress bar"},
}


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options of `_SHARED`, by name."""
    for name in names:
        parser.add_argument(name, **_SHARED[name])


def resolve_device(name: str) -> str:
    """The device of `--device`: "cpu", "cuda" or "mps". UserError for one that is not available."""
    from ..common.devices import resolve_device as resolve

    return str(resolve(name))


def load_pipeline(model: str, device: str, quantization: str = "none") -> "DualTokenPipeline":
    """The model of `--model` on a resolved device. UserError if it cannot be loaded."""
    from ..mllm import DualTokenPipeline

    quiet_transformers(progress=model != "nano")
    try:
        return DualTokenPipeline.from_pretrained(model, device=device, quantization=quantization)
    except OSError as error:  # transformers' answer to a hub id without a network, and to missing files
        raise UserError(f"--model {model} cannot be loaded: {first_line(error)}") from error


def quiet_transformers(progress: bool = True) -> None:
    """Silence warnings of transformers, which are about choices that are not the user's, and progress bars.

    progress: keep the bars on a terminal.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    if not progress or not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()


def counted(number: int, noun: str) -> str:
    """The number and the noun, such as "1 shard" and "2 shards"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def words(text: str) -> str:
    """An argparse type: text that is not blank, without the white space around it."""
    return as_argument(lambda: text_argument(text, "the text"))


def text_argument(value: str, option: str) -> str:
    """The text of an option without surrounding white space. UserError if nothing is left."""
    stripped = _read_as_utf8(value).strip()
    if not stripped:
        raise UserError(f"{option} is empty; give at least one word")
    if not is_encodable(stripped):
        raise UserError(f"{option} is {shown(stripped)}, which is not UTF-8 text")
    if len(stripped) > LONGEST_TEXT:
        raise UserError(f"{option} has {len(stripped)} characters; at most {LONGEST_TEXT} are taken")
    return stripped


def _read_as_utf8(value: str) -> str:
    """Decode an argument whose bytes Python kept undecoded because the locale is not UTF-8."""
    with suppress(UnicodeError):
        return value if is_encodable(value) else os.fsencode(value).decode("utf-8")
    return value


def png_path(value: str | Path, option: str) -> Path:
    """`file_path` of a PNG."""
    return file_path(value, option, ".png", "images are written as PNG")


def file_path(value: str | Path, option: str, suffix: str, why: str) -> Path:
    """A path to write a file to, with this suffix. UserError for another one or an existing folder."""
    path = user_path(value)
    if path.suffix.lower() != suffix:
        raise UserError(f"{option} {value}: {why}, so the name must end in {suffix}")
    with examining(path, option):
        if path.is_dir():
            raise UserError(f"{option} {value} is a folder; name a file")
    return path
