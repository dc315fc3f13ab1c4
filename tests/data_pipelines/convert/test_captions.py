"""Folders, img2dataset's tars and Hugging Face data sets become shards; broken samples are named."""

import io
import json
import pickle
import random
import struct
import tarfile
import zlib
from collections import Counter

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert.captions import CaptionOptions
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.folder import FolderConverter
from dualtoken.data_pipelines.convert.hf import Columns, HuggingFaceConverter
from dualtoken.data_pipelines.convert.llava import LlavaConverter
from dualtoken.data_pipelines.convert.samples import ImageOptions, OutputOptions
from dualtoken.data_pipelines.convert.tar_patterns import find_tars
from dualtoken.data_pipelines.convert.tar_samples import tar_samples
from dualtoken.data_pipelines.convert.webdataset import WebDatasetConverter
from dualtoken.data_pipelines.job import REJECTED
from dualtoken.data_pipelines.records import RecordError
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.sample_codec import encode_record
from dualtoken.data_pipelines.shards.stored_image import stored_image
from dualtoken.data_pipelines.small_sets.convert_sets import LabelsConverter


def picture(shade: int = 0, kind: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    noise = random.Random(shade).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(buffer, kind)
    return buffer.getvalue()


def huge_png(side: int = 10_000) -> bytes:
    """A PNG of 100 megapixels whose header is right: to decode it would cost 300 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_tar(path, samples) -> None:
    """samples: (key, {ending: bytes})."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def output(tmp_path):
    return OutputOptions(tmp_path / "shards", progress=False)


def read(output, split="train"):
    dataset = ShardDataset(output.folder, split)
    return [dataset[index] for index in range(len(dataset))]


def turns(record):
    return [(m["role"], [p.get("text", "IMAGE") for p in m["content"]]) for m in record.messages]


def reasons(output):
    lines = (output.folder / REJECTED).read_text().splitlines()
    return {item["sample"]: item["reason"] for item in map(json.loads, lines)}


# --- folders ---


def test_captions_next_to_the_images(tmp_path, output):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.png", "none.jpg", "empty.jpg", "cut.jpg", "big.png"):
        (folder / name).write_bytes(picture(kind="PNG" if name.endswith("png") else "JPEG"))
    (folder / "cut.jpg").write_bytes(picture(1, size=(200, 200))[:3000])
    (folder / "big.png").write_bytes(huge_png())
    (folder / "a.txt").write_text("\ufeffa cat\n", encoding="utf-8")
    (folder / "b.caption").write_text("a dog")
    (folder / "sub/c.json").write_text(json.dumps({"caption": ["a fish", "two fish"]}))
    for name, text in {"empty": " \n", "cut": "x", "big": "x"}.items():
        (folder / f"{name}.txt").write_text(text)
    assert FolderConverter(folder).total() == 7
    manifest = write_shards(FolderConverter(folder, licence="CC0"), output)
    assert manifest["licence"] == "CC0"
    question = ("user", ["IMAGE", "Describe the image."])
    assert {record.id: turns(record) for record in read(output)} == {
        "a": [question, ("assistant", ["a cat"])],
        "b": [question, ("assistant", ["a dog"])],
        "sub/c-0": [question, ("assistant", ["a fish"])],
        "sub/c-1": [question, ("assistant", ["two fish"])],
    }
    left_out = reasons(output)
    assert manifest["counts"]["rejected"] == len(left_out) == 4
    assert "no caption next to it" in left_out["none.jpg"]
    assert "empty" in left_out["empty.jpg"]
    assert "truncated" in left_out["cut.jpg"]
    assert "10000 x 10000" in left_out["big.png"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_list_names_the_images(tmp_path, output, kind):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(data := picture())
    rows = [("a.jpg", 'a "red", cat'), ("lost.jpg", "x")]
    if kind == "jsonl":
        text = "".join(json.dumps({"file_name": f, "text": t}) + "\n" for f, t in rows) + "{broken\n[1]\n"
    else:
        comma = {"csv": ",", "tsv": "\t"}[kind]
        quoted = [f'{f}{comma}"{t.replace(chr(34), chr(34) * 2)}"' for f, t in rows]
        text = "\n".join([f"file_name{comma}text", *quoted])
    (folder / f"metadata.{kind}").write_text(text)
    options = CaptionOptions("t2i")
    write_shards(FolderConverter(folder, options=options), output)
    (record,) = read(output)
    assert turns(record) == [("user", ['a "red", cat']), ("assistant", ["IMAGE"])]
    assert record.metadata["task"] == "t2i"
    assert "missing" in reasons(output)["lost.jpg"]
    assert len(reasons(output)) == (3 if kind == "jsonl" else 1)
    with tarfile.open(output.folder / "train-00000.tar") as tar:
        assert tar.extractfile("00000000000.0.jpg").read() == data, "photos keep their bytes"


def test_wrong_columns_and_folders_are_a_users_mistake(tmp_path, output):
    (tmp_path / "l.csv").write_text("name,words\na.jpg,x\n")
    with pytest.raises(UserError, match="--image-column as one of name, words"):
        write_shards(FolderConverter(tmp_path, tmp_path / "l.csv"), output)
    with pytest.raises(UserError, match="not a folder"):
        FolderConverter(tmp_path / "l.csv")
    assert not output.folder.exists()
    assert not output.folder.with_name("shards.partial").exists()


def test_both_tasks_of_an_image_are_in_one_split(tmp_path, output):
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(picture())
        (tmp_path / f"{number}.txt").write_text("x")
    options = CaptionOptions("all", images=ImageOptions(held_out=0.3))
    write_shards(FolderConverter(tmp_path, options=options), output)
    held_out = {record.id.removesuffix("-t2i") for record in read(output, "heldout")}
    train = {record.id.removesuffix("-t2i") for record in read(output)}
    assert 4 <= len(held_out) <= 20
    assert not held_out & train
    assert len(held_out) + len(train) == 40
    assert len(read(output)) == 2 * len(train)


# --- WebDataset tars ---


def test_tars_of_img2dataset(tmp_path, output):
    facts = {"caption": "from json", "url": "u", "exif": "{}"}
    failed = {"caption": "c", "status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    samples = [
        ("000000000", {"jpg": picture(), "txt": b"a cat", "json": json.dumps(facts).encode()}),
        ("000000001", {"webp": picture(1, "WEBP"), "json": json.dumps(facts).encode()}),
        ("000000002", {"json": json.dumps(failed).encode(), "txt": b"c"}),
        ("000000003", {"png": picture(2, "PNG")}),
        ("000000004", {"jpg": b"html", "txt": b"x"}),
    ]
    write_tar(tmp_path / "00000.tar", samples)
    write_shards(WebDatasetConverter(find_tars([str(tmp_path)]), options=CaptionOptions("t2i")), output)
    records = read(output)
    assert [(record.id, record.texts()) for record in records] == [
        ("00000/000000000", ["a cat"]),
        ("00000/000000001", ["from json"]),
    ]
    assert records[0].metadata == {"task": "t2i", "url": "u"}
    left_out = reasons(output)
    assert "404" in left_out["00000.tar: 000000002"]
    assert "no caption" in left_out["00000.tar: 000000003"]
    assert "is not an image" in left_out["00000.tar: 000000004"]


@pytest.mark.parametrize("cut", ["content", "header", "boundary", "noise"])
def test_a_damaged_tar_gives_what_stands_before_the_damage(tmp_path, output, cut):
    samples = [(f"{n:03d}", {"jpg": picture(n), "txt": b"x"}) for n in range(6)]
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", samples)
    path = tmp_path / "a.tar"
    *_, last = tar_samples(path, Counter())
    content, _ = last.members["jpg"]
    data = path.read_bytes()
    if cut == "noise":
        path.write_bytes(data[: content - 512] + random.Random(0).randbytes(512) + data[content:])
    else:
        path.write_bytes(data[: content + {"content": 100, "header": -300, "boundary": -512}[cut]])
    write_shards(WebDatasetConverter(find_tars([str(tmp_path / "{a,b}.tar")])), output)
    assert [record.id for record in read(output)] == [
        *(f"a/00{n}" for n in range(5)),
        *(f"b/00{n}" for n in range(6)),
    ]
    assert list(reasons(output)) == ["a.tar"]


def test_names_globs_and_ranges_of_tars(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"{number:05d}.tar", [])
    root = str(tmp_path)
    assert [path.name for path in find_tars([root + "/{00009..00010}.tar"])] == ["00009.tar", "00010.tar"]
    assert len(find_tars([root + "/*1.tar", root + "/00001.tar"])) == 2
    assert len(find_tars([root])) == 12
    with pytest.raises(UserError, match=r"00012\.tar"):
        find_tars([root + "/{00011..00012}.tar"])


# --- Hugging Face data sets ---


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets")
    photo = {"bytes": picture(), "path": None}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    columns = {
        "image": [photo, {"bytes": picture()[:300], "path": None}, None, photo],
        "caption": ["a cat", "cut", "no image", None],
        "question": ["what?", "x", "and without?", "y"],
        "answer": ["cat", "x", "fine", ""],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("stored", ["parquet", "folder", "disk"])
def test_captions_of_a_data_set(tmp_path, output, rows, stored):
    path = tmp_path / ("d.parquet" if stored == "parquet" else "d")
    if stored == "disk":
        rows.save_to_disk(path)
    else:
        path.mkdir() if stored == "folder" else None
        rows.to_parquet(path if stored == "parquet" else path / "train-0.parquet")
    if stored == "folder":
        intact = (path / "train-0.parquet").read_bytes()
        (path / "train-1.parquet").write_bytes(intact[: len(intact) // 2])
        (path / "test-0.parquet").write_bytes(intact)
    source = HuggingFaceConverter(str(path), columns=Columns(caption="caption"))
    manifest = write_shards(source, output)
    (record,) = read(output)
    assert (record.id, record.texts()) == ("train-0", ["Describe the image.", "a cat"])
    damaged = {"train-1.parquet"} if stored == "folder" else set()
    assert set(reasons(output)) == {"row 1", "row 2", "row 3"} | damaged
    assert manifest["counts"]["images"] == 1


def test_questions_of_a_data_set_and_their_text_only_rows(tmp_path, output, rows):
    rows.to_parquet(tmp_path / "d.parquet")
    write_shards(HuggingFaceConverter(str(tmp_path / "d.parquet")), output)
    assert [turns(record) for record in read(output)] == [
        [("user", ["IMAGE", "what?"]), ("assistant", ["cat"])],
        [("user", ["and without?"]), ("assistant", ["fine"])],
    ]


def test_conversations_of_a_data_set(tmp_path, output):
    datasets = pytest.importorskip("datasets")
    photo = {"bytes": picture(), "path": None}
    dialogue = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "<image>"}]
    pair = [{"from": "human", "value": "which?"}, {"from": "gpt", "value": "both"}]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "conversations": datasets.List(
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ),
        }
    )
    data = datasets.Dataset.from_dict(
        {"images": [[photo], [photo, photo], []], "conversations": [dialogue, pair, pair]}, features=features
    )
    data.save_to_disk(tmp_path / "d")
    write_shards(HuggingFaceConverter(str(tmp_path / "d")), output)
    assert [turns(record) for record in read(output)] == [
        [("user", ["draw"]), ("assistant", ["IMAGE"])],
        [("user", ["IMAGE", "IMAGE", "which?"]), ("assistant", ["both"])],
        [("user", ["which?"]), ("assistant", ["both"])],
    ]


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        (Columns(caption="words"), "'words'"),
        (Columns(question="question"), "--answer-column"),
        (Columns(caption="caption", images=("image", "image")), "one --image-column"),
    ],
)
def test_wrong_columns_are_named_with_those_there_are(tmp_path, rows, columns, word):
    rows.to_parquet(tmp_path / "d.parquet")
    with pytest.raises(UserError, match=word):
        HuggingFaceConverter(str(tmp_path / "d.parquet"), columns=columns)


def test_a_data_set_that_is_not_there_is_a_users_mistake():
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="nobody/nothing"):
        HuggingFaceConverter("nobody/nothing")


# --- LLaVA ---


def test_broken_llava_entries_are_named(tmp_path, output):
    (tmp_path / "huge.png").write_bytes(huge_png())
    (tmp_path / "cut.jpg").write_bytes(picture(1, size=(200, 200))[:3000])
    (tmp_path / "a.jpg").write_bytes(picture())
    ask = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}]
    entries = [
        {"id": "good", "image": "a.jpg", "conversations": ask, "kind": "extra"},
        {
            "id": "roles",
            "images": ["a.jpg"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
                {"role": "assistant", "content": "y"},
            ],
        },
        {"id": "silent", "image": "a.jpg"},
        {"id": "untaught", "image": "a.jpg", "conversations": ask[:1]},
        {"id": "huge", "image": "huge.png", "conversations": ask},
        {"id": "cut", "image": "cut.jpg", "conversations": ask},
        {"id": "lost", "image": "lost.jpg", "conversations": ask},
        {"id": "web", "image": "http://x/a.jpg", "conversations": ask},
        {"id": "mute", "conversations": [{"from": "human"}]},
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes("".join(json.dumps(e) + "\n" for e in entries).encode() + b'{"id": "\xff", cut\n')
    manifest = write_shards(LlavaConverter(path), output)
    assert LlavaConverter(path, tmp_path).total() == 10
    assert [record.id for record in read(output)] == ["good", "roles"]
    assert read(output)[0].metadata == {"kind": "extra", "images": ["a.jpg"]}
    assert turns(read(output)[1])[0] == ("user", ["IMAGE", "what?"])
    named = reasons(output)
    assert manifest["counts"]["rejected"] == len(named) == 8
    for name, word in {
        "entry 3 (silent)": "conversations",
        "entry 4 (untaught)": "nothing to learn",
        "entry 5 (huge)": "10000 x 10000",
        "entry 6 (cut)": "truncated",
        "entry 7 (lost)": "missing",
        "entry 8 (web)": "web address",
        "entry 9 (mute)": "no text",
        "entry 10": "not JSON: not UTF-8 at byte 8",
    }.items():
        assert word in named[name]


def test_an_image_over_the_limit_is_refused_before_it_is_decoded():
    # Were it decoded, the reason would be its missing pixels.
    with pytest.raises(RecordError, match="at most 64000000 are allowed"):
        stored_image(huge_png(), "x")
    with pytest.raises(RecordError, match="20000 x 20000 pixels; at most 64000000 are allowed"):
        stored_image(huge_png(20_000), "x")
    with pytest.raises(RecordError, match="at most 100 are"):
        stored_image(picture(), "x", None, 100)


# --- worker processes ---


def test_sources_travel_to_worker_processes(tmp_path, rows):
    """What a source makes of a payload is the same after both were pickled."""
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "meta.jsonl").write_text(json.dumps({"file": "a.jpg", "label": "cat"}))
    write_tar(tmp_path / "a.tar", [("0", {"jpg": picture(), "txt": b"a cat"})])
    dialogue = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "cat"}]
    (tmp_path / "l.json").write_text(json.dumps([{"image": "a.jpg", "conversations": dialogue}]))
    rows.to_parquet(tmp_path / "d.parquet")
    sources = [
        FolderConverter(tmp_path),
        WebDatasetConverter([tmp_path / "a.tar"]),
        LlavaConverter(tmp_path / "l.json", tmp_path),
        HuggingFaceConverter(str(tmp_path / "d.parquet"), columns=Columns(caption="caption")),
        LabelsConverter(tmp_path, question="?"),
    ]
    for source in sources:
        sample = next(source.samples())
        (here,) = source.records(sample.payload)
        there, payload = pickle.loads(pickle.dumps((source, sample.payload)))
        assert encode_record(next(iter(there.records(payload)))[0]) == encode_record(here[0])


def test_a_damaged_part_of_a_parquet_file_costs_its_own_rows(output, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    photo = {"bytes": picture(), "path": "a.png"}
    for name in ("a", "b"):
        table = pyarrow.table({"image": [photo] * 6, "caption": [f"{name}{n}" for n in range(6)]})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    file = tmp_path / "a.parquet"
    data = bytearray(file.read_bytes())
    start = parquet.read_metadata(file).row_group(1).column(0).dictionary_page_offset
    data[start : start + 20] = bytes(20)
    file.write_bytes(data)

    manifest = write_shards(HuggingFaceConverter(str(tmp_path)), output)
    dataset = ShardDataset(output.folder)
    assert [dataset[n].texts()[-1] for n in range(len(dataset))] == [
        *("a0", "a1", "a4", "a5"),
        *(f"b{n}" for n in range(6)),
    ]
    lost = manifest["rejected"]["samples"]
    assert [item["sample"] for item in lost] == ["row 2", "row 3"]
    assert all("a.parquet is damaged" in item["reason"] for item in lost)
    # Rows are numbered as if nothing had been lost, so a run that was stopped resumes at the right one.
    source = HuggingFaceConverter(str(tmp_path))
    assert [
        sample.name if hasattr(sample, "name") else sample.sample for sample in source.samples_from(3)
    ] == [f"row {n}" for n in range(3, 12)]


def test_odd_columns_of_parquet_cost_a_row_or_nothing(output, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    photo = {"bytes": picture(), "path": None}
    captions = pyarrow.array([2**60, 0], pyarrow.date64())  # a date that Python has not
    parquet.write_table(pyarrow.table({"image": [photo] * 2, "caption": captions}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="row 0: it cannot be read"):
        write_shards(HuggingFaceConverter(str(tmp_path / "d.parquet")), output)
    twice = pyarrow.table([[photo], ["x"], ["y"]], names=["image", "caption", "caption"])
    parquet.write_table(twice, tmp_path / "d.parquet")
    assert write_shards(HuggingFaceConverter(str(tmp_path / "d.parquet")), output)["counts"]["records"] == 1


def test_options_that_mean_nothing_for_a_file_are_said(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.csv").write_text("image,caption\na.png,x\n")
    for given, message in (
        ({"path": str(tmp_path / "a.txt")}, "give a file of .parquet"),
        ({"path": str(tmp_path / "a.csv"), "config": "x"}, "--config 'x' belongs to a hub id"),
        (
            {"path": str(tmp_path / "a.csv"), "image_folder": tmp_path / "none"},
            "--image-folder .* is not a folder",
        ),
    ):
        with pytest.raises(UserError, match=message):
            HuggingFaceConverter(**given)
