"""Chat with a model about images, and have it generate some. With --question: one answer, nothing else.

In a conversation: /image PATH adds an image, words after the path are asked about it; /draw PROMPT generates
one; /seed N, /save FOLDER, /reset, /help, /quit (or Ctrl-D). Ctrl-C stops an answer or an image. Generated
images are saved in the folder of --output and stay part of the conversation. A line that only greets is
answered in words. With --question only the answer goes to the standard output.

Example:
  dualtoken chat
  dualtoken chat --image scene.png --question "What shape is the purple object?"
  dualtoken chat --image before.png --image after.png --question "What has changed?"
"""

import argparse
import contextlib
import sys
from pathlib import Path

from ..common.errors import UserError, one_line
from ..common.json_files import is_encodable
from ..common.output_files import check_files
from . import cli, options
from .chat_session import ChatSession
from .mistakes import users_mistake

IMAGES = Path("drawings")
LONGEST_LINE = 1_000_000  # characters
#: A line this many times as long counts as endless.
MOST_PIECES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--image",
        type=options.path,
        metavar="FILE",
        action="append",
        default=[],
        help="an image; may be repeated",
    )
    add("--question", type=options.words, help="ask this, print the answer, and exit")
    add("--max-new-tokens", type=options.max_new_tokens, default=128, help="longest answer (default: 128)")
    add(
        "--seed",
        type=options.seed,
        default=0,
        help="of the first generated image; each one takes the next (default: 0)",
    )
    add(
        "--output", type=options.path, metavar="DIR", help=f"folder of generated images (default: ./{IMAGES})"
    )
    options.add_shared(parser, "--model", "--device", "--quantization")


def run(args: argparse.Namespace) -> int:
    from ..common.images.reading import load_image

    images = [load_image(file) for file in args.image]
    if args.output is not None:
        check_files(args.output, [])
    pipeline = options.load_pipeline(args.model, options.resolve_device(args.device), args.quantization)
    if args.question is not None:
        print(pipeline.answer(images or None, args.question, max_new_tokens=args.max_new_tokens))
        return 0
    session = ChatSession(pipeline, args.output or IMAGES, args.max_new_tokens, args.seed)
    session.attached.extend(images)
    print(f"model {args.model} on {pipeline.device}; /help lists the commands")
    converse(session)
    return 0


def converse(session: ChatSession) -> None:
    """Pass lines to the session until /quit, the end of the input, or Ctrl-C twice."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (gives input() line editing and history)
    interrupted = False
    while True:
        try:
            line = read_line().strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            interrupted = True
            print("(Ctrl-C again, or /quit, exits)")
            continue
        interrupted = False
        if line == "/quit":
            return
        take_turn(session, line)


def take_turn(session: ChatSession, line: str) -> None:
    """Handle one line; a mistake in it is printed, and Ctrl-C stops it."""
    try:
        if not is_encodable(line):
            raise UserError("that line is not UTF-8 text, and was left out")
        if len(line) > LONGEST_LINE:
            raise UserError(f"that line has more than {LONGEST_LINE} characters, and was left out")
        session.handle(line)
    except KeyboardInterrupt:
        print("\n(stopped)")
    except BrokenPipeError:
        raise
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        print(one_line(f"error: {mistake}"), file=sys.stderr)


def read_line() -> str:
    """The next line, cut a little beyond LONGEST_LINE characters.

    EOFError at the end of the input, UserError for a line that does not end.
    """
    if sys.stdin.isatty():
        return input("> ")
    print("> ", end="", flush=True)
    line = sys.stdin.readline(LONGEST_LINE + 1)
    if not line:
        raise EOFError
    for _ in range(MOST_PIECES):
        if len(line) <= LONGEST_LINE or line.endswith("\n"):
            return line
        piece = sys.stdin.readline(LONGEST_LINE + 1)
        line += piece[-1:]
        if not piece:
            break
    raise UserError(f"a line of more than {LONGEST_LINE} characters that does not end; give shorter ones")


if __name__ == "__main__":
    cli.run_main(__spec__)
