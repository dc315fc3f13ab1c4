"""The command line: `dualtoken COMMAND …`, the same as `python -m dualtoken.scripts.MODULE …`.

A command is a module of this package with a docstring (its help: what it does, then "Example:"),
`add_arguments(parser)`, which adds its arguments to an argparse parser, and `run(args) -> int`, which returns
the exit status. Only the chosen command's module is imported, so `dualtoken --help` does not wait for torch.

Exit status: 0; 2 for a user's mistake, reported in one line on stderr; 130 when interrupted; 143 for a
training run that saved on SIGTERM; 1 with a traceback for any other error.
"""

import argparse
import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from .. import __version__
from ..common.errors import one_line, shown
from ..common.machine import wait_passively
from .mistakes import CommandLineError, users_mistake
from .streams import flush_or_give_up, make_tolerant


@dataclass(frozen=True)
class Command:
    """Where a command lives (a module of this package) and what it does in a few words."""

    module: str
    summary: str


COMMANDS = {
    "quickstart": Command("quickstart", "the small model answers and generates images, without a download"),
    "chat": Command("chat", "chat with a model about images, in turns or one question"),
    "sample": Command("sample_t2i", "generate images for prompts"),
    "reconstruct": Command("reconstruct", "an image before and after its pixel codes, with the PSNR"),
    "prepare": Command("prepare", "turn data sets into shards of conversations"),
    "tokenize": Command("tokenize", "replace the images of shards by their codes"),
    "train": Command("train", "train a tokenizer or a model from a recipe"),
    "curves": Command("curves", "plot the losses of runs over those of a reference run"),
    "eval": Command("evaluate", "benchmarks: predict, score, report"),
    "ablate": Command("ablate", "variants of a recipe with several seeds, and a table of them"),
    "layers": Command("layers", "which layers of a new backbone to use, with a plot of their similarity"),
    "bench": Command("bench", "speed and memory against plain references, on this machine"),
    "doctor": Command("doctor", "what works on this machine, with a remedy for what does not"),
    "convert": Command("convert", "make a model folder of a training or a released checkpoint"),
}


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like those of any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise CommandLineError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments[0], arguments[1:])
    return guarded("dualtoken", lambda: without_command(arguments))


def without_command(arguments: Sequence[str]) -> int:
    """Print the help or the version; CommandLineError for an unknown command."""
    name = arguments[0] if arguments else None
    if name is None:
        print(overview(), file=sys.stderr)
        return 2
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"dualtoken {__version__}")
        return 0
    raise CommandLineError(unknown_name("command", name, COMMANDS))


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run a command of COMMANDS; see `run_module`."""
    return run_module(COMMANDS[name].module, f"dualtoken {name}", arguments)


def run_module(name: str, prog: str, arguments: Sequence[str]) -> int:
    """Import a module of this package, parse its arguments and run it, guarded."""

    def run() -> int:
        wait_passively()
        module = importlib.import_module(f".{name}", __package__)
        return int(module.run(command_parser(module, prog).parse_args(arguments)) or 0)

    return guarded(prog, run)


def run_main(spec: ModuleSpec | None) -> NoReturn:
    """Run the command of a module that `python -m` runs, by its `__spec__`, and exit with its status."""
    assert spec is not None
    module = spec.name.removeprefix(f"{__package__}.")
    commands = (f"dualtoken {name}" for name, command in COMMANDS.items() if command.module == module)
    sys.exit(run_module(module, next(commands, f"python -m {spec.name}"), sys.argv[1:]))


def guarded(prog: str, run: Callable[[], int]) -> int:
    """The exit status of `run()`, also when it raises.

    A user's mistake, from any library, is reported in one line of at most 300 characters.
    """
    make_tolerant()
    try:
        status = run()
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
        return status
    except SystemExit:  # after --help
        flush_or_give_up()
        raise
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        flush_or_give_up()
        return 1
    except Exception as error:
        flush_or_give_up()
        mistake = users_mistake(error)
        if mistake is None:
            traceback.print_exc()
            return 1
        print(one_line(f"{prog}: error: {mistake}"), file=sys.stderr)
        return 2


def command_parser(module: ModuleType, prog: str) -> argparse.ArgumentParser:
    """The parser of a command's module; the docstring from "Example" on follows the options."""
    description, found, example = (module.__doc__ or "").partition("\nExample")
    parser = CommandParser(
        prog=prog,
        description=description.strip(),
        epilog=(found + example).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def overview() -> str:
    """The help of `dualtoken` itself."""
    commands = "\n".join(f"  {name:<12} {command.summary}" for name, command in COMMANDS.items())
    return f"""\
usage: dualtoken COMMAND …

Images as pixel and semantic tokens, understood and generated by one language model.

Commands:
{commands}

dualtoken COMMAND --help lists a command's options, dualtoken --version prints the version.

Example:
  dualtoken quickstart"""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name, with the nearest known one."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {shown(name)}; {hint}({what}s: {', '.join(names)})"


if __name__ == "__main__":
    sys.exit(main())
