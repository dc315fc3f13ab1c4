"""The options that several commands share: which model, which device, and checks of single values."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError, shown
from ..common.paths import user_path
from ..common.values import LARGEST_SEED

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

DEVICES = ("auto", "cpu", "cuda", "mps")
QUANTIZATIONS = ("none", "8bit", "4bit")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """`--model`: the small model of the package, a folder, or a hub id."""
    parser.add_argument(
        "--model",
        default="nano",
        help="nano (comes with the package), a model's folder, or a hub id (default: nano)",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device auto|cpu|cuda|mps`."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto takes cuda, then mps, then cpu (default: auto)",
    )


def add_quantization_argument(parser: argparse.ArgumentParser) -> None:
    """`--quantization none|8bit|4bit`."""
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="none",
        help="load the language model in fewer bits; needs cuda and the extra gpu (default: none)",
    )


def resolve_device(name: str) -> str:
    """The device meant by `--device`: "cpu", "cuda" or "mps". UserError for one that is not there."""
    from ..mllm.pipeline import resolve_device as resolve

    return str(resolve(name))


def load_pipeline(model: str, device: str, quantization: str = "none") -> "DualTokenPipeline":
    """The model named by `--model`, on a resolved device. UserError if it cannot be loaded like that."""
    import transformers

    from ..mllm import DualTokenPipeline

    # Its remarks are about choices that are not the user's; its bar is for weights that take a while.
    transformers.logging.set_verbosity_error()
    if model == "nano" or not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    try:
        return DualTokenPipeline.from_pretrained(model, device=device, quantization=quantization)
    except OSError as error:  # transformers' answer to a hub id without a network, and to missing files
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--model {model} cannot be loaded: {reason}") from error


def path(text: str) -> Path:
    """An argparse type: a path, with a leading ~ expanded."""
    try:
        return user_path(text)
    except UserError as error:  # which argparse would take for a ValueError without words
        raise argparse.ArgumentTypeError(str(error)) from None


def integer(minimum: int, maximum: int = LARGEST_SEED) -> Callable[[str], int]:
    """An argparse type: a whole number from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{shown(value)} is too small, the least is {minimum}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"{shown(value)} is too large, the most is {maximum}")
        return value

    return parse


def number(minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number from `minimum` to `maximum`, both allowed."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
        if not minimum <= value <= maximum:  # also refuses nan
            bound = f"{minimum:g} or more" if maximum == float("inf") else f"from {minimum:g} to {maximum:g}"
            raise argparse.ArgumentTypeError(f"{shown(text)} is out of range, allowed is {bound}")
        return value

    return parse


def text_argument(value: str, option: str) -> str:
    """The text of an option without surrounding white space. UserError if nothing is left."""
    stripped = value.strip()
    if not stripped:
        raise UserError(f"{option} is empty; say in words what is wanted")
    return stripped


def png_path(value: str, option: str) -> Path:
    """A path to write a PNG to. UserError for another suffix or an existing folder."""
    path = user_path(value)
    if path.suffix.lower() != ".png":
        raise UserError(f"{option} {value}: pictures are written as PNG, so the name must end in .png")
    if path.is_dir():
        raise UserError(f"{option} {value} is a folder; name a file")
    return path
