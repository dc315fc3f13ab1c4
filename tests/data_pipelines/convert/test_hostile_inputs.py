"""Sources of any kind to shards: what is wrong costs itself only, and is named, and nothing hangs."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import os
import socket
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert import tar_samples as tars
from dualtoken.data_pipelines.convert.captions import CaptionOptions
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.folder import FolderConverter
from dualtoken.data_pipelines.convert.llava import LlavaConverter
from dualtoken.data_pipelines.convert.rows import Table
from dualtoken.data_pipelines.convert.samples import ImageOptions, OutputOptions, Rejected
from dualtoken.data_pipelines.convert.tar_patterns import find_tars
from dualtoken.data_pipelines.convert.tar_samples import TarSample, tar_samples
from dualtoken.data_pipelines.convert.webdataset import WebDatasetConverter
from dualtoken.data_pipelines.records import RecordError
from dualtoken.data_pipelines.scenes.convert import SceneOptions
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.small_sets.convert_sets import EmojiConverter, LabelsConverter, NlvrConverter
from dualtoken.data_pipelines.small_sets.image_list import ImageList
from dualtoken.scripts import cli


def picture(kind: str = "JPEG", shade: int = 200) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


PHOTO = picture()


def content(name: str) -> bytes:
    return PHOTO if name.lower().endswith(("jpg", "png")) else name.encode("utf-8", "surrogateescape")


def tar_bytes(*names: str | tarfile.TarInfo, **contents: bytes) -> bytes:
    """A tar of members that hold a photo, or their own name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            data = contents.get(info.name, content(info.name)) if info.isreg() else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def convert(tmp_path: Path, data: bytes, name: str = "t.tar", **options: Any) -> dict[str, Any]:
    (tmp_path / name).write_bytes(data)
    output = OutputOptions(tmp_path / "out", progress=False, overwrite=True)
    return write_shards(WebDatasetConverter([tmp_path / name], **options), output)


def ids(folder: Path) -> list[str]:
    dataset = ShardDataset(folder, "all")
    return [dataset[number].id for number in range(len(dataset))]


def rejected(manifest: dict[str, Any]) -> dict[str, str]:
    return {item["sample"]: item["reason"] for item in manifest["rejected"]["samples"]}


# --- tars ---


def test_what_macos_adds_is_left_out_and_counted(tmp_path: Path):
    manifest = convert(tmp_path, tar_bytes("._0.jpg", "0.jpg", "__MACOSX/0.jpg", "._0.txt", "0.txt", "0.cls"))
    assert ids(tmp_path / "out") == ["t/0"]
    assert manifest["counts"]["rejected"] == 0
    assert manifest["skipped"] == {"hidden members, such as ._*": 3, "members with the ending .cls": 1}


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("0.JPG", "0.TXT"), ["0"]),
        (("img.v1.jpg", "img.v1.txt", "img.v2.jpg", "img.v2.txt"), ["img.v1", "img.v2"]),
        (("0.depth.png", "0.jpg", "0.seg.png", "0.txt"), ["0"]),
        (("0.jpg", "1.jpg", "0.txt", "1.txt"), ["0", "1"]),
        (("0.txt", "1.txt", "1.jpg", "0.jpg"), ["0", "1"]),
        (("a.b/0.jpg", "a.b/0.txt", "a.b/1.x.jpg", "a.b/1.x.txt"), ["a.b/0", "a.b/1.x"]),
        (("0.jpg", "0.txt", "0.more.jpg", "0.more.txt"), ["0", "0.more"]),
    ],
)
def test_members_of_one_key_find_each_other(tmp_path: Path, names: tuple[str, ...], keys: list[str]):
    manifest = convert(tmp_path, tar_bytes(*names))
    assert ids(tmp_path / "out") == [f"t/{key}" for key in keys]
    assert manifest["counts"]["rejected"] == 0


def test_a_key_that_comes_twice_is_counted(tmp_path: Path):
    manifest = convert(tmp_path, tar_bytes("0.jpg", "0.txt", "0.jpg", "0.txt"))
    assert ids(tmp_path / "out") == ["t/0"]
    assert manifest["rejected"]["reasons"] == {"its key comes a second time; the first is used": 1}


def test_no_sample_is_silent_whatever_its_endings(tmp_path: Path):
    manifest = convert(tmp_path, tar_bytes("0.jpg", "0.txt", "1.heix", "1.txt", "2.mp4", "3.jpg", "4"))
    found = rejected(manifest)
    assert "no image" in found["t.tar: 1"]
    assert found["t.tar: 2"] == "no image, only .mp4"
    assert "no caption" in found["t.tar: 3"]
    assert "t.tar: 4" in found
    assert manifest["skipped"]["members with the ending .heix"] == 1


def test_keys_far_apart_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "_WINDOW_KEYS", 2)
    manifest = convert(tmp_path, tar_bytes("9.jpg", "9.txt", *(f"{n}.jpg" for n in range(4)), "0.txt"))
    assert ids(tmp_path / "out") == ["t/9"]
    assert manifest["counts"]["rejected"] == 5
    assert "far after" in [item["reason"] for item in manifest["rejected"]["samples"]][-1]


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "0.jpg"
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_not_followed(tmp_path: Path, kind: bytes):
    manifest = convert(tmp_path, tar_bytes("0.jpg", "0.txt", special("1.jpg", kind), "1.txt"))
    assert ids(tmp_path / "out") == ["t/0"]
    assert rejected(manifest) == {"t.tar: 1": "its .jpg is a link or a device"}


def test_a_name_that_is_not_utf_8_costs_one_sample(tmp_path: Path):
    manifest = convert(tmp_path, tar_bytes("0.jpg", "0.txt", "caf\udce9.jpg", "caf\udce9.txt"))
    assert ids(tmp_path / "out") == ["t/0"]
    assert list(rejected(manifest).values()) == ["its name in the tar is not UTF-8"]


def test_texts_of_tars(tmp_path: Path):
    names = [f"{number}.{ending}" for number in range(4) for ending in ("jpg", "json", "txt")]
    contents = {name: b"{}" for name in names if name.endswith("json")}
    contents |= {"0.txt": b"\xef\xbb\xbfcap", "0.json": b'{"similarity": NaN, "url": "u"}'}
    contents |= {"1.txt": b"caf\xe9", "2.json": b"[" * 100_000, "3.json": b"not"}
    manifest = convert(tmp_path, tar_bytes(*names, **contents))
    (record,) = ShardDataset(tmp_path / "out")
    assert record.texts()[-1] == "cap"
    assert record.metadata == {"task": "caption", "url": "u"}
    assert "not UTF-8 at byte 3" in rejected(manifest)["t.tar: 1"]
    assert "nested deeper" in rejected(manifest)["t.tar: 2"]
    assert "not JSON" in rejected(manifest)["t.tar: 3"]


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar"])
def test_gzip_is_read_whatever_the_name(tmp_path: Path, name: str):
    convert(tmp_path, gzip.compress(tar_bytes("0.jpg", "1.jpg", "0.txt", "1.txt")), name)
    assert ids(tmp_path / "out") == ["t/0", "t/1"]
    assert find_tars([str(tmp_path)]) == [tmp_path / name]


def test_a_cut_gzip_gives_what_stands_before(tmp_path: Path):
    whole = tar_bytes(*(f"{n}.{ending}" for n in range(40) for ending in ("jpg", "txt")))
    manifest = convert(tmp_path, gzip.compress(whole, 0)[:20_000], "t.tar.gz")
    assert 3 < len(ids(tmp_path / "out")) < 40
    assert "damaged tar" in rejected(manifest)["t.tar.gz"]


def test_other_compressions_are_named(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_bytes("0.jpg", "0.txt"))
    (tmp_path / "b.tar").write_bytes(bz2.compress(tar_bytes("0.jpg", "0.txt")))
    output = OutputOptions(tmp_path / "out", progress=False)
    manifest = write_shards(WebDatasetConverter([tmp_path / "a.tar", tmp_path / "b.tar"]), output)
    assert "compressed with bzip2: unpack it" in rejected(manifest)["b.tar"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_concatenated_tars_are_all_read(tmp_path: Path, pack: Any):
    convert(tmp_path, pack(tar_bytes("0.jpg", "0.txt")) + pack(tar_bytes("1.jpg", "1.txt")))
    assert ids(tmp_path / "out") == ["t/0", "t/1"]


def test_what_follows_a_tar_is_named(tmp_path: Path):
    manifest = convert(tmp_path, tar_bytes("0.jpg", "0.txt") + b"more" * 1000)
    assert ids(tmp_path / "out") == ["t/0"]
    assert "damaged tar" in rejected(manifest)["t.tar"]


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("size", [2**62, 2**33, -512, -1])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_sizes_in_headers_allocate_nothing(tmp_path: Path, size: int, kind: bytes, pack: Any):
    info = tarfile.TarInfo("1.jpg")
    info.size, info.type = size, kind
    data = tar_bytes("0.jpg", "0.txt").rstrip(b"\0")
    data += bytes(-len(data) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    manifest = convert(tmp_path, pack(data))
    assert ids(tmp_path / "out") == ["t/0"]
    assert "damaged tar" in rejected(manifest)["t.tar"]


def test_big_members_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "LARGEST_IMAGE_FILE", 1000)
    monkeypatch.setattr(tars, "LARGEST_TEXT_FILE", 1000)
    names = ("0.jpg", "0.txt", "1.jpg", "1.txt", "2.jpg", "2.txt")
    manifest = convert(tmp_path, tar_bytes(*names, **{"1.jpg": PHOTO * 99, "2.txt": b"x" * 1001}))
    assert ids(tmp_path / "out") == ["t/0"]
    assert all("bytes" in reason for reason in rejected(manifest).values())


TWO = tar_bytes("0.jpg", "0.txt", "1.jpg", "1.txt")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, len(TWO) - 1), st.binary(min_size=1, max_size=40)), max_size=4),
    st.integers(0, len(TWO)),
    st.booleans(),
)
def test_damaged_tars_give_samples_and_reasons(tmp_path_factory, edits, end, pack):
    data = bytearray(TWO)
    for position, other in edits:
        data[position : position + len(other)] = other
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(gzip.compress(bytes(data[:end])) if pack else bytes(data[:end]))
    source = WebDatasetConverter([path])
    for sample in source.samples():
        if not isinstance(sample, Rejected):
            with contextlib.suppress(UserError):
                list(source.records(sample.payload))


NAMES = st.lists(
    st.text(st.sampled_from("0a./_\u00e9\udce9A"), min_size=1, max_size=8).map(lambda stem: stem.strip("/"))
    | st.builds(
        "{}.{}".format, st.sampled_from(["0", "a.b", "._c"]), st.sampled_from(["jpg", "TXT", "json"])
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NAMES.map(lambda names: [name for name in names if name]))
def test_every_member_of_any_name_is_accounted_for(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "names.tar"
    path.write_bytes(tar_bytes(*names))
    skipped: Counter[str] = Counter()
    found = list(tar_samples(path, skipped))
    used = sum(len(sample.members) for sample in found if isinstance(sample, TarSample))
    assert not names or used + len(found) + skipped.total()
    assert used + sum(isinstance(sample, Rejected) for sample in found) + skipped.total() >= bool(names)


# --- which tars ---


@pytest.mark.parametrize(
    "pattern",
    ["{0..99999999}.tar", "{a,b}" * 40, "{" * 1000, "{0..%s}" % ("9" * 5000), "{a", "x\0", "/" + "a" * 5000],
)
def test_patterns_without_end_are_one_line(pattern: str):
    with pytest.raises(UserError):
        find_tars([pattern])


def test_a_path_that_exists_is_literal(tmp_path: Path):
    for name in ("a[1].tar", "b{1,2}.tar", "c*.tar", "folder[x]/d.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar_bytes("0.jpg", "0.txt"))
        assert find_tars([str(tmp_path / name)]) == [tmp_path / name]
    assert find_tars([str(tmp_path / "folder[x]")]) == [tmp_path / "folder[x]" / "d.tar"]


@pytest.mark.parametrize("kind", ["webdataset", "labels", "emoji", "folder"])
@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "loop", "socket", "~nobody-here/x", "a" * 300])
def test_an_input_that_never_ends_is_refused_by_what_it_is(tmp_path, capsys, monkeypatch, kind, what):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    assert cli.main(["prepare", kind, "--input", what, "--output", "out", "--no-progress"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert len(error) < 400
    assert not Path("out").exists()


@pytest.mark.parametrize("output", ["in", ".", "..", "in/..", "in/../in", "/", "/proc", "mine"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_output_never_replaces_what_is_not_ours(tmp_path, capsys, monkeypatch, output, overwrite):
    work = tmp_path / "work"
    (work / "in").mkdir(parents=True)
    (work / "in" / "0.jpg").write_bytes(PHOTO)
    (work / "in" / "0.txt").write_text("caption")
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("years")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(work)
    for kind in (["folder", "--input", "in"], ["scenes", "--count", "2"]):
        assert cli.main(["prepare", *kind, "--output", output, "--no-progress", *overwrite]) == 2
        assert "pass --overwrite" not in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shard-size", "0"],
        ["--shard-size", "9" * 5000],
        ["--workers", "-1"],
        ["--workers", "1000000"],
        ["--held-out", "nan"],
        ["--held-out", "1"],
        ["--held-out", "-1"],
        ["--max-image-size", "0"],
        ["--max-image-size", "1e400"],
        ["--max-pixels", "-1"],
        ["--max-pixels", "9" * 30],
        ["--question", "\udcff"],
        ["--licence", "\udcff"],
    ],
)
def test_values_are_checked_before_any_work(tmp_path, capsys, arguments):
    (tmp_path / "0.jpg").write_bytes(PHOTO)
    (tmp_path / "0.txt").write_text("caption")
    command = ["prepare", "folder", "--input", str(tmp_path), "--output", str(tmp_path / "out" / "x")]
    assert cli.main([*command, "--no-progress", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert len(error) < 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 10**30},
        {"count": 0},
        {"count": True},
        {"seed": -1},
        {"seed": 2**64},
        {"image_size": 10**6},
        {"turns": 1},
        {"turns": 10**9},
        {"paraphrase": float("nan")},
        {"questions_per_image": 0},
        {"grid": 10**9, "task": "t2i"},
        {"skills": {"counting": float("inf")}},
        {"skills": {"counting": -1.0}},
    ],
)
def test_scenes_have_bounds(wrong: dict[str, Any]):
    with pytest.raises(UserError):
        SceneOptions(**wrong)


# --- folders ---


def test_linked_folders_are_followed_and_other_files_counted(tmp_path: Path):
    for folder in ("in", "real"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(picture("PNG"))
        (tmp_path / folder / "a.txt").write_text("caption")
    (tmp_path / "in" / "more").symlink_to("../real")
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "film.mp4").touch()
    (tmp_path / "in" / "alone.txt").touch()
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "pipe.txt").write_text("never ends")
    manifest = write_shards(FolderConverter(tmp_path / "in"), OutputOptions(tmp_path / "out", progress=False))
    assert ids(tmp_path / "out") == ["a", "more/a"]
    assert manifest["skipped"] == {"files that are neither images nor captions": 2}
    assert list(rejected(manifest)) == ["pipe.png"]


def test_files_that_are_not_utf_8_cost_themselves(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, caption in (
        (b"a", b"\xef\xbb\xbfcaption"),
        (b"caf\xe9", b"c"),
        (b"latin", b"caf\xe9"),
        (b"deep", b""),
    ):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".jpg")).write_bytes(PHOTO)
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".txt")).write_bytes(caption)
    (folder / "deep.txt").unlink()
    (folder / "deep.json").write_text("[" * 100_000)
    manifest = write_shards(FolderConverter(folder), OutputOptions(tmp_path / "out", progress=False))
    (record,) = ShardDataset(tmp_path / "out")
    assert record.texts()[-1] == "caption"
    assert manifest["counts"]["rejected"] == 3


def write_list(tmp_path: Path, text: str | bytes, name: str = "list.csv") -> FolderConverter:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(PHOTO)
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    (tmp_path / name).write_bytes(data)
    return FolderConverter(folder, tmp_path / name)


def test_a_quote_that_is_not_closed_costs_one_line(tmp_path: Path):
    text = 'file,caption\n0.jpg,"open\n1.jpg,one\n2.jpg,"two ""of"" them\nin lines"\n3.jpg,"a" cat\n'
    source = write_list(tmp_path, text)
    manifest = write_shards(source, OutputOptions(tmp_path / "out", progress=False))
    dataset = ShardDataset(tmp_path / "out")
    assert {record.id: record.texts()[-1] for record in dataset} == {
        "1": "one",
        "2": 'two "of" them\nin lines',
        "3": "a cat",
    }
    assert "quote" in rejected(manifest)["line 2"]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "/dev/zero", "..", "x\0", ""])
def test_lists_name_no_file_outside(tmp_path: Path, name: str):
    lines = [json.dumps({"file": file, "caption": "c"}) for file in ("0.jpg", name)]
    source = write_list(tmp_path, "\n".join(lines), "list.jsonl")
    manifest = write_shards(source, OutputOptions(tmp_path / "out", progress=False))
    assert ids(tmp_path / "out") == ["0"]
    assert manifest["counts"]["rejected"] == 1


def test_rows_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualtoken.data_pipelines.convert.rows._LONGEST_LINE", 100)
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 1000 + "\n1,2\n\n3\n4,5,6\n")
    rows = list(Table(tmp_path / "a.csv").rows())
    assert [(row.line, row.fields) for row in rows] == [
        (2, {}),
        (3, {"a": "1", "b": "2"}),
        (5, {"a": "3"}),
        (6, {"a": "4", "b": "5"}),
    ]
    assert "more than 100" in rows[0].problem


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.sampled_from('a,"\n\r\t\ufeff\udce9\0'), max_size=60))
def test_any_table_gives_rows(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    table = Table(path)
    with contextlib.suppress(UserError):  # nothing names columns in what is empty or no text
        table.columns()
    lines = [row.line for row in table.rows()]
    assert lines == sorted(set(lines))


def test_a_table_in_another_encoding_or_without_a_line_is_said(tmp_path: Path):
    table = tmp_path / "a.csv"
    for data, reason in (
        ("image,caption\n".encode("utf-16"), "not UTF-8"),
        (b"", "empty"),
        (b'"a,b', "quote"),
    ):
        table.write_bytes(data)
        with pytest.raises(UserError, match=reason):
            Table(table).columns()


# --- files without a size, and loops ---


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc here")
def test_files_that_state_no_size_are_read_no_further_than_allowed(tmp_path: Path):
    for name, source in (("memory", "/proc/self/pagemap"), ("status", "/proc/self/status")):
        (tmp_path / f"{name}.png").symlink_to(source)
        (tmp_path / f"{name}.txt").write_text("a file of the system")
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    (tmp_path / "photo.txt").write_text("a photo")
    output = OutputOptions(tmp_path / "out", progress=False)
    manifest = write_shards(FolderConverter(tmp_path, options=CaptionOptions()), output)
    assert ids(tmp_path / "out") == ["photo"]
    assert set(rejected(manifest)) == {"memory.png", "status.png"}


def test_a_pattern_of_tars_takes_each_once_and_ends_at_loops(tmp_path: Path):
    wanted = ("a.tar", "x/b.tar", "x/y/c.tar")
    for name in (*wanted, ".hidden/d.tar", "x/.e.tar", "x/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tar_bytes("0.jpg", "0.txt"))
    for name in ("one", "two", "x/three"):
        (tmp_path / name).symlink_to(tmp_path)
    assert find_tars([f"{tmp_path}/**/*.tar"]) == [tmp_path / name for name in wanted]
    assert find_tars([f"{tmp_path}/x/**/**/c.t?r"]) == [tmp_path / "x/y/c.tar"]
    with pytest.raises(UserError, match="download"):
        find_tars(["https://example.org/a.tar"])


def test_a_sparse_member_costs_itself_only(tmp_path: Path):
    header = tarfile.TarInfo("s.jpg")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)  # one piece of 512 bytes,
    block[483:495] = b"%011o\0" % 30_000_000  # of a file that is said to be far longer than this tar
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    manifest = convert(tmp_path, bytes(block) + bytes(512) + tar_bytes("s.txt", "0.jpg", "0.txt"))
    assert ids(tmp_path / "out") == ["t/0"]
    assert rejected(manifest) == {"t.tar: s": "its .jpg is a sparse file"}


# --- what is rejected is named, in one line ---


def test_the_line_about_rejected_samples_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    entries: list[Any] = [[], 1, "x", None, {}, {"conversations": 1}, {"conversations": [1]}, *([7] * 9)]
    values: list[Any] = [{}, None, "<video> x"]
    entries += [{"conversations": [{"from": "human", "value": value}]} for value in values]
    entries += [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    (tmp_path / "e.json").write_text(json.dumps(entries))
    output = tmp_path / "out"
    given = ["--input", str(tmp_path / "e.json"), "--output", str(output)]
    assert cli.main(["prepare", "llava", *given, "--no-progress"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= 300
    assert line.startswith(f"{len(entries) - 1} samples rejected, named in {output}")
    assert "it is …, not a JSON object (11)" in line
    assert line.endswith(", …")


def test_json_over_several_lines_names_what_is_read(tmp_path: Path):
    (tmp_path / "one.json").write_text(json.dumps({"conversations": []}, indent=1))
    with pytest.raises(UserError, match="one JSON list, or one entry per line"):
        write_shards(LlavaConverter(tmp_path / "one.json"), OutputOptions(tmp_path / "out", progress=False))


# --- image lists ---


def make_list(path: Path, rows: list[Any], files: dict[str, bytes], packed: bool) -> Path:
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("meta.jsonl", lines)
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        path.mkdir()
        (path / "meta.jsonl").write_text(lines, encoding="utf-8")
        for name, data in files.items():
            (path / name).write_bytes(data)
    return path


BAD_ROWS = [
    "not json",
    "[" * 100_000,
    "null",
    '{"file": null}',
    '{"file": 3}',
    "{}",
    '{"file": "\\ud800"}',
    '"\\ud800"',
]


@pytest.mark.parametrize("packed", [True, False])
def test_one_bad_row_costs_itself(tmp_path: Path, packed: bool):
    odd = [
        {"file": "0.png", "label": None},
        {"file": "0.png", "label": {"a": 1}},
        {"file": "../0.png", "label": "x"},
        {"file": "/etc/hostname", "label": "x"},
        {"file": "gone.png", "label": "x"},
        {"file": "0.png", "label": "x", "split": "../../x"},
        {"file": "0.png"},
    ]
    rows = [*BAD_ROWS, *odd, {"file": "0.png", "label": "cat", "split": None}]
    path = make_list(tmp_path / "set", rows, {"0.png": picture("PNG")}, packed)
    manifest = write_shards(LabelsConverter(path), OutputOptions(tmp_path / "out", progress=False))
    assert manifest["counts"]["splits"] == {"train": 1}
    assert manifest["counts"]["rejected"] == len(rows) - 1
    assert sorted(child.name for child in tmp_path.iterdir()) == ["out", "set"]
    with pytest.raises(UserError):
        write_shards(NlvrConverter(path), OutputOptions(tmp_path / "out2", progress=False))
    with pytest.raises(UserError):
        write_shards(EmojiConverter(path), OutputOptions(tmp_path / "out3", progress=False))


def test_orders_of_nlvr_are_numbers(tmp_path: Path):
    row = {"file": "0.png", "split": "dev", "id": "1", "sentence": "s", "label": "true"}
    odd: list[Any] = [None, "x", [], 0]
    rows = [{**row, "perm": perm} for perm in odd]
    buffer = io.BytesIO()
    Image.new("RGB", (400, 100)).save(buffer, "PNG")
    path = make_list(tmp_path / "set", rows, {"0.png": buffer.getvalue()}, packed=True)
    manifest = write_shards(NlvrConverter(path), OutputOptions(tmp_path / "out", progress=False))
    assert (manifest["counts"]["records"], manifest["counts"]["rejected"]) == (1, 3)


def test_a_link_in_a_set_is_not_followed_out_of_it(tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(picture("PNG"))
    path = make_list(tmp_path / "set", [{"file": "0.png"}], {}, packed=False)
    (path / "0.png").symlink_to("../secret.png")
    with pytest.raises(RecordError, match="link out of"):
        ImageList(path).image("0.png")


def test_sizes_in_a_zip_are_checked_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"0.png": bytes(10**6)}
    images = ImageList(make_list(tmp_path / "set", [{"file": "0.png"}], files, packed=True))
    monkeypatch.setattr("dualtoken.data_pipelines.small_sets.image_list.LARGEST_IMAGE_FILE", 10**5)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(RecordError, match="1000000 bytes, more than 100000"):
        images.image("0.png")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.jsonl", '{"file": "0.png", "label": "x"}')
        archive.writestr("0.png", PHOTO)
    return buffer.getvalue()


ZIPPED = zipped()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_damaged_zips_are_users_mistakes(tmp_path_factory, edits):
    data = bytearray(ZIPPED)
    for position, other in edits:
        position %= len(data)
        data[position : position + len(other)] = other
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(bytes(data))
    with contextlib.suppress(UserError):
        images = ImageList(path)
        for row in images.rows:
            images.image(row["file"])


def test_image_options_have_bounds():
    for wrong in (
        {"max_size": 7},
        {"max_size": "8"},
        {"max_pixels": True},
        {"held_out": 1.0},
        {"held_out": "0"},
    ):
        with pytest.raises(UserError):
            ImageOptions(**wrong)
    for wrong in ({"shard_size": 0}, {"workers": 10**6}, {"workers": 1.5}):
        with pytest.raises(UserError):
            OutputOptions("x", **wrong)
    with pytest.raises(UserError):
        CaptionOptions("all", " ")
    assert OutputOptions("~/x").folder == Path.home() / "x"
