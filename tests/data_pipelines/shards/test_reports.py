"""`dualtoken prepare check` names file, record and fault; `stats` counts tasks, roles, sizes, rejections."""

import io
import json
import random
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dualtoken.common.files import file_checksum
from dualtoken.data_pipelines.records import EncodedImage, Record, assistant, image_part, user
from dualtoken.data_pipelines.shards.check import check_shards
from dualtoken.data_pipelines.shards.format import MANIFEST, read_manifest
from dualtoken.data_pipelines.shards.statistics import distribution, statistics
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.scripts.cli import main


def jpeg(size=(40, 30)) -> EncodedImage:
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3)).save(buffer, "JPEG")
    return EncodedImage(buffer.getvalue(), "jpg")


@pytest.fixture
def folder(tmp_path):
    """Two shards: four questions about images; two generated images, a text and a record of codes."""
    codes = np.zeros((2, 2, 3), np.uint16)
    records = [Record(f"q{n}", [user(image_part(jpeg()), "what is it?"), assistant("x")]) for n in range(4)]
    records += [Record(f"d{n}", [user("draw"), assistant(image_part(jpeg((20, 50))))]) for n in range(2)]
    records.append(Record("t", [user("one two"), assistant("three")]))
    part = {"type": "image", "pixel_codes": codes, "semantic_codes": codes}
    records.append(Record("c", [user(part, part, "same?"), assistant("yes")]))
    with ShardWriter(tmp_path / "data", source="test", licence="MIT", shard_size=4) as writer:
        for record in records:
            writer.write(record)
        writer.reject("lost.jpg", "image 'lost.jpg': missing")
    return tmp_path / "data"


def faults(folder, **options):
    return [fault for _, found in check_shards(folder, **options) for fault in found]


def rewrite(folder, name, change):
    """Change the members of a shard, {name: bytes}, and bring the manifest's checksum up to date."""
    path = folder / name
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        if shard["file"] == name:
            shard |= {"sha256": file_checksum(path), "bytes": path.stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_an_intact_folder_has_no_fault(folder, capsys):
    assert faults(folder) == []
    assert main(["prepare", "check", str(folder), "--no-progress"]) == 0
    assert "2 shards, no fault" in capsys.readouterr().out


def test_a_changed_byte_is_found(folder, capsys):
    with (folder / "train-00001.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"#")
    (first, *_) = faults(folder)
    assert (first.file, first.record) == ("train-00001.tar", None)
    assert "SHA-256" in first.reason
    assert main(["prepare", "check", str(folder), "--no-progress"]) == 2
    assert "train-00001.tar: its SHA-256 differs" in capsys.readouterr().out


def test_a_truncated_tar_is_found_with_the_records_before_the_cut(folder):
    path = folder / "train-00000.tar"
    path.write_bytes(path.read_bytes()[:6000])
    size, *_, cut = faults(folder)
    assert "bytes, the manifest states" in size.reason
    assert "damaged tar" in cut.reason
    assert cut.record in ("after 1 records", "after 2 records")


def test_missing_and_unknown_shards_are_found(folder):
    (folder / "train-00000.tar").rename(folder / "train-00007.tar")
    named = {fault.file: fault.reason for fault in faults(folder)}
    assert named["train-00000.tar"] == "missing"
    assert "is not in manifest.json" in named["train-00007.tar"]


def without(record, messages):
    return json.dumps({"id": record, "messages": messages, "metadata": {}}).encode()


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("00000001.0.jpg", jpeg((400, 300)).data[:4000], "truncated"),
        ("00000001.0.jpg", b"text", "not an image"),
        ("00000001.0.jpg", None, "'0.jpg' is missing"),
        ("00000001.1.jpg", b"text", "'1.jpg' belongs to no image part"),
        ("00000001.json", b"{", "is not a record"),
        ("00000001.json", b"[]", "is not a record"),
        ("00000001.json", None, "no .json"),
        ("00000001.json", without("q", [{"role": "cat", "content": []}]), "role 'cat'"),
        ("00000001.json", without("q", []), "has no messages"),
        ("00000001.json", without("q", [user("a")]), "nothing to learn"),
        ("00000001.json", without("q", [user("a"), assistant(" ")]), "nothing to learn"),
    ],
)
def test_a_fault_of_a_record_is_named(folder, member, data, reason):
    def change(members):
        if data is None:
            del members[member]
        else:
            members[member] = data

    def in_order(members):
        change(members)
        ordered = dict(sorted(members.items()))
        members.clear()
        members.update(ordered)

    rewrite(folder, "train-00000.tar", in_order)
    found = faults(folder)
    assert any(reason in fault.reason for fault in found), found
    assert {fault.file for fault in found} == {"train-00000.tar"}
    assert all(fault.record.startswith("record 1 (00000001") for fault in found)


def test_broken_codes_and_images_over_the_limit_are_found(folder):
    rewrite(folder, "train-00001.tar", lambda members: members.update({"00000007.0.pixel.npy": b"x" * 80}))
    (fault,) = faults(folder)
    assert "record 3" in fault.record
    assert "codes cannot be read" in fault.reason
    assert sum("at most 1100 are allowed" in fault.reason for fault in faults(folder, max_pixels=1100)) == 4


def test_faults_as_json_and_a_folder_without_manifest(folder, tmp_path, capsys):
    (folder / "train-00000.tar").unlink()
    assert main(["prepare", "check", str(folder), "--json", "--no-progress"]) == 2
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault == {"file": "train-00000.tar", "record": None, "reason": "missing"}
    assert main(["prepare", "check", str(tmp_path)]) == 2
    assert "not a folder of shards" in capsys.readouterr().err


def test_statistics_count_tasks_roles_sizes_and_rejections(folder):
    facts = statistics(folder)
    assert facts["tasks"] == {"vqa": 5, "t2i": 2, "text": 1}
    assert facts["images_per_record"] == {"0": 1, "1": 6, "2": 1}
    assert facts["image_formats"] == {"JPEG": 6}
    assert facts["codes"] == {"2 x 2 x 3": 2}
    assert facts["image_width"] == {"min": 20, "median": 40, "mean": 33.3, "p95": 40, "max": 40}
    about_user, about_assistant = facts["roles"]["user"], facts["roles"]["assistant"]
    assert (about_user["turns"], about_user["texts"], about_user["images"]) == (8, 8, 6)
    assert (about_assistant["texts"], about_assistant["images"]) == (6, 2)
    assert about_user["words_per_text"]["max"] == 3
    assert facts["rejected"] == {"samples": 1, "reasons": {"image …: missing": 1}}
    assert facts["unreadable"] == []


def test_the_statistics_of_a_distribution():
    values = list(range(1, 101))
    assert distribution(Counter(values)) == {"min": 1, "median": 50, "mean": 50.5, "p95": 95, "max": 100}
    assert distribution(Counter()) is None


def test_the_table_the_json_and_the_sheet(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["prepare", "stats", str(folder), "--sheet", str(sheet), "--samples", "5"]) == 0
    table = capsys.readouterr().out
    assert "vqa 5, t2i 2, text 1" in table
    assert "image …: missing" in table
    with Image.open(sheet) as opened:
        colours = opened.convert("RGB").getcolors(1 << 24)
        assert opened.width > 5 * 256
        assert len(colours) > 1000, "the noise of the images is on it"
    assert main(["prepare", "stats", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 8
    assert main(["prepare", "stats", str(folder), "--sheet", "sheet.jpg"]) == 2


@pytest.mark.parametrize("kind", ["check", "stats"])
def test_help_has_an_example(kind, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", kind, "--help"])
    assert f"dualtoken prepare {kind} data/" in capsys.readouterr().out
