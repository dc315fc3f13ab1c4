"""Untrusted shards: any content of a manifest, an index, a tar or a member costs a message or a record."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualtoken.common.errors import LONGEST_MESSAGE, UserError
from dualtoken.common.files import file_checksum
from dualtoken.data_pipelines.records import MOST_IMAGES, Record, RecordError, assistant, user
from dualtoken.data_pipelines.shards import tar_index
from dualtoken.data_pipelines.shards.check import check_shards
from dualtoken.data_pipelines.shards.format import MANIFEST, read_manifest
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.sample_codec import encode_record
from dualtoken.data_pipelines.shards.statistics import statistics
from dualtoken.data_pipelines.shards.storage import Location
from dualtoken.data_pipelines.shards.tar_index import (
    LARGEST_SAMPLE,
    index_path,
    stored_index,
    surviving_index,
)
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.scripts.cli import main

GRID, DEPTH, NUM_CODES = (2, 2), 3, 16
QUANTIZER = {"num_codes": NUM_CODES, "depth": DEPTH, "code_dim": 4}
TOKENIZER = {
    "checksum": "0" * 64,
    "preprocessing": "1" * 64,
    "image_size": 8,
    "grid_size": list(GRID),
    "pixel_quantizer": QUANTIZER,
    "semantic_quantizer": QUANTIZER,
}


def codes_record(number: int) -> Record:
    codes = np.full((*GRID, DEPTH), number)
    part = {"type": "image", "pixel_codes": codes, "semantic_codes": codes}
    return Record(f"c{number}", [user(part, "what?"), assistant(str(number))], {"n": number})


def write(folder: Path, count: int = 6, shard_size: int = 3) -> Path:
    options: Any = {"source": "test", "licence": "MIT", "extra": {"tokenizer": TOKENIZER}}
    with ShardWriter(folder, shard_size=shard_size, **options) as writer:
        for number in range(count):
            writer.write(codes_record(number))
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards") / "data")


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "data"))


def set_manifest(folder: Path, manifest: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def changed(folder: Path, path: str, value: Any) -> None:
    """Set one value of the manifest, such as "shards.0.file"; `...` removes it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    position: Any = manifest
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        position = position[key]
    if value is ...:
        del position[last]
    else:
        position[last] = value
    set_manifest(folder, manifest)


def rewrite(folder: Path, change: Any, name: str = "train-00000.tar") -> None:
    """Change the members of a shard, {name: bytes}; its manifest entry agrees with the new file."""
    path = folder / name
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_path(path).unlink(missing_ok=True)
    changed(folder, f"shards.{int(name[6:11])}.bytes", path.stat().st_size)
    changed(folder, f"shards.{int(name[6:11])}.sha256", file_checksum(path))


def faults(folder: Path) -> list[str]:
    return [str(fault) for _, found in check_shards(folder) for fault in found]


def unusable(dataset: ShardDataset) -> list[int]:
    """The numbers of the records that a stream would skip."""
    found = []
    for number in range(len(dataset)):
        try:
            dataset[number]
        except RecordError:
            found.append(number)
    return found


# --- the manifest ----------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("shards.0.file", "../../outside.tar", "file"),
        ("shards.0.file", "/etc/passwd", "file"),
        ("shards.0.file", "a::file:///etc/passwd.tar", "file"),
        ("shards.0.file", "..", "file"),
        ("shards.0.file", "", "file"),
        ("shards.0.file", 7, "file"),
        ("shards.0.file", "train-00001.tar", "twice"),
        ("shards.0.split", "../../../x", "split"),
        ("shards.0.split", None, "split"),
        ("shards.0.records", -1, "records"),
        ("shards.0.records", 10**15, "records"),
        ("shards.0.records", "3", "records"),
        ("shards.0.records", True, "records"),
        ("shards.0.records", 1e3, "records"),
        ("shards.0.bytes", 10**30, "bytes"),
        ("shards.0.sha256", None, "sha256"),
        ("shards.0", None, "shards"),
        ("shards", {}, "shards"),
        ("shards", ..., "shards"),
        ("counts", [], "counts"),
        ("counts.records", -5, "records"),
        ("counts.splits", {"../x": 3}, "split"),
        ("rejected", None, "rejected"),
        ("rejected.samples", [5], "samples"),
        ("source", None, "source"),
        ("tokenizer", "x", "tokenizer"),
        ("tokenizer.checksum", 5, "checksum"),
        ("tokenizer.grid_size", [2, 10**12], "grid_size"),
        ("tokenizer.grid_size", [2], "grid_size"),
        ("tokenizer.grid_size", "22", "grid_size"),
        ("tokenizer.pixel_quantizer.num_codes", 0, "num_codes"),
        ("tokenizer.pixel_quantizer.num_codes", 10**9, "num_codes"),
        ("tokenizer.semantic_quantizer.depth", -3, "depth"),
        ("version", 10**4, "version"),
        ("format", ["x" * 10**5], "format"),
    ],
)
def test_an_invalid_manifest_is_refused_with_file_and_field(
    path: str, value: Any, named: str, folder: Path
) -> None:
    changed(folder, path, value)
    for use in (read_manifest, ShardDataset, statistics, lambda f: list(check_shards(f))):
        with pytest.raises(UserError, match=named) as raised:
            use(folder)
        assert MANIFEST in str(raised.value)
        assert len(str(raised.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize(
    "text", ["[]", "null", "{", "", "[" * 100_000, '{"format": "\\ud800"}', "\xff", "9" * 6000]
)
def test_a_manifest_that_is_not_a_json_object_is_refused(text: str, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardDataset(folder)


def test_shards_of_a_manifest_may_not_be_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    shard = folder / "train-00000.tar"
    shard.rename(tmp_path / "other.tar")
    shard.symlink_to(tmp_path / "other.tar")
    with pytest.raises(UserError, match="link out of"):
        ShardDataset(folder)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_of_a_manifest_is_read_or_named(data: st.DataObject, intact: Path, tmp_path: Path) -> None:
    """Values are replaced by any JSON; the folder is read, or refused with a message of one line."""
    values: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "..", "/x", "\ud800", [], {}, [[]], "all"]
    odd = st.sampled_from(values)
    manifest = json.loads((intact / MANIFEST).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        position: Any = manifest
        while True:
            keys = sorted(position) if isinstance(position, dict) else list(range(len(position)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(position[key], dict | list) and position[key] and data.draw(st.booleans()):
                position = position[key]
                continue
            position[key] = copy.deepcopy(data.draw(odd))
            break
    folder = tmp_path / "fuzzed"
    shutil.copytree(intact, folder, dirs_exist_ok=True)
    set_manifest(folder, manifest)
    for use in (
        lambda: unusable(ShardDataset(folder, tolerant=True)),
        lambda: unusable(ShardDataset(folder)),
        lambda: faults(folder),
        lambda: statistics(folder),
    ):
        with contextlib.suppress(UserError):
            use()


# --- what is given as a folder ----------------------------------------


def test_a_source_that_is_not_a_folder_of_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd" / MANIFEST).mkdir(parents=True)
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / MANIFEST)
    given: list[Any] = [
        tmp_path / name for name in ("pipe", "pipe.tar", "loop", "empty", "file", "odd", "fifo")
    ]
    given += [
        tmp_path / ("x" * 300),
        tmp_path / "no",
        "",
        "a\0b",
        "~nobody-here/x",
        "\ud800",
        None,
        5,
        b"x",
        [],
        [None],
        np.zeros(3),
    ]
    datasets: list[Any] = [ShardDataset, lambda source: ShardDataset(source, tolerant=True)]
    readers: list[Any] = [read_manifest, statistics, lambda source: list(check_shards(source))]
    for source in given:
        for use in datasets:
            with pytest.raises(UserError):
                use(source)
        if not isinstance(source, list):
            for use in readers:
                with pytest.raises(UserError):
                    use(source)
    for split in ("validation", None, 3, ["train"], "x" * 10_000, np.zeros(3)):
        with pytest.raises(UserError, match="it has train"):
            ShardDataset(folder, split)  # type: ignore[arg-type]


def test_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(ShardDataset("~/data")) == 6


def test_check_and_stats_of_invalid_folders_exit_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for command in ("check", "stats"):
        for name in ("pipe", "no", "x" * 300):
            assert main(["prepare", command, str(tmp_path / name)]) == 2
            assert len(capsys.readouterr().err.strip().splitlines()) == 1


# --- damaged and missing shards ----------------------------------------


@pytest.mark.parametrize("damage", ["garbage", "cut short", "empty", "a folder", "a pipe", "missing"])
def test_only_the_records_of_a_damaged_shard_are_lost(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = folder / "train-00000.tar"
    data = shard.read_bytes()
    shard.unlink()
    kept = {"garbage": 1, "cut short": 2}.get(damage, 0)
    if kept:
        shard.write_bytes(data)
        start = int(surviving_index(shard)[0].offsets[kept])
        rest = np.random.default_rng(0).bytes(4000) if damage == "garbage" else data[start : start + 700]
        shard.write_bytes(data[:start] + rest)
    elif damage == "empty":
        shard.touch()
    elif damage == "a folder":
        shard.mkdir()
    elif damage == "a pipe":
        os.mkfifo(shard)
    if damage != "empty":
        with pytest.raises(UserError, match=r"train-00000\.tar"):
            ShardDataset(folder)
    dataset = ShardDataset(folder, tolerant=True)
    assert len(dataset) == 6
    assert unusable(dataset) == list(range(kept, 3))
    assert [dataset[n].id for n in range(3, 6)] == ["c3", "c4", "c5"]
    assert "train-00000.tar" in caplog.text
    assert f"{3 - kept} of its 3 records are lost" in caplog.text
    assert any("train-00000.tar" in fault for fault in faults(folder))


def test_a_folder_with_hardly_any_readable_record_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", 2, 1)
    for shard in folder.glob("*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match="2 of 2 records are lost"):
        ShardDataset(folder, tolerant=True)


def test_a_missing_shard_of_very_many_records_allocates_nothing(folder: Path) -> None:
    changed(folder, "shards.0.bytes", 2**53)
    changed(folder, "shards.0.records", 2**43)
    (folder / "train-00000.tar").unlink()
    with pytest.raises(UserError, match="are lost"):
        ShardDataset(folder, tolerant=True)


# --- indexes and headers ----------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": [-512, 0, 512]},
        {"offsets": [0, 2**61, 2**62 - 1]},
        {"offsets": [0.0, 1536.0, 4096.0]},
        {"offsets": ["0", "1", "2"]},
        {"offsets": [[0], [1], [2]]},
        {"offsets": [True, True, True]},
        {"offsets": None},
        {"offsets": {"0": 1}},
        {"offsets": [0]},
        {"lengths": [-1, -1, -1]},
        {"lengths": [2**61, 2**61, 2**61]},
        {"lengths": [10**30, 1, 1]},
        {"lengths": [0, 0, 0]},
        {"lengths": [10_000, 10_000, 10_000]},
    ],
)
def test_an_impossible_index_is_rebuilt(change: dict[str, Any], folder: Path) -> None:
    shard = folder / "train-00000.tar"
    fields = json.loads(index_path(shard).read_text())
    index_path(shard).write_text(json.dumps({**fields, **change}))
    assert stored_index(shard) is None
    assert [ShardDataset(folder)[n].id for n in range(3)] == ["c0", "c1", "c2"]
    assert stored_index(shard) is not None


def test_an_index_longer_than_its_tar_is_not_even_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = folder / "train-00000.tar"
    with index_path(shard).open("ab") as file:
        file.truncate(2**40)  # a sparse file
    assert stored_index(shard) is None


def test_check_names_an_index_of_wrong_offsets(folder: Path) -> None:
    """In bounds and in order, but not where samples begin: training would skip intact records."""
    path = index_path(folder / "train-00000.tar")
    fields = json.loads(path.read_text())
    fields["lengths"][0] -= 512
    path.write_text(json.dumps(fields))
    assert unusable(ShardDataset(folder)) == [0]
    assert faults(folder) == [f"{path.name}: does not fit train-00000.tar: delete it, it is made again"]


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"-0000001000\0", b"\x80" + b"\xff" * 11, b"0000000_100\0"]
)
def test_a_header_with_a_false_size_is_damage(size: bytes, folder: Path) -> None:
    shard = folder / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    shard.write_bytes(data)
    index, damage = surviving_index(shard)
    assert len(index) == 0
    assert damage is not None
    assert "train-00000.tar" in damage
    assert len(damage) <= LONGEST_MESSAGE


def test_a_sample_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    info = tarfile.TarInfo("a.json")
    info.size = LARGEST_SAMPLE + 1
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(LARGEST_SAMPLE + 10_240)  # a sparse file
    assert unusable(ShardDataset(path)) == [0]


def test_a_sample_of_a_million_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.tar"
    path.write_bytes(b"".join(tarfile.TarInfo("a.0").tobuf(tarfile.USTAR_FORMAT) for _ in range(11_000)))
    with pytest.raises(RecordError, match="more than 10000 members"):
        ShardDataset(path)[0]


def test_more_bytes_than_requested_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without range requests sends the complete file for every record."""

    class Whole:
        def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
            return b"x" * 1000

    monkeypatch.setattr("dualtoken.data_pipelines.shards.storage._system", lambda url: (Whole(), url))
    with pytest.raises(OSError, match="1000 bytes were sent"):
        Location("http://x/y.tar").read(5, 10)


@pytest.fixture
def url(folder: Path) -> str:
    system = fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    for path in folder.iterdir():
        system.pipe(f"/hostile/{path.name}", path.read_bytes())
    return "memory://hostile"


def test_an_invalid_manifest_behind_a_url_gives_a_message_of_one_line(url: str) -> None:
    system = fsspec.filesystem("memory")
    manifest = json.loads(system.cat_file(f"/hostile/{MANIFEST}"))
    for content in (b"", b"[]", b"\xff", b"[" * 100_000):
        system.pipe(f"/hostile/{MANIFEST}", content)
        with pytest.raises(UserError, match=r"manifest\.json"):
            ShardDataset(url)
    for name in ("../x.tar", "/etc/passwd", "a::file:///etc/x.tar", "https://other/x.tar"):
        manifest["shards"][0]["file"] = name
        system.pipe(f"/hostile/{MANIFEST}", json.dumps(manifest).encode())
        with pytest.raises(UserError, match="not the name of a tar"):
            ShardDataset(url)


def test_damage_behind_a_url_is_reported_as_in_a_folder(url: str, caplog: pytest.LogCaptureFixture) -> None:
    system = fsspec.filesystem("memory")
    system.rm("/hostile/shards.index")
    system.pipe("/hostile/train-00000.index.json", b'{"offsets": [0], "lengths": [-5]}')
    assert unusable(ShardDataset(url)) == []
    assert "is read through once" in caplog.text
    system.pipe("/hostile/train-00000.tar", b"garbage" * 1000)
    with pytest.raises(UserError, match=r"train-00000\.tar"):
        ShardDataset(url)
    assert unusable(ShardDataset(url, tolerant=True)) == [0, 1, 2]
    assert "3 of its 3 records are lost" in caplog.text
    system.rm("/hostile/train-00000.tar")
    assert unusable(ShardDataset(url, tolerant=True)) == [0, 1, 2]


# --- members ----------------------------------------


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def record_json(**changes: Any) -> bytes:
    record = {
        "id": "c1",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "pixel_codes": "0.pixel.npy", "semantic_codes": "0.semantic.npy"}
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        ],
        "metadata": {},
    }
    return json.dumps({**record, **changes}).encode()


def deep(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CODES = "00000001.0.pixel.npy"
HEADER = b"\x93NUMPY\x01\x00"
HOSTILE_MEMBERS: dict[str, tuple[str, bytes | None]] = {
    "code 16 of 16": (CODES, npy(np.full((2, 2, 3), 16, np.uint16))),
    "depth": (CODES, npy(np.zeros((2, 2, 4), np.uint16))),
    "grid": (CODES, npy(np.zeros((2, 3, 3), np.uint16))),
    "flat": (CODES, npy(np.zeros((4, 3), np.uint16))),
    "no codes": (CODES, npy(np.zeros((0, 2, 3), np.uint16))),
    "floats": (CODES, npy(np.zeros((2, 2, 3), np.float32))),
    "objects": (CODES, npy(np.full((2, 2, 3), None, object))),
    "enormous shape": (CODES, npy(np.zeros((2, 2, 3), np.uint16)).replace(b"(2, 2, 3)", b"(2, 2,9**9)")),
    "huge shape": (CODES, npy(np.zeros((2, 2, 3), np.uint16)).replace(b"(2, 2, 3), ", b"(9999999,2)")),
    "nested header": (CODES, HEADER + (9000).to_bytes(2, "little") + b"(" * 9000),
    "long header": (CODES, HEADER + b"\xff\xff" + b" " * 65535),
    "version 9": (CODES, b"\x93NUMPY\x09\x00" + b"\0" * 90),
    "codes cut short": (CODES, npy(np.zeros((2, 2, 3), np.uint16))[:-2]),
    "no bytes": (CODES, b""),
    "missing codes": (CODES, None),
    "missing json": ("00000001.json", None),
    "json is text": ("00000001.json", b"no json"),
    "json is null": ("00000001.json", b"null"),
    "json is Latin-1": ("00000001.json", b'{"id": "\xe9"}'),
    "json of very many lists": ("00000001.json", b'{"id": [' + b"[]," * 3_000_000 + b"[]]}"),
    "deep json": ("00000001.json", b"[" * 100_000),
    "long number": ("00000001.json", b'{"id": ' + b"9" * 5000 + b"}"),
    "metadata text": ("00000001.json", record_json(metadata="x")),
    "metadata list": ("00000001.json", record_json(metadata=[1])),
    "deep metadata": ("00000001.json", record_json(metadata=deep(100))),
    "id null": ("00000001.json", record_json(id=None)),
    "id list": ("00000001.json", record_json(id=["x" * 10_000])),
    "surrogate": ("00000001.json", record_json(id="\ud800")),
    "empty conversation": ("00000001.json", record_json(messages=[])),
    "messages text": ("00000001.json", record_json(messages="hello")),
    "messages of null": ("00000001.json", record_json(messages=[None])),
    "messages missing": ("00000001.json", json.dumps({"id": "x"}).encode()),
    "part is text": ("00000001.json", record_json(messages=[{"role": "user", "content": ["x", 1]}])),
    "image is a list": (
        "00000001.json",
        record_json(messages=[{"role": "user", "content": [{"type": "image", "image": ["x"]}]}]),
    ),
    "image is a path": (
        "00000001.json",
        record_json(messages=[{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]),
    ),
}


@pytest.mark.parametrize("kind", sorted(HOSTILE_MEMBERS))
def test_only_the_record_of_a_hostile_member_is_lost_and_check_names_it(kind: str, folder: Path) -> None:
    """The check finds exactly the records that the stream would skip; the neighbours are read."""
    member, data = HOSTILE_MEMBERS[kind]

    def change(members: dict[str, bytes]) -> None:
        if data is None:
            del members[member]
        else:
            members[member] = data

    rewrite(folder, change)
    assert unusable(ShardDataset(folder)) == [1]
    found = faults(folder)
    assert found
    assert all(fault.startswith("train-00000.tar: record 1 (00000001") for fault in found), found
    assert all(len(fault) < 2 * LONGEST_MESSAGE for fault in found)


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_of_members_affects_only_its_record(
    data: st.DataObject, intact: Path, tmp_path: Path
) -> None:
    """Bytes of members are changed; the check names every record that the stream skips."""
    folder = tmp_path / "fuzzed"
    shutil.copytree(intact, folder, dirs_exist_ok=True)

    def change(members: dict[str, bytes]) -> None:
        name = data.draw(st.sampled_from(["00000001.json", CODES]))
        content = members[name]
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 12)))
        put = data.draw(
            st.binary(max_size=12) | st.sampled_from([b"null", b"[[", b'"\\ud800"', b"-1", b"{}"])
        )
        members[name] = content[:start] + put + content[end:]

    rewrite(folder, change)
    skipped = unusable(ShardDataset(folder))
    assert set(skipped) <= {1}
    if skipped:
        assert any("record 1" in fault for fault in faults(folder))


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_damage_of_a_tar_is_survived(data: st.DataObject, intact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fuzzed"
    shutil.copytree(intact, folder, dirs_exist_ok=True)
    shard = folder / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 6000))
        content[position : position + 1] = data.draw(st.binary(max_size=20))
    shard.write_bytes(content)
    dataset = ShardDataset(folder, tolerant=True)
    assert [dataset[n].id for n in range(len(dataset) - 3, len(dataset))] == ["c3", "c4", "c5"]
    unusable(dataset)
    assert faults(folder)


def test_check_compares_the_sum_of_the_counts(folder: Path) -> None:
    changed(folder, "counts.records", 7)
    assert faults(folder) == ["manifest.json: counts 7 records, its shards have 6"]
    changed(folder, "counts.records", 6)
    changed(folder, "shards.1.records", 2)
    assert any("has 3 records, the manifest states 2" in fault for fault in faults(folder))


# --- nothing, and twice ----------------------------------------


def test_empty_shards_no_records_and_equal_ids(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has no records"):
        ShardDataset(write(tmp_path / "none", 0))
    assert faults(tmp_path / "none") == []
    folder = write(tmp_path / "twice", 2)
    rewrite(folder, lambda members: members.update({"00000001.json": members["00000000.json"]}))
    assert [ShardDataset(folder)[n].id for n in range(2)] == ["c0", "c0"]
    empty = write(tmp_path / "empty", 1)
    rewrite(empty, lambda members: members.clear())
    changed(empty, "shards.0.records", 0)
    changed(empty, "counts.records", 0)
    assert len(ShardDataset(empty)) == 0
    assert faults(empty) == []


# --- what is written can be read ---


def test_a_record_that_readers_would_refuse_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = {"type": "image", "image": np.zeros((1, 1, 3), np.uint8)}
    many = Record("many", [user(*[part] * (MOST_IMAGES + 1), "?"), assistant("no")], {})
    with pytest.raises(RecordError, match=f"at most {MOST_IMAGES}"):
        encode_record(many)
    assert 2 * MOST_IMAGES < tar_index._MOST_MEMBERS  # with codes, too
    monkeypatch.setattr(tar_index, "LARGEST_SAMPLE", 1000)
    with pytest.raises(RecordError, match="at most 1000"):
        encode_record(codes_record(1))


def test_a_shard_that_lost_records_is_not_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train-00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="3 of its 3 records are lost"):
        ShardDataset(folder)
    assert len(ShardDataset(folder, tolerant=True)) == 6
    with pytest.raises(UserError, match="3 of its 3 records are lost"):
        statistics(folder)
    assert main(["prepare", "stats", str(folder)]) == 2
    assert "`dualtoken prepare check` names all damage" in capsys.readouterr().err
