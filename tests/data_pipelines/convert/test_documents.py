"""Plain text and interleaved documents in the published layouts become records; what is missing is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert.converter import Converter
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.interleaved import InterleavedOptions
from dualtoken.data_pipelines.convert.mmc4 import Mmc4Converter
from dualtoken.data_pipelines.convert.obelics import ObelicsConverter
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.convert.text import TextConverter, split_at_borders
from dualtoken.data_pipelines.records import Record
from dualtoken.data_pipelines.shards.reader import ShardDataset


def convert(converter: Converter, folder: Path) -> tuple[list[Record], dict[str, Any]]:
    manifest = write_shards(converter, OutputOptions(folder, progress=False))
    return list(ShardDataset(folder, "all")), manifest


def shape(record: Record) -> list[tuple[str, list[str]]]:
    """The turns: a text as it is, an image as the colour of its first pixel."""

    def part(one: dict[str, Any]) -> str:
        if one["type"] == "text":
            return str(one["text"])
        return "image {}".format(one["image"].convert("RGB").getpixel((0, 0))[0])

    return [(message["role"], [part(one) for one in message["content"]]) for message in record.messages]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images 0.png, 1.png and 2.png, red channel 0, 1 and 2."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


# ---- plain text


def test_text_files_of_a_folder_are_documents(tmp_path: Path) -> None:
    (tmp_path / "books" / "b").mkdir(parents=True)
    (tmp_path / "books" / "a.txt").write_text("First.\n\nSecond.\n")
    (tmp_path / "books" / "b" / "c.TXT").write_bytes("\ufeffDrüben".encode())
    (tmp_path / "books" / "broken.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "books" / "empty.txt").write_text(" \n")
    records, manifest = convert(TextConverter(str(tmp_path / "books")), tmp_path / "out")
    assert [(record.id, shape(record)) for record in records] == [
        ("a.txt", [("assistant", ["First.\n\nSecond."])]),
        ("b/c.TXT", [("assistant", ["Drüben"])]),
    ]
    assert records[0].task() == "text"
    reasons = {item["reason"] for item in manifest["rejected"]["samples"]}
    assert reasons == {"broken.txt: its text is not UTF-8 at byte 0", "its text is empty"}


def test_lines_and_rows_are_documents(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    records, _ = convert(TextConverter(str(lines), documents="line"), tmp_path / "a")
    assert [(record.id, record.texts()) for record in records] == [
        ("lines.txt-1", ["one"]),
        ("lines.txt-3", ["two"]),
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"id": "x", "content": "one"}\nbroken\n{"content": "two!", "url": 1}\n{"content": null}\n'
    )
    records, manifest = convert(TextConverter(str(rows), shortest=3), tmp_path / "b")
    assert [(record.id, record.texts()) for record in records] == [("x", ["one"]), ("train-2", ["two!"])]
    assert manifest["counts"]["rejected"] == 2
    (tmp_path / "x.jsonl").write_text('{"a": "1", "b": "2"}\n')
    with pytest.raises(UserError, match="--text-column; the columns are a, b"):
        TextConverter(str(tmp_path / "x.jsonl"))


def test_text_of_parquet_files_beside_a_licence(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "LICENSE.txt").write_text("not a document")
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, 2]}), folder / "part-0.parquet")
    records, _ = convert(TextConverter(str(folder), held_out=0.5), tmp_path / "out")
    assert sorted(record.texts()[0] for record in records) == ["one", "two"]


def test_long_documents_are_cut_at_the_best_border_and_lose_nothing(tmp_path: Path) -> None:
    sentences = [f"Sentence number {n} is here." for n in range(40)]
    paragraphs = [" ".join(sentences[n : n + 4]) for n in range(0, 40, 4)]
    text = "\n\n".join(paragraphs)
    pieces = split_at_borders(text, 300)
    assert "\n\n".join(pieces) == text  # cut between paragraphs only
    assert all(len(piece) <= 300 for piece in pieces)
    assert " ".join(split_at_borders(" ".join(sentences), 100)) == " ".join(sentences)
    assert all(piece.endswith(".") for piece in split_at_borders(" ".join(sentences), 100))
    assert "".join(split_at_borders("x" * 250, 100)) == "x" * 250
    (tmp_path / "long.txt").write_text(text)
    records, _ = convert(TextConverter(str(tmp_path / "long.txt"), longest=300), tmp_path / "out")
    assert [record.id for record in records] == [f"long.txt-{n}" for n in range(len(pieces))]
    assert [record.texts()[0] for record in records] == pieces


# ---- interleaved


def obelics_row(images: list[str | None], texts: list[str | None]) -> dict[str, Any]:
    metadata = [None if one is None else {"src": one, "alt_text": "", "original_width": 8} for one in images]
    page = {"url": "https://page.example/1", "warc_filename": "x"}
    return {
        "images": images,
        "texts": texts,
        "metadata": json.dumps(metadata),
        "general_metadata": json.dumps(page),
    }


@pytest.fixture
def obelics(tmp_path: Path, images: Path) -> dict[str, Any]:
    """Documents with images by web address, one of which was not downloaded."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def url(n: int) -> str:
        return f"https://pictures.example/{n}"

    rows = [
        obelics_row([url(0), None, url(1), url(2), None, url(0)], [None, "One.", None, None, "Two.", None]),
        obelics_row([None, url(7), None], ["Three.", None, "Four."]),
        obelics_row([url(7)], [None]),
        obelics_row([url(0)], ["both"]),
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "obelics.parquet")
    listed = tmp_path / "images.csv"
    listed.write_text("url,file\n" + "".join(f"{url(n)},{n}.png\n" for n in range(3)))
    return {
        "path": str(tmp_path / "obelics.parquet"),
        "options": {"folder": images, "listed": listed},
    }


def test_obelics_documents_have_a_loss_on_text(obelics: dict[str, Any], tmp_path: Path) -> None:
    converter = ObelicsConverter(obelics["path"], options=InterleavedOptions(**obelics["options"]))
    records, manifest = convert(converter, tmp_path / "out")
    assert [shape(record) for record in records] == [
        [
            ("user", ["image 0"]),
            ("assistant", ["One."]),
            ("user", ["image 1", "image 2"]),
            ("assistant", ["Two."]),
        ],
        [("assistant", ["Three.\n\nFour."])],
    ]
    assert records[0].metadata == {"task": "interleaved", "url": "https://page.example/1"}
    rejected = {item["sample"]: item["reason"] for item in manifest["rejected"]["samples"]}
    assert rejected.keys() == {"train-1, part 2", "train-2, part 1", "row 2", "row 3"}
    assert "'https://pictures.example/7': not in --image-list" in rejected["train-1, part 2"]
    assert rejected["row 2"] == "it has no text"
    assert rejected["row 3"] == "position 1 of its lists has both an image and a text"


def test_images_may_be_targets_and_documents_rejected_for_them(
    obelics: dict[str, Any], tmp_path: Path
) -> None:
    options = InterleavedOptions(images="target", missing="reject", **obelics["options"])
    records, manifest = convert(ObelicsConverter(obelics["path"], options=options), tmp_path / "out")
    assert [shape(record) for record in records] == [
        [("assistant", ["image 0", "One.", "image 1", "image 2", "Two.", "image 0"])]
    ]
    assert manifest["counts"]["rejected"] == 3


def test_documents_of_many_images_become_several_records(obelics: dict[str, Any], tmp_path: Path) -> None:
    options = InterleavedOptions(images="target", max_images=2, **obelics["options"])
    records, _ = convert(ObelicsConverter(obelics["path"], options=options), tmp_path / "out")
    assert [(record.id, shape(record)[0][1]) for record in records[:2]] == [
        ("train-0-0", ["image 0", "One.", "image 1"]),
        ("train-0-1", ["image 2", "Two.", "image 0"]),
    ]


def mmc4_document() -> dict[str, Any]:
    def image(name: str, index: Any, similarity: float) -> dict[str, Any]:
        address = f"https://pictures.example/{name}"
        about = {"image_name": name, "raw_url": address, "face_detections": None}
        return {**about, "matched_text_index": index, "matched_sim": similarity}

    return {
        "url": "https://page.example/2",
        "text_list": ["One.", "Two.", "Three."],
        "image_info": [image("1.png", 1, 0.31), image("0.png", 0, 0.29), image("9.png", 2, 0.3)],
        "similarity_matrix": [[0.1, 0.31, 0.2], [0.29, 0.1, 0.1], [0.1, 0.2, 0.3]],
        "could_have_url_duplicate": 0,
    }


def test_mmc4_documents_have_images_at_their_sentences(tmp_path: Path, images: Path) -> None:
    wrong = mmc4_document()
    wrong["image_info"][0]["matched_text_index"] = 3
    path = tmp_path / "docs_shard_0_v3.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (mmc4_document(), wrong)))
    options = InterleavedOptions(folder=images)
    records, manifest = convert(Mmc4Converter(str(path), options=options), tmp_path / "out")
    assert [shape(record) for record in records] == [
        [
            ("user", ["image 0"]),
            ("assistant", ["One."]),
            ("user", ["image 1"]),
            ("assistant", ["Two. Three."]),
        ]
    ]
    assert records[0].metadata["url"] == "https://page.example/2"
    rejected = {item["sample"]: item["reason"] for item in manifest["rejected"]["samples"]}
    assert rejected.keys() == {"train-0, part 5", "row 1"}
    assert "missing or unreadable" in rejected["train-0, part 5"]
    assert rejected["row 1"] == "an image belongs to sentence 3 of 3"

    both = mmc4_document()
    both["image_info"][1]["matched_text_index"] = 1
    path.write_text(json.dumps(both) + "\n" + json.dumps(mmc4_document()) + "\n")
    after = InterleavedOptions(folder=images, images="target")
    records, _ = convert(Mmc4Converter(str(path), options=after, position="after"), tmp_path / "both")
    assert shape(records[0]) == [("assistant", ["One. Two.", "image 1", "image 0", "Three."])]
    strict = Mmc4Converter(str(path), options=after, position="after", min_similarity=0.3)
    records, manifest = convert(strict, tmp_path / "after")
    assert shape(records[1]) == [("assistant", ["One. Two.", "image 1", "Three."])]
    reasons = [item["reason"] for item in manifest["rejected"]["samples"]]
    assert "its similarity is 0.290; the document is kept without it" in reasons


def test_another_layout_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="no column 'images', as obelics has"):
        ObelicsConverter(str(tmp_path / "x.jsonl"))
    with pytest.raises(UserError, match="no column 'text_list'"):
        Mmc4Converter(str(tmp_path / "x.jsonl"))
