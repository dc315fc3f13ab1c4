"""The command line itself: the table of commands, exit statuses, how errors are reported."""

import importlib
import io
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

from dualtoken import __version__
from dualtoken.common.errors import UserError
from dualtoken.scripts import cli


def fake_command(monkeypatch: pytest.MonkeyPatch, run) -> None:
    """Enter a command `fake` whose run(args) is `run`."""
    module = types.ModuleType("dualtoken.scripts.fake", "Does nothing.\n\nExample:\n  dualtoken fake\n")
    module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=1, help="a size")
    module.run = run
    monkeypatch.setitem(sys.modules, "dualtoken.scripts.fake", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake", "nothing"))


def raising(error: BaseException):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dualtoken {__version__}\n"


def test_without_a_command_the_help_goes_to_stderr(capsys):
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: dualtoken COMMAND" in captured.err


def test_help_does_not_wait_for_torch():
    code = "import sys, dualtoken.scripts.cli as cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_with_an_example(name, capsys):
    module = importlib.import_module(f"dualtoken.scripts.{cli.COMMANDS[name].module}")
    assert callable(module.add_arguments)
    assert callable(module.run)
    with pytest.raises(SystemExit) as stopped:
        cli.command_parser(module, f"dualtoken {name}").parse_args(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "xample" in out
    assert f"dualtoken {name} " in out


def test_unknown_command_is_one_line_with_the_nearest_name(capsys):
    assert cli.main(["smaple"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dualtoken: error: unknown command 'smaple'; did you mean 'sample'?")


def test_unknown_command_without_a_near_name(capsys):
    assert cli.main(["qqqq"]) == 2
    err = capsys.readouterr().err
    assert "did you mean" not in err
    assert "sample" in err


def test_the_status_of_run_is_the_exit_status(monkeypatch):
    seen = []
    fake_command(monkeypatch, lambda args: seen.append(args.size))
    assert cli.main(["fake", "--size", "7"]) == 0
    assert seen == [7]
    fake_command(monkeypatch, lambda args: 1)
    assert cli.main(["fake"]) == 1


@pytest.mark.parametrize("argv", [["fake", "--size", "big"], ["fake", "--sise", "3"], ["fake", "surplus"]])
def test_a_wrong_option_is_one_line(argv, monkeypatch, capsys):
    fake_command(monkeypatch, lambda args: 0)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dualtoken fake: error: ")
    assert captured.err.count("\n") == 1


def test_a_users_mistake_is_one_line_even_if_its_text_has_several(monkeypatch, capsys):
    fake_command(monkeypatch, raising(UserError("size 3 is odd;\n  give an even one")))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "dualtoken fake: error: size 3 is odd; give an even one\n"


def test_a_missing_extra_is_named(monkeypatch, capsys):
    fake_command(
        monkeypatch, raising(ModuleNotFoundError("No module named 'torchmetrics'", name="torchmetrics.image"))
    )
    assert cli.main(["fake"]) == 2
    assert "pip install '.[eval]' in" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("broken"), ModuleNotFoundError("no x", name="x")])
def test_other_errors_show_their_traceback(error, monkeypatch, capsys):
    fake_command(monkeypatch, raising(error))
    assert cli.main(["fake"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_mismatched_torchvision_is_told_in_one_line(monkeypatch, capsys):
    fake_command(monkeypatch, raising(RuntimeError("operator torchvision::nms does not exist")))
    assert cli.main(["fake"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "torchvision" in err


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            PermissionError(13, "Permission denied", "/root/out"),
            "'/root/out' cannot be used: Permission denied",
        ),
        (OSError(36, "File name too long", LONG), "File name too long"),
        (OSError(40, "Too many levels of symbolic links", "loop"), "'loop' cannot be used"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "'a/b' cannot be used: Not a directory"),
        (OSError(30, "Read-only file system", "/x"), "the disk is read-only: /x"),
        (OSError(28, "No space left on device"), "the disk is full; make room"),
        (UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "unexpected end"), "is not UTF-8 text"),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "is not UTF-8 text"),
        (MemoryError("Unable to allocate 7.28 TiB for an array with shape (9,)"), "this needs 7.28 TiB"),
        (RuntimeError("can't allocate memory: you tried to allocate 4000000000000 bytes."), "4000.0 GB"),
        (UserError(f"size {LONG} is odd"), "is odd"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_the_user_gave_is_reported_in_one_short_line(error, expected, monkeypatch, capsys):
    fake_command(monkeypatch, raising(error))
    assert cli.main(["fake"]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1
    assert len(err) <= 301


def test_long_words_of_the_command_line_make_no_long_message(monkeypatch, capsys):
    fake_command(monkeypatch, lambda args: 0)
    for argv in ([LONG], ["fake", "--size", LONG], ["fake", LONG], ["fake", f"--{LONG}"]):
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert len(err) <= 301


def test_what_the_terminal_cannot_show_is_replaced(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    fake_command(monkeypatch, lambda args: print("größe, \udce9"))
    assert cli.main(["fake"]) == 0
    assert screen.buffer.getvalue() == b"gr??e, ?\n"


def test_bytes_that_are_no_text_can_be_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nx\n"), encoding="utf-8"))
    lines = []
    fake_command(monkeypatch, lambda args: lines.extend(sys.stdin))
    assert cli.main(["fake"]) == 0
    assert lines == ["caf\udce9\n", "x\n"]


def test_closed_streams_are_replaced_before_a_file_takes_their_number():
    code = (
        "import sys, os; from dualtoken.scripts import cli; from dualtoken.scripts.streams import *\n"
        "make_tolerant(); file = open(sys.argv[1], 'w'); print('lost'); assert file.fileno() > 2\n"
        "assert sys.stdin.read() == ''; file.write('kept')"
    )
    with tempfile.NamedTemporaryFile() as target:
        command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", code, target.name]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert Path(target.name).read_text() == "kept"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("argv", [["--help"], ["bench"]])
def test_output_that_cannot_be_written_is_one_line(argv):
    code = "import sys; from dualtoken.scripts import cli; sys.exit(cli.main(sys.argv[1:]))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1


def test_interrupting_gives_130(monkeypatch, capsys):
    fake_command(monkeypatch, raising(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    # Each takes seconds to import torch, so one of them stands for all in the fast tests.
    [pytest.param(name, marks=[] if name == "chat" else pytest.mark.slow) for name in cli.COMMANDS],
)
def test_python_m_runs_the_same_command(name):
    done = subprocess.run(
        [sys.executable, "-m", f"dualtoken.scripts.{cli.COMMANDS[name].module}", "--no-such-option"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"dualtoken {name}: error: "), done.stderr
    assert done.stderr.count("\n") == 1
