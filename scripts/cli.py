"""The command line: `dualtoken COMMAND …`, the same as `python -m dualtoken.scripts.MODULE …`.

A command is a module beside this one with a docstring (its help: what it does, then "Example:"), a function
`add_arguments(parser)` and a function `run(args) -> int`. Only the chosen command's module is imported, so
`dualtoken --help` does not wait for torch.

Exit status: 0; 2 for a user's mistake, told in one line on stderr; 130 when interrupted; 143 for a training
run that saved on SIGTERM; 1 with a traceback for anything else.
"""

import argparse
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from .. import __version__


@dataclass(frozen=True)
class Command:
    """Where a command lives (a module of this package) and what it does in a few words."""

    module: str
    summary: str


COMMANDS = {
    "quickstart": Command("quickstart", "the small model answers a question and draws, without any download"),
    "chat": Command("chat", "talk with a model about images, in turns or one question"),
    "sample": Command("sample_t2i", "draw images for prompts"),
    "reconstruct": Command("reconstruct", "an image before and after its pixel codes, with the PSNR"),
    "prepare": Command("prepare", "turn data sets into shards of conversations"),
    "tokenize": Command("tokenize", "replace the images of shards by their codes"),
    "train": Command("train", "train a tokenizer or a model from a recipe"),
    "curves": Command("curves", "draw the losses of runs, with a healthy one behind them"),
    "eval": Command("evaluate", "benchmarks: predict, score, report"),
    "ablate": Command("ablate", "variants of a recipe with several seeds, and a table of them"),
    "layers": Command("layers", "where to tap a new backbone, with a picture of its layers"),
    "bench": Command("bench", "speed and memory against plain references, on this machine"),
    "convert": Command("convert", "make a model folder of a training or a released checkpoint"),
}

# The extra that brings an optional package, by the name it is imported under.
EXTRA_OF = {
    "bitsandbytes": "gpu",
    "datasets": "train",
    "deepspeed": "train",
    "flash_attn": "gpu",
    "liger_kernel": "gpu",
    "lpips": "train",
    "matplotlib": "eval",
    "open_clip": "train",
    "peft": "train",
    "skimage": "eval",
    "tensorboard": "train",
    "torchdata": "train",
    "torchmetrics": "eval",
}


class CommandLineError(Exception):
    """The command line itself is wrong: an unknown option, a missing value."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other mistake's."""

    def error(self, message: str) -> NoReturn:
        raise CommandLineError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(overview(), file=sys.stderr)
        return 2
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"dualtoken {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"dualtoken: error: {unknown_name('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    return run_command(name, rest)


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run a command of the table; see `run_module`."""
    return run_module(COMMANDS[name].module, f"dualtoken {name}", arguments)


def run_module(name: str, prog: str, arguments: Sequence[str]) -> int:
    """Import a module of this package, parse its arguments, run it; what it raises becomes an exit status."""
    try:
        module = importlib.import_module(f".{name}", __package__)
        args = command_parser(module, prog).parse_args(arguments)
        return int(module.run(args) or 0)
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away; without this Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            traceback.print_exc()
            return 1
        print(f"{prog}: error: {' '.join(mistake.split())}", file=sys.stderr)
        return 2


def command_parser(module: ModuleType, prog: str) -> argparse.ArgumentParser:
    """The parser of a command's module; the part from "Example" on stands below the options."""
    description, found, example = (module.__doc__ or "").partition("\nExample")
    parser = CommandParser(
        prog=prog,
        description=description.strip(),
        epilog=(found + example).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def users_mistake(error: Exception) -> str | None:
    """The line that tells a user what to change, or None where the error is the program's own."""
    if isinstance(error, CommandLineError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package in EXTRA_OF:
            extra = EXTRA_OF[package]
            return f"the package {package} is needed and not installed: pip install 'dualtoken[{extra}]'"
        return None
    if "operator torchvision::nms does not exist" in str(error):
        return (
            "torch and torchvision are builds that do not fit together (one for CPU, one for CUDA):"
            " reinstall both from one source, or remove torchvision, which the core does not need"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.filename or error.strerror}; make room and start again"
    from ..common.errors import UserError  # here, because it imports torch

    return str(error) if isinstance(error, UserError) else None


def overview() -> str:
    """The help of `dualtoken` itself."""
    lines = [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dualtoken COMMAND …",
            "",
            "Images as pixel and semantic tokens, understood and drawn by one language model.",
            "",
            "Commands:",
            *lines,
            "",
            "dualtoken COMMAND --help tells a command's options, dualtoken --version the version.",
            "",
            "Example:",
            "  dualtoken quickstart",
        ]
    )


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that there is not, with the nearest one that there is."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}({what}s: {', '.join(names)})"


if __name__ == "__main__":
    sys.exit(main())
