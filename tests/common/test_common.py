"""What all other parts stand on: bounded messages, strict JSON, names and outputs, one process at a time."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from dualtoken.common import files, locks
from dualtoken.common.errors import UserError, one_line
from dualtoken.common.files import atomic_folder
from dualtoken.common.images.reading import is_image_name
from dualtoken.common.json_files import (
    JsonError,
    is_encodable,
    nesting,
    parse_json,
    read_json_object,
    take_count,
)
from dualtoken.common.limits import in_range, limited, problems
from dualtoken.common.locks import only_process
from dualtoken.common.outputs import MARK, SHARD_MAKERS, check_output, mark_output
from dualtoken.common.paths import inside, is_plain_name, read_bounded, regular_file, single_name, walk_files
from dualtoken.common.values import finite_number, refuse_unknown, seed_number, whole_number
from dualtoken.common.yaml_files import read_yaml


@pytest.mark.parametrize(
    "given", ["x" * 10**6, "two\nlines\r\tand\x1b[31mcolour", "half \ud800 of a pair", "\u2028", ""]
)
def test_a_message_is_one_short_printable_line(given: str):
    message = str(UserError(f"it is {given!s}: give another"))
    assert len(message) <= 300
    assert message.isprintable()
    assert is_encodable(message)
    assert message.startswith("it is")
    assert message.endswith("give another")


def test_a_short_message_stays_as_it_is():
    assert one_line("seed is −1; give 0 or more") == "seed is −1; give 0 or more"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 65 + "]" * 65, '"\\ud800"', "1" * 5000, "{", "", b"\xff", "nul"],
)
def test_unusable_json_is_one_kind_of_error(text: str | bytes):
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert len(str(caught.value)) <= 300


def test_what_is_read_can_be_written():
    value = parse_json(b'\xef\xbb\xbf{"a": [NaN, -Infinity, 1e999, 2], "b": "\\ud83d\\ude00"}')
    assert value == {"a": [None, None, None, 2], "b": "😀"}
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def test_nesting_counts_what_lies_within():
    assert [nesting(value) for value in (1, [], [1, {"a": 2}], [[[]]])] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", None, 3, "a\0b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: object):
    with pytest.raises(UserError, match="shard"):
        inside(tmp_path, name, "shard")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="link out"):
        inside(tmp_path / "in", "link", "shard")
    assert inside(tmp_path / "in", "sub/a.tar", "shard") == tmp_path / "in" / "sub" / "a.tar"


def test_a_walk_follows_links_visits_each_folder_once_and_ends(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").touch()
    top = tmp_path / "top"
    (top / "real").mkdir(parents=True)
    (top / "real" / "a.png").touch()
    (top / "a_link").symlink_to(top / "real")  # the folder's own name is kept
    (top / "more").symlink_to(tmp_path / "elsewhere")
    (top / "real" / "loop").symlink_to(top)
    (top / "nowhere.png").symlink_to(tmp_path / "none")
    for number in range(20):  # 2**20 ways to the last folder
        (tmp_path / f"d{number}").mkdir()
        for name in "xy":
            (tmp_path / f"d{number}" / name).symlink_to(tmp_path / f"d{number + 1}")
    (top / "many").symlink_to(tmp_path / "d0")
    (top / "real" / "blind").symlink_to("blind")  # a link to itself
    found = [path.relative_to(top).as_posix() for path in walk_files(top) if path.suffix == ".png"]
    assert found == ["more/b.png", "nowhere.png", "real/a.png"]


def test_images_are_known_by_their_endings():
    names = ["a.JPG", "a.avif", "x/b.jfif", "c.jp2", "d.gif", "e.bmp", "f.v1.webp", "x\\y.TIFF", "a.apng"]
    assert all(map(is_image_name, names))
    others = ["._a.jpg", "x/._a.jpg", ".jpg", "a.txt", "a.eps", "a.pdf", "a.h5", ""]
    assert not any(map(is_image_name, others))


def test_names_of_splits():
    assert all(map(is_plain_name, ["train", "val-2017", "a.b_c+d", "0"]))
    assert not any(map(is_plain_name, ["", ".", "..", "a/b", ".hidden", "a b", "x" * 101, None, "ä"]))


def test_a_pipe_and_a_device_are_refused_unopened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="pipe or a device"):
            regular_file(path, "image")
    with pytest.raises(UserError, match="is a folder"):
        regular_file(tmp_path, "image")


def test_an_output_never_takes_an_input(tmp_path: Path):
    source = tmp_path / "data" / "in"
    source.mkdir(parents=True)
    mark_output(source, "test")
    for output in (source, source.parent, tmp_path, source / ".." / "in"):
        with pytest.raises(UserError, match="another folder"):
            check_output(output, {"--input": source}, overwrite=True)
    check_output(tmp_path / "out", {"--input": source}, overwrite=False)


def test_only_what_was_made_here_is_replaced(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "a.tar").touch()
    with pytest.raises(UserError, match="not made by dualtoken"):
        check_output(output, {}, overwrite=True)
    mark_output(output, "test")
    check_output(output, {}, overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        check_output(output, {}, overwrite=False)
    (output / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds 'notes\.txt'"):
        check_output(output, {}, overwrite=True)


def test_several_inputs_under_one_name(tmp_path: Path):
    tars = [tmp_path / "a" / "0.tar", tmp_path / "b" / "0.tar"]
    with pytest.raises(UserError, match=r"holds --input .*b/0\.tar"):
        check_output(tmp_path / "b", {"--input": tars}, overwrite=True)
    check_output(tmp_path / "c", {"--input": tars}, overwrite=True)


def test_a_path_that_no_file_system_takes_is_one_line(tmp_path: Path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (loop, loop / "x", tmp_path / ("a" * 300), tmp_path / "a\0b"):
        with pytest.raises(UserError, match="--output"):
            check_output(path, {}, overwrite=True)
        with contextlib.suppress(UserError):  # one that can be resolved is refused where it is read
            check_output(tmp_path / "out", {"--input": path}, overwrite=True)


def test_the_current_folder_is_refused_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for output in (".", "..", "../b", str(tmp_path)):
        with pytest.raises(UserError, match="is the current folder or holds it"):
            check_output(Path(output), {}, overwrite=False)
    check_output(Path("../c"), {}, overwrite=False)


def test_what_another_command_made_is_not_replaced(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "weights").touch()
    mark_output(output, "dualtoken convert")
    check_output(output, {}, overwrite=True, makers=["dualtoken convert"])
    check_output(output, {}, overwrite=True)
    with pytest.raises(UserError, match="made by 'dualtoken convert'"):
        check_output(output, {}, overwrite=True, makers=SHARD_MAKERS)
    (output / MARK).write_text('{"entries": ["weights"]}')  # nobody says that it may go
    with pytest.raises(UserError, match="made by None"):
        check_output(output, {}, overwrite=True, makers=SHARD_MAKERS)


def test_a_lock_alone_does_not_fill_an_output(tmp_path: Path):
    with only_process(tmp_path, "--output x"):
        check_output(tmp_path, {}, overwrite=False)


def test_a_finished_folder_survives_a_failed_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(files, "replace_folder", refuse)
    with pytest.raises(UserError, match=r"busy.*is kept in") as caught, atomic_folder(tmp_path / "x") as made:
        (made / "a").write_text("whole")
    assert str(made) in str(caught.value)
    assert (made / "a").read_text() == "whole"


def test_an_output_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        check_output(tmp_path / "file" / "out", {}, overwrite=True)
    with pytest.raises(UserError, match="mount point"):
        check_output(Path("/proc"), {}, overwrite=True)


def test_a_second_process_is_refused_with_the_owner(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from dualtoken.common.locks import only_process\n"
        "with only_process(Path(sys.argv[1]), '--output x'): pass"
    )
    attempt = [sys.executable, "-c", code, str(tmp_path)]
    with only_process(tmp_path, "--output x"):
        second = subprocess.run(attempt, capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()} on" in second.stderr
    assert subprocess.run(attempt, check=False).returncode == 0


def test_a_file_system_without_locks_is_said_and_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with only_process(tmp_path, "--output x"):
        assert "cannot be locked" in capsys.readouterr().err


def test_a_lock_of_a_killed_process_is_not_in_the_way(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from dualtoken.common.locks import only_process\n"
        "with only_process(Path(sys.argv[1]), '--output x'): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    with only_process(tmp_path, "--output x"):
        assert read_json_object(tmp_path / ".lock.json")["pid"] == os.getpid()


@pytest.mark.parametrize("value", [True, 1.5, "3", None, -1, 11, float("nan"), [1]])
def test_integers_out_of_range_or_of_another_type_are_refused(value: object):
    with pytest.raises(UserError, match=r"count is .*; give an integer from 0 to 10"):
        whole_number(value, "count", 0, 10)


@pytest.mark.parametrize("value", [True, "3", None, float("nan"), float("inf"), -0.1, 10**400])
def test_numbers_out_of_range_or_kind_are_refused(value: object):
    with pytest.raises(UserError, match=r"rate is .*; give a number of 0 or more"):
        finite_number(value, "rate", 0.0)


def test_numbers_of_other_libraries_are_taken():
    assert whole_number(np.int64(3), "count") == 3
    assert seed_number(np.array(4)) == 4
    assert finite_number(np.float32(0.5), "rate", 0, 1) == 0.5


@dataclass(frozen=True)
class _Inner:
    share: float = limited(0.5, least=0.0, below=1.0)


@dataclass(frozen=True)
class _Settings:
    steps: int = limited(1, least=1, most=100)
    rates: dict[str, float] = field(default_factory=dict, metadata=in_range(above=0.0))
    pair: tuple[float, float] = limited((0.1, 0.2), least=0.0, most=1.0)
    maybe: float | None = limited(None, least=0.0)
    inner: _Inner = field(default_factory=_Inner)
    named: dict[str, _Inner] = field(default_factory=dict)


def test_ranges_of_nested_settings_are_checked():
    assert problems(_Settings(), "run") == []
    wrong = _Settings(0, {"a": 0.0}, (0.5, 2.0), float("nan"), _Inner(1.0), {"x": _Inner(-1.0)})
    assert [line.split(" is ")[0] for line in problems(wrong, "run")] == [
        "run.steps",
        "run.rates.a",
        "run.pair",
        "run.maybe",
        "run.inner.share",
        "run.named.x.share",
    ]


def test_an_unknown_name_is_answered_with_the_one_that_was_meant():
    refuse_unknown(["top_p"], ["top_k", "top_p"], "option")
    with pytest.raises(UserError, match=r"unknown option 'guidance'; did you mean 'guidance_scale'\?"):
        refuse_unknown(["guidance"], ["guidance_scale", "top_p"], "option")
    with pytest.raises(UserError, match="allowed: guidance_scale, top_p"):
        refuse_unknown(["colour"], ["guidance_scale", "top_p"], "option")


HOSTILE_YAML = {
    "doubled": b"a0: &a0 [x]\n"
    + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n + 1, n + 1, n, n) for n in range(20)),
    "itself": b"a: &a [*a]",
    "nothing": b"a: *b",
    "nested": b"a: " + b"[" * 100_000,
    "nested and closed": b"a: " + b"[" * 80 + b"]" * 80,
    "long": b"a: [" + b"1," * 120_000 + b"]",
    "a list": b"- 1",
    "empty": b"",
    "code": b"a: !!python/object/apply:os.abort []",
    "no date": b"a: 2020-99-99",
    "a list as key": b"? [a]\n: b",
    "a key twice": b"a: 1\nb: {a: 2}\na: 3",
    "an inner key twice": b"a: [{b: 1, c: b, b: 2}]",
}


@pytest.mark.parametrize("content", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_untrusted_yaml_is_bounded_before_it_is_built(tmp_path: Path, content: bytes):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_yaml(tmp_path / "a.yaml")


def test_plain_yaml_with_aliases_is_read(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["d"] == {"b": [1, 2], "e": 3}


def test_a_count_may_be_absent_where_a_default_stands():
    assert take_count({}, "n", "file", None) is None
    assert take_count({"n": None}, "n", "file", 3) == 3
    with pytest.raises(UserError, match="n is -1"):
        take_count({"n": -1}, "n", "file", None)


def test_no_more_is_read_of_a_file_than_allowed(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5) == b"12345"
    with pytest.raises(OSError, match="too large"):
        read_bounded(file, 4)
    os.mkfifo(tmp_path / "pipe")
    assert read_bounded(tmp_path / "pipe", 5) == b""  # nobody writes; it is not waited for
    if Path("/proc/self/status").is_file():
        with pytest.raises(UserError, match="states no size"):
            regular_file(Path("/proc/self/status"), "--input")


def test_bounds_are_written_with_all_their_digits():
    with pytest.raises(UserError, match=r"from 8 to 2147483647$"):
        whole_number(2**31, "--size", 8, 2**31 - 1)


def test_what_names_a_file_is_one_part_of_a_path():
    for name in ("COCOval2014_7", 'a red cup, and a "blue" book', "it's", "7", "ä"):
        assert single_name(name, "item") == name
    for name in ("../x", "a/b", "a\\b", "..", ".", "", " ", "a\nb", "a\0b", "x" * 201, "\ud800", 7, None):
        with pytest.raises(UserError, match=r"item .* cannot name a file"):
            single_name(name, "item")
