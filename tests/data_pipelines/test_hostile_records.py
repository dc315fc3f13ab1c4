"""Conversations, captions and rows as people have them: what is unusable costs itself only, and is named."""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.common.json_files import parse_json
from dualtoken.data_pipelines.convert.captions import caption_list
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.folder import FolderConverter
from dualtoken.data_pipelines.convert.hf import HuggingFaceConverter
from dualtoken.data_pipelines.convert.llava import LlavaConverter, llava_record
from dualtoken.data_pipelines.convert.rows import read_entries
from dualtoken.data_pipelines.convert.samples import ImageOptions, OutputOptions
from dualtoken.data_pipelines.job import REJECTED
from dualtoken.data_pipelines.records import Record, RecordError
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.sample_codec import decode_record, encode_record
from dualtoken.data_pipelines.small_sets.convert_sets import LabelsConverter
from dualtoken.mllm import render


def png(size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


PICTURE = png()
ASKED = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def dialogue(user: Any, assistant: Any = "a") -> list[dict[str, Any]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(PICTURE)
    return tmp_path


@pytest.fixture
def output(tmp_path: Path) -> OutputOptions:
    return OutputOptions(tmp_path / "shards", progress=False)


def texts(output: OutputOptions, split: str = "train") -> list[list[str]]:
    dataset = ShardDataset(output.folder, split)
    return [dataset[index].texts() for index in range(len(dataset))]


def reasons(output: OutputOptions) -> dict[str, str]:
    lines = (Path(output.folder) / REJECTED).read_text(encoding="utf-8").splitlines()
    return {item["sample"]: item["reason"] for item in map(json.loads, lines)}


# --- entries of LLaVA's kind ---


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"conversations": SAID}, ["q", "a"]),
        ({"id": None, "image": None, "messages": dialogue("q")}, ["q", "a"]),
        ({"conversations": None, "messages": dialogue("q")}, ["q", "a"]),
        ({"conversations": [{"from": None, "value": None, **turn} for turn in dialogue("q")]}, ["q", "a"]),
        ({"conversations": [{"role": None, "content": None, **turn} for turn in SAID]}, ["q", "a"]),
        ({"messages": dialogue(3, True)}, ["3", "True"]),
        ({"messages": dialogue("\ufeffq")}, ["q", "a"]),
        ({"messages": dialogue([{"type": "text", "text": "q"}, "?"])}, ["q?", "a"]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, ["q", "a"]),
        ({"conversations": json.dumps(SAID)}, ["q", "a"]),
        ({"conversations": [{"user": "q", "assistant": "a"}]}, ["q", "a"]),
        ({"conversations": [{"from": "Human", "value": "q"}, SAID[1]]}, ["q", "a"]),
        ({"messages": dialogue("write <video controls></video>")}, ["write <video controls></video>", "a"]),
    ],
)
def test_spellings_of_an_entry(folder, entry, said):
    record = llava_record(entry, folder, "default")
    assert record.texts() == said
    assert record.id == "default"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "not a JSON object"),
        ([], "not a JSON object"),
        ({}, "'conversations' or 'messages'"),
        ({"conversations": 7}, "list of turns"),
        ({"conversations": "nonsense"}, "not JSON"),
        ({"conversations": ["q", "a"]}, "a turn is 'q'"),
        ({"conversations": {"from": ["human"], "value": ["q", "a"]}}, "equal length"),
        ({"messages": dialogue([{"type": "text", "text": None}])}, "no text"),
        ({"messages": dialogue([{"type": "text", "content": "q"}])}, "no text"),
        ({"messages": dialogue(None)}, "no text"),
        ({"messages": dialogue({"text": "q"})}, "not a string"),
        ({"messages": [{"role": None, "content": "q"}]}, "from None"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "from 'tool'"),
        ({"id": ["x"], "messages": dialogue("q")}, "its id is .*, not a string"),
        ({"id": "x\ud83d", "messages": dialogue("q")}, "UTF-8"),
        ({"note": "x\ud83d", "messages": dialogue("q")}, "surrogate"),
        ({"messages": dialogue("q\ud83d")}, "surrogate"),
        ({"messages": dialogue("q\0")}, "NUL"),
        ({"video": "v.mp4", "conversations": ASKED}, "'video' is video, which is not supported"),
        ({"videos": ["v.mp4"], "image": "a.png", "conversations": ASKED}, "is video"),
        ({"audio": "v.wav", "conversations": SAID}, "is audio"),
        ({"conversations": [{"from": "human", "value": "<video>\nWhat?"}, SAID[1]]}, "mark <video> is video"),
        (
            {"image": "a.png", "messages": dialogue([{"type": "video", "video": "v.mp4"}, "q"])},
            r"differ|is video",
        ),
        ({"messages": dialogue([{"type": "input_audio", "input_audio": {}}])}, "is audio"),
        ({"messages": dialogue([{"type": "table"}])}, "allowed are text and image"),
        ({"image": 5, "conversations": ASKED}, "an image name is 5, not a string"),
        ({"image": {"path": "a.png"}, "conversations": ASKED}, "an image name is .*, not a string"),
        ({"image": "a.png", "conversations": SAID}, "differ"),
        ({"image": "https://x/a.png", "conversations": ASKED}, "web address"),
        ({"image": "/dev/zero", "conversations": ASKED}, "leads out"),
        ({"image": "../a.png", "conversations": ASKED}, "leads out"),
        ({"image": "none.png", "conversations": ASKED}, "missing"),
        ({"image": "pipe.png", "conversations": ASKED}, "not a file"),
        ({"image": "a\0.png", "conversations": ASKED}, "not the name"),
        ({"image": "caf\udce9.png", "conversations": ASKED}, "missing"),
        ({"image": "half\ud83d.png", "conversations": ASKED}, "missing"),
        ({"image": "data:image/png;base64,%%%", "conversations": ASKED}, "base64"),
    ],
)
def test_the_reason_names_what_is_wrong_with_an_entry(folder, entry, reason):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(RecordError, match=reason) as caught:
        llava_record(entry, folder, "default")
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
def test_an_image_in_the_entry_itself_is_decoded_and_never_quoted(folder, output, prefix):
    inline = prefix + base64.b64encode(png((120, 120))).decode()
    broken = prefix + base64.b64encode(png((120, 120))[:900]).decode()
    (folder / "l.json").write_text(
        json.dumps(
            [{"id": n, "image": image, "conversations": ASKED} for n, image in enumerate((inline, broken))]
        )
    )
    manifest = write_shards(LlavaConverter(folder / "l.json"), output)
    record = ShardDataset(output.folder)[0]
    assert record.image_parts()[0]["image"].size == (120, 120)
    assert record.metadata == {"images": ["in the entry"]}
    assert inline[-40:] not in json.dumps(manifest)
    assert len(reasons(output)["entry 2 (1)"]) < 300


def test_parts_may_name_their_own_image(folder):
    inline = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    parts = [{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": inline}}, "q"]
    record = llava_record({"messages": dialogue(parts)}, folder, "x")
    assert [part["image"].data for part in record.image_parts()] == [PICTURE, PICTURE]
    absolute = {"image": str(folder / "a.png"), "conversations": ASKED}
    assert llava_record(absolute, folder, "x").image_parts()[0]["image"].data == PICTURE


def test_links_in_the_image_folder_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    (elsewhere / "b.png").write_bytes(PICTURE)
    (folder / "more").symlink_to(elsewhere)
    record = llava_record({"image": "more/b.png", "conversations": ASKED}, folder, "x")
    assert record.image_parts()[0]["image"].data == PICTURE


HOSTILE = [
    b'{"id": "caf\xe9", "conversations": []}',
    b"[" * 100_000 + b"]" * 100_000,
    b'{"id": "\\ud83d"}',
    b'{"id": 1' + b"0" * 5000 + b"}",
]


@pytest.mark.parametrize("lines", [False, True])
def test_a_hostile_entry_costs_itself_only(folder, output, lines):
    good = json.dumps({"conversations": SAID, "similarity": 0.5}).replace("0.5", "NaN").encode()
    bad = [*HOSTILE, b'{"id": "deep", "metadata": ' + b"[" * 62 + b"]" * 62 + b', "messages": []}']
    given = [entry for one in bad for entry in (one, good)]
    path = folder / "l.json"
    path.write_bytes(b"\xef\xbb\xbf" + (b"\n".join(given) if lines else b"[" + b",\n".join(given) + b"]"))
    manifest = write_shards(LlavaConverter(path), output)
    assert texts(output) == [["q", "a"]] * len(bad)
    assert ShardDataset(output.folder)[0].metadata == {"similarity": None}
    assert manifest["counts"]["rejected"] == len(bad)
    words = " ".join(reasons(output).values())
    for word in ("UTF-8", "deeper than 64", "surrogate", "digits"):
        assert word in words


def test_only_a_line_feed_ends_a_line_of_json(folder):
    odd = "a\u2028b\x85c\x0bd"
    path = folder / "l.jsonl"
    path.write_text(json.dumps({"q": odd}, ensure_ascii=False) + "\r\n\n" + json.dumps({"q": 1}), "utf-8")
    assert list(read_entries(path)) == [{"q": odd}, {"q": 1}]


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", "[{}] trailing", "[" * 100_000, '[{"a": "no end]'])
def test_a_list_with_broken_syntax_is_one_line(folder, output, text):
    (folder / "l.json").write_text(text)
    with pytest.raises(UserError, match="not valid JSON"):
        write_shards(LlavaConverter(folder / "l.json"), output)


# --- captions ---


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("\ufeff a cat\n", ["a cat"]),
        (3, ["3"]),
        (True, ["True"]),
        (["a", None, " ", 2.5, float("nan")], ["a", "2.5"]),
    ],
)
def test_captions_have_one_rule(value, captions):
    assert caption_list(value) == captions


@pytest.mark.parametrize("value", [None, "", "\ufeff ", [], [None], float("nan"), {"en": "x"}, [["a"]]])
def test_what_is_no_caption_is_refused(value):
    with pytest.raises(RecordError, match=r"its caption|no caption"):
        caption_list(value)


def test_rows_of_small_sets_have_the_same_rule(folder, output):
    rows = [
        {"file": "a.png", "label": label, "split": None}
        for label in ("cat", None, " ", ["cat"], 7, "half \ud83d")
    ]
    (folder / "meta.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    manifest = write_shards(LabelsConverter(folder, variants=3), output)
    assert {text for record in texts(output) for text in record if text in ("cat", "7", "None")} == {
        "cat",
        "7",
    }
    assert manifest["counts"]["rejected"] == 4


def test_a_comma_without_quotes_is_not_the_end_of_a_caption(folder, output):
    (folder / "list.csv").write_text('file,caption\na.png,"red, round"\na.png,red, round\n')
    write_shards(FolderConverter(folder, folder / "list.csv"), output)
    assert texts(output) == [["Describe the image.", "red, round"]]
    assert reasons(output) == {"line 3": "it has 3 cells, the first line has 2"}


# --- Hugging Face data sets ---

datasets = pytest.importorskip("datasets")


def parquet(path: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    given = datasets.Features(features) if features else None
    datasets.Dataset.from_dict(columns, features=given).to_parquet(path)
    return path


def test_a_split_that_is_not_there_is_never_made_of_others(tmp_path):
    for split in ("train", "test"):
        parquet(tmp_path / f"d/{split}-00000-of-00001.parquet", {"caption": [split]})
    for split in ("validation", "trai", "nothing"):
        with pytest.raises(UserError, match=f"no split '{split}': .* test, train"):
            HuggingFaceConverter(str(tmp_path / "d"), split=split)
    unnamed = str(parquet(tmp_path / "e/part.parquet", {"question": ["q"], "answer": ["a"]}))
    for path in (unnamed, str(tmp_path / "e")):
        with pytest.raises(UserError, match="all are 'train'"):
            HuggingFaceConverter(path, split="validation")
        assert HuggingFaceConverter(path).total() == 1
    named = parquet(tmp_path / "f/dev-0.parquet", {"question": ["q"], "answer": ["a"]})
    assert HuggingFaceConverter(str(named.parent), split="validation").total() == 1
    with pytest.raises(UserError, match="dev"):
        HuggingFaceConverter(str(named.parent))


def test_types_of_columns_are_no_matter(tmp_path, output):
    text = datasets.Value("string")
    columns = {"image": datasets.Image(), "conversations": datasets.List({"from": text, "value": text})}
    picture = {"bytes": PICTURE, "path": None}
    path = parquet(tmp_path / "s.parquet", {"image": [picture], "conversations": [ASKED]}, **columns)
    import pyarrow.parquet

    # As older versions stored a sequence of dicts.
    table = pyarrow.table(
        {
            "image": [picture],
            "conversations": [{"from": ["human", "gpt"], "value": ["<image>q", "a"]}],
        }
    )
    pyarrow.parquet.write_table(table, path)
    write_shards(HuggingFaceConverter(str(path)), output)
    assert texts(output) == [["q", "a"]]
    answers = parquet(tmp_path / "i.parquet", {"question": ["How many?", "?"], "answer": [3, None]})
    numbers = OutputOptions(tmp_path / "numbers", progress=False)
    write_shards(HuggingFaceConverter(str(answers)), numbers)
    assert texts(numbers) == [["How many?", "3"]]
    assert "no answer" in reasons(numbers)["row 1"]


def test_images_of_rows_are_bytes_or_names_in_their_folder(tmp_path, output):
    secret = tmp_path / "elsewhere.png"
    secret.write_bytes(PICTURE)
    data, photos = tmp_path / "d", tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(PICTURE)
    images = [
        ({"bytes": PICTURE, "path": "x.png"}, None),
        ({"bytes": None, "path": "a.png"}, None),
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image"),
        ({"bytes": None, "path": "https://x/a.png"}, "web address"),
        ({"bytes": None, "path": str(secret)}, "leads out"),
        ({"bytes": None, "path": "/dev/zero"}, "leads out"),
        ({"bytes": b"text", "path": None}, "not an image"),
    ]
    path = parquet(
        data / "train.parquet",
        {"image": [image for image, _ in images], "caption": ["c"] * len(images)},
        image={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        caption=datasets.Value("string"),
    )
    write_shards(HuggingFaceConverter(str(path), image_folder=photos), output)
    assert len(texts(output)) == 2
    told = reasons(output)
    for number, (_, reason) in enumerate(images):
        assert reason is None or reason in told[f"row {number}"], number


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_files_of_rows_lose_only_the_broken_ones(tmp_path, output, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_bytes(b'question,answer\nq,1\ncaf\xe9,2\nopen,"3\nq,4\n"q ""5""",6\n')
    else:
        rows = [{"question": "q", "answer": 1}, {"question": "q", "answer": "4", "x": [1]}, {"answer": 2}]
        lines = [json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join([*lines, b'{"question": "caf\xe9"}', b'{"question": "q ", "answer": 6}']))
    write_shards(HuggingFaceConverter(str(path)), output)
    found = texts(output)
    assert found[:2] == [["q", "1"], ["q", "4"]]
    assert found[-1][1] == "6"
    assert len(reasons(output)) == 2


def test_rows_of_videos_are_named(tmp_path, output):
    rows = {"video": ["v.mp4", None], "question": ["What happens?", "What is 1 + 1?"], "answer": ["x", "2"]}
    write_shards(HuggingFaceConverter(str(parquet(tmp_path / "v.parquet", rows))), output)
    assert texts(output) == [["What is 1 + 1?", "2"]]
    assert "is video" in reasons(output)["row 0"]


def test_a_script_of_a_data_set_is_never_run(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be opened"):
        HuggingFaceConverter(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["./no/such", "/no/such.parquet", "rows.csv", "~/none", "a/b/c"])
def test_a_missing_path_is_not_looked_up_on_the_hub(path):
    with pytest.raises(UserError, match="does not exist"):
        HuggingFaceConverter(path)


# --- anything, anywhere ---

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(["<image>", "<video>", "a.png", "\ud83d", "\0", "human", "text", "image", "x" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "image", "from", "role", "value", "content"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within one of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


VALID: list[Any] = [
    {"id": "x", "image": "a.png", "conversations": ASKED, "source": {"a": 1}},
    {"id": 7, "images": ["a.png"], "messages": dialogue([{"type": "image"}, {"type": "text", "text": "q"}])},
    {"conversations": {"from": ["system", "human", "gpt"], "value": ["s", "q", "a"]}},
    {"messages": [{"role": "system", "content": "s"}, *dialogue([{"type": "image", "image": "a.png"}, "q"])]},
]


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_value_at_any_place_of_an_entry(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.png").write_bytes(PICTURE)
    entry = data.draw(st.sampled_from(VALID))
    changed = replaced(entry, data.draw(st.sampled_from(places(entry))), data.draw(VALUES))
    try:
        record = llava_record(changed, folder, "default", options=ImageOptions())
        encoded = encode_record(record)
    except UserError:
        return
    again = decode_record(dict(encoded.members))
    assert again.texts() == record.texts()
    assert again.metadata == record.metadata
    assert render(again.messages)


RECORD = {
    "id": "r",
    "messages": [{"role": "system", "content": "s"}, *dialogue(["q", {"type": "text", "text": "t"}])],
}


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_value_at_any_place_of_a_record(data):
    fields = {**RECORD, "metadata": {"task": "vqa", "more": [1, {"a": 2.5}]}}
    place = data.draw(st.sampled_from([place for place in places(fields) if place]))
    changed = replaced(fields, place, data.draw(VALUES))
    try:
        record = Record(**changed).validate()
    except RecordError:
        return
    texts = [part.get("text") for _, part in record.parts()]
    assert render(record.messages)
    if not record.image_parts():
        stored = dict(encode_record(record).members)
        again = decode_record(stored)
        assert ([part.get("text") for _, part in again.parts()], again.metadata) == (texts, record.metadata)
        assert parse_json(stored["json"])["id"] == record.id
