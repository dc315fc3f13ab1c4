"""Shards: written records are read, also by webdataset; damage is named; no partial output remains."""

import json
import multiprocessing
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import EncodedImage, Record, RecordError, assistant, image_part, user
from dualtoken.data_pipelines.shards.check import check_shards
from dualtoken.data_pipelines.shards.format import read_manifest
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.tar_index import build_index, index_path
from dualtoken.data_pipelines.shards.writer import ShardWriter


def faults(folder) -> list[str]:
    return [str(fault) for _, found in check_shards(folder) for fault in found]


def coloured_image(shade: int) -> Image.Image:
    return Image.new("RGB", (6, 4), (shade, 10, 200))


def image_record(number: int) -> Record:
    return Record(
        f"r{number}",
        [user(image_part(coloured_image(number)), f"question {number} ä"), assistant(str(number))],
        {"number": number},
    )


def codes_record(number: int) -> Record:
    codes = np.arange(12).reshape(2, 2, 3) + number
    part = {"type": "image", "pixel_codes": codes, "semantic_codes": codes * 2}
    return Record(f"c{number}", [user("draw"), assistant(part, "and", part)])


def write(folder, records, **options):
    settings = {"source": "test", "licence": "MIT", "settings": {"a": 1}, "shard_size": 4, **options}
    with ShardWriter(folder, **settings) as writer:
        for record, split in records:
            writer.write(record, split)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data", [(image_record(n), "train" if n < 10 else "heldout") for n in range(12)])


def test_images_and_texts_are_read_as_written(folder):
    dataset = ShardDataset(folder)
    assert len(dataset) == 10
    for number in np.random.default_rng(0).permutation(10).tolist():
        record = dataset[number]
        assert (record.id, record.metadata) == (f"r{number}", {"number": number})
        assert record.texts() == [f"question {number} ä", str(number)]
        assert record.image_parts()[0]["image"].tobytes() == coloured_image(number).tobytes()
    assert dataset[-1].id == "r9"
    assert list(dataset.texts())[:2] == ["question 0 ä", "0"]
    with pytest.raises(IndexError):
        dataset[10]


def test_codes_are_read_as_uint16(tmp_path):
    dataset = ShardDataset(write(tmp_path / "codes", [(codes_record(n), "train") for n in range(9)]))
    for number in (8, 0, 4):
        first, second = dataset[number].image_parts()
        assert first["pixel_codes"].dtype == np.uint16
        assert np.array_equal(first["pixel_codes"], np.arange(12).reshape(2, 2, 3) + number)
        assert np.array_equal(second["semantic_codes"], 2 * first["pixel_codes"])


def test_splits_are_separate_and_train_is_the_default(folder):
    assert [ShardDataset(folder, split)[0].id for split in ("heldout", "train")] == ["r10", "r0"]
    assert len(ShardDataset(folder, "all")) == 12
    with pytest.raises(UserError, match=r"no split 'dev'.*heldout, train"):
        ShardDataset(folder, "dev")


def test_several_sources_are_one_dataset(folder, tmp_path):
    other = write(tmp_path / "other", [(codes_record(n), "train") for n in range(3)])
    dataset = ShardDataset([folder, *sorted(other.glob("*.tar"))])
    assert [dataset[i].id for i in (0, 9, 10, 12)] == ["r0", "r9", "c0", "c2"]


def test_the_manifest_holds_counts_and_checksums(folder):
    manifest = read_manifest(folder)
    assert manifest["counts"] == {
        "records": 12,
        "images": 12,
        "splits": {"train": 10, "heldout": 2},
        "rejected": 0,
    }
    assert [shard["records"] for shard in manifest["shards"]] == [2, 4, 4, 2]
    assert (manifest["source"], manifest["licence"], manifest["settings"]) == ("test", "MIT", {"a": 1})
    assert faults(folder) == []
    with (folder / "train-00001.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"#")
    assert any(fault.startswith("train-00001.tar: its SHA-256 differs") for fault in faults(folder))


def test_equal_records_make_equal_shards(tmp_path):
    records = [(image_record(n), "train") for n in range(4)]
    digests = [read_manifest(write(tmp_path / name, records))["shards"][0]["sha256"] for name in "ab"]
    assert digests[0] == digests[1]


def test_webdataset_reads_the_shards(folder):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(folder / "train-00000.tar"), shardshuffle=False))
    assert [json.loads(sample["json"])["id"] for sample in samples] == ["r0", "r1", "r2", "r3"]
    assert all("0.png" in sample for sample in samples)


def test_shards_written_by_webdataset_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    record = {"id": "w", "messages": [user("hello"), assistant("you")], "metadata": {}}
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as sink:
        for key in ("a", "b"):
            sink.write({"__key__": key, "json": json.dumps({**record, "id": key}).encode()})
    dataset = ShardDataset(tmp_path / "w.tar")
    assert [dataset[i].id for i in range(2)] == ["a", "b"]


def test_a_broken_record_is_counted_and_named(tmp_path):
    broken = Record("bad", [user(image_part(tmp_path / "missing.png"))])
    folder = write(tmp_path / "data", [(image_record(0), "train"), (broken, "train")])
    manifest = read_manifest(folder)
    assert manifest["counts"]["rejected"] == 1
    assert manifest["rejected"]["samples"][0]["sample"] == "bad"
    assert sum(manifest["rejected"]["reasons"].values()) == 1
    assert len(ShardDataset(folder)) == 1


@pytest.mark.parametrize("codes", [np.full((1, 1, 1), 70000), np.zeros((2, 2)), np.zeros((1, 1, 1), float)])
def test_codes_that_do_not_fit_are_refused(tmp_path, codes):
    part = {"type": "image", "pixel_codes": codes, "semantic_codes": codes}
    folder = write(tmp_path / "data", [(image_record(0), "train"), (Record("x", [user(part)]), "train")])
    assert read_manifest(folder)["counts"]["rejected"] == 1


def test_a_corrupt_image_raises_when_its_record_is_read(tmp_path):
    bad = Record("bad", [user(image_part(EncodedImage(b"no image", "png")))])
    dataset = ShardDataset(write(tmp_path / "data", [(bad, "train"), (image_record(1), "train")]))
    with pytest.raises(RecordError, match=r"Record 0 of 'train-00000\.tar'"):
        dataset[0]
    assert dataset[1].id == "r1"
    assert dataset.record(0, load_images=False).id == "bad"


def write_and_fail(folder):
    with ShardWriter(folder, source="s", licence="l") as writer:
        writer.write(image_record(0))
        raise RuntimeError


def test_no_files_remain_after_an_error(tmp_path):
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_without_overwrite(folder):
    with pytest.raises(UserError, match="--overwrite"):
        write(folder, [(image_record(0), "train")])
    write(folder, [(image_record(5), "train")], overwrite=True)
    assert len(ShardDataset(folder, "all")) == 1


def test_the_index_is_a_cache_bound_to_its_tar(folder):
    shard = folder / "train-00000.tar"
    assert index_path(shard).is_file()
    other = write(folder.parent / "other", [(image_record(n), "train") for n in (7, 8)])
    os.replace(other / "train-00000.tar", shard)
    assert [ShardDataset(shard)[i].id for i in range(2)] == ["r7", "r8"], "an index of another tar was used"
    index_path(shard).write_text("{broken")
    assert len(ShardDataset(shard)) == 2
    index_path(shard).unlink()
    assert len(ShardDataset(shard)) == 2
    assert index_path(shard).is_file()


def test_a_tar_cut_short_is_refused(folder):
    shard = folder / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(UserError, match="cut short"):
        build_index(shard)


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x" * 2048)
    with pytest.raises(UserError, match="plain tar"):
        ShardDataset(tmp_path / "x.tar")
    with pytest.raises(UserError, match="not found"):
        ShardDataset(tmp_path / "y.tar")
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardDataset(tmp_path)


def test_members_have_the_documented_names(tmp_path):
    folder = write(tmp_path / "data", [(codes_record(0), "train")])
    with tarfile.open(folder / "train-00000.tar") as tar:
        assert tar.getnames() == [
            "00000000.json",
            "00000000.0.pixel.npy",
            "00000000.0.semantic.npy",
            "00000000.1.pixel.npy",
            "00000000.1.semantic.npy",
        ]


def _ids(dataset: ShardDataset, indices: list[int]) -> list[str]:
    return [dataset[index].id for index in indices]


def test_forked_workers_open_their_own_files(folder):
    dataset = ShardDataset(folder)
    assert dataset[3].id == "r3"  # opens a file that a forked worker would share
    with multiprocessing.get_context("fork").Pool(2) as pool:
        orders = [np.random.default_rng(seed).permutation(10).tolist() * 20 for seed in range(4)]
        results = pool.starmap(_ids, [(dataset, order) for order in orders])
    assert results == [[f"r{i}" for i in order] for order in orders]


def test_a_dataset_survives_pickling(folder):
    dataset = ShardDataset(folder)
    assert dataset[1].id == "r1"
    assert pickle.loads(pickle.dumps(dataset))[2].id == "r2"
