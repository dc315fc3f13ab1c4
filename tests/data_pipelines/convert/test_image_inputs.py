"""Images of real people on their way into shards: what is kept, what is written anew, what one bad costs."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtoken.data_pipelines import EncodedImage, RecordError, ShardDataset
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.folder import FolderConverter
from dualtoken.data_pipelines.convert.llava import LlavaConverter
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.records import Record, assistant, image_part, user
from dualtoken.data_pipelines.shards import stored_image as stored_image_module
from dualtoken.data_pipelines.shards.sample_codec import decode_record, encode_record
from dualtoken.data_pipelines.shards.stored_image import stored_image

PICTURE = Image.effect_noise((48, 40), 60).convert("RGB")


def encoded(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def damaged_avif() -> bytes:
    data = bytearray(encoded("AVIF"))
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    return bytes(data)


def test_a_folder_with_every_kind_of_image_a_link_and_hostile_files(tmp_path: Path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    good = {"a.avif": "AVIF", "b.jfif": "JPEG", "c.jp2": "JPEG2000", "d.GIF": "GIF", "e.bmp": "BMP"}
    for name, kind in good.items():
        (folder / name).write_bytes(encoded(kind))
    (elsewhere / "f.png").write_bytes(encoded("PNG"))
    (elsewhere / "f.txt").write_text("f")
    (folder / "more").symlink_to(elsewhere)
    (folder / "more" / "back").symlink_to(folder)
    (folder / "broken.jpg").write_bytes(damaged_avif())
    (folder / "lost.png").symlink_to(tmp_path / "nowhere")
    (folder / "._a.avif").write_bytes(b"made by a foreign system")
    os.mkfifo(folder / "pipe.png")
    for stem in ("a", "b", "c", "d", "e", "broken", "lost", "pipe"):
        (folder / f"{stem}.txt").write_text(stem)
    write_shards(FolderConverter(folder), OutputOptions(tmp_path / "out", progress=False))
    records = ShardDataset(tmp_path / "out", "all")
    assert sorted(records[index].id for index in range(len(records))) == ["a", "b", "c", "d", "e", "more/f"]
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["sample"] for line in rejected} == {"broken.jpg", "lost.png", "pipe.png"}


def test_a_photo_of_several_pictures_stays_as_small_as_its_first():
    data = encoded("MPO", save_all=True, append_images=[PICTURE] * 3, quality=90)
    stored = stored_image(data, "x")
    assert stored.extension == "jpg"
    assert len(stored.data) < len(data) / 2
    assert stored_image(stored.data, "x").data == stored.data


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_photos_of_other_formats_become_jpeg_and_not_a_big_png(kind: str):
    stored = stored_image(encoded(kind), "x")
    assert stored.extension == "jpg"
    assert stored.open().format == "JPEG"


def test_graphics_of_other_formats_become_png_without_loss():
    stored = stored_image(encoded("TIFF"), "x")
    assert stored.extension == "png"
    assert np.array_equal(stored.open(), PICTURE)


def test_what_is_stored_is_within_what_every_command_reads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_image_module, "MAX_PIXELS", 1000)
    stored = stored_image(encoded("PNG"), "x", max_pixels=10_000)
    width, height = stored.open().size
    assert 800 < width * height <= 1000
    assert abs(width / height - 48 / 40) < 0.1


def test_images_inside_a_llava_list(tmp_path: Path):
    text = base64.b64encode(encoded("PNG")).decode()
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    images = [text, f"data:image/png;base64,{text}", "data:image/png;base64,%", text[:-800]]
    entries = [{"id": str(n), "image": image, "conversations": turns} for n, image in enumerate(images)]
    (tmp_path / "l.json").write_text(json.dumps(entries))
    write_shards(LlavaConverter(tmp_path / "l.json"), OutputOptions(tmp_path / "out", progress=False))
    records = ShardDataset(tmp_path / "out", "all")
    assert [records[index].id for index in range(len(records))] == ["0", "1"]
    assert len(json.dumps(records[0].metadata)) < 100
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 2
    assert max(map(len, rejected)) < 500


def test_a_record_takes_images_as_all_commands_do(tmp_path: Path):
    (tmp_path / "a.tiff").write_bytes(encoded("TIFF"))
    turned = Image.open(io.BytesIO(encoded("TIFF", exif=_turned())))
    for image in (tmp_path / "a.tiff", PICTURE, np.asarray(PICTURE), encoded("PNG"), turned):
        members = encode_record(Record("r", [user("q", image_part(image)), assistant("a")])).members
        (part,) = decode_record(dict(members)).image_parts()
        assert part["image"].size == ((40, 48) if image is turned else (48, 40))
        assert part["image"].format in ("PNG", "JPEG")


@pytest.mark.parametrize("image", ["/none.png", "/dev/zero", b"text", "https://example.org/a.png", 3])
def test_an_image_of_a_record_that_cannot_be_read_is_named(image: object):
    with pytest.raises(RecordError, match="'r'"):
        encode_record(Record("r", [user("q", image_part(image)), assistant("a")]))


def test_a_damaged_stored_image_is_one_error():
    record = encode_record(Record("r", [user("q", image_part(EncodedImage(b"x", "png"))), assistant("a")]))
    with pytest.raises(ValueError, match=r"0\.png.*is not an image"):
        decode_record(dict(record.members))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
