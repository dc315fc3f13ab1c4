"""Metrics of a tokenizer on every kind of image set; many processes equal one."""

from __future__ import annotations

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.data_pipelines.records import Record, assistant, image_part, user
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.eval.data.image_sets import GivenImages, Sample, open_images
from dualtoken.tokenizer import DualTokenizerImageProcessor, UserError

pytest.importorskip("torchmetrics")

from dualtoken.eval.tokenizer import measure as measuring
from dualtoken.eval.tokenizer.batch import center_square
from dualtoken.eval.tokenizer.measure import MetricOptions, measure_tokenizer


def noise(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def colour_features(images: torch.Tensor) -> torch.Tensor:
    """A feature extractor: the image in four by four."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


class Words:
    """A text tokenizer of one number for each text."""

    def __call__(self, texts, max_length, **_):
        rows = [[1 + sum(text.encode()) % 30] * max_length for text in texts]
        return {"input_ids": torch.tensor(rows)}


OPTIONS = MetricOptions(
    feature_extractor=colour_features,
    classes=("cat", "dog", "owl"),
    templates=("a {}",),
    text_tokenizer=Words(),
)
SAMPLES = [Sample(str(n), noise(n), ("cat", "dog", "owl")[n % 3], (f"text {n}",)) for n in range(13)]
METRICS = ("psnr", "ssim", "rfid", "codebook", "zero_shot", "retrieval")


def test_the_metrics_are_those_of_encode_and_decode(tiny_tokenizer) -> None:
    psnr = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio
    tokenizer, processor = tiny_tokenizer(), DualTokenizerImageProcessor(size=16)
    images = [noise(n) for n in range(5)]
    result = measure_tokenizer(tokenizer, images, ("psnr",), batch_size=2)
    with torch.no_grad():
        back = processor.to_images(
            tokenizer.decode(tokenizer.encode(processor(images)["pixel_values"]).pixel)
        )
    expected = [psnr(np.asarray(a), np.asarray(b)) for a, b in zip(images, back, strict=True)]
    assert result["figures"]["psnr"] == pytest.approx(np.mean(expected))
    assert (result["n"], result["n_expected"]) == (5, 5)
    json.dumps(result, allow_nan=False)


def test_batch_size_changes_nothing(tiny_tokenizer) -> None:
    pytest.importorskip("open_clip")
    tokenizer = tiny_tokenizer()
    one, many = (
        measure_tokenizer(tokenizer, SAMPLES, METRICS, batch_size=size, options=OPTIONS)["figures"]
        for size in (1, 5)
    )
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert value == pytest.approx(many[name], rel=1e-4, abs=1e-4), name  # one rounding to 8 bits


def test_two_processes_equal_one(tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    tokenizer = tiny_tokenizer()
    single = measure_tokenizer(tokenizer, SAMPLES, METRICS, batch_size=1, options=OPTIONS)
    sent: list = []  # by the first process: its share of the report, then each state of its metrics
    both: dict = {}
    for rank in range(2):
        received = iter(sent if rank else ())

        def exchange(state: object, group: object = None, received=received) -> list:
            others = list(islice(received, 1))
            if not others:
                sent.append(state)
            return [*others, state]

        monkeypatch.setattr(measuring, "_rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(measuring, "_of_all_processes", exchange)
        monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", exchange)
        monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
        both = measure_tokenizer(tokenizer, SAMPLES, METRICS, batch_size=1, options=OPTIONS)
    assert len(sent) > 10
    assert both["n"] == single["n"] == len(SAMPLES)
    for name, value in single["figures"].items():
        assert both["figures"][name] == pytest.approx(value, abs=1e-9), name


def test_a_perfect_tokenizer(tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that come back as they were: SSIM 1, FID 0, an infinite PSNR that is counted, not averaged."""
    given: list[torch.Tensor] = []
    tokenizer = tiny_tokenizer()
    encode = tokenizer.encode

    def noted(values: torch.Tensor) -> object:
        given.append(values)
        return encode(values)

    monkeypatch.setattr(tokenizer, "encode", noted)
    monkeypatch.setattr(tokenizer, "decode", lambda codes: given[-1])
    metrics = ("psnr", "ssim", "rfid")
    result = measure_tokenizer(tokenizer, [noise(n) for n in range(20)], metrics, 4, options=OPTIONS)
    figures = result["figures"]
    assert figures["psnr"] is None
    assert figures["psnr_identical"] == 20
    assert figures["ssim"] == figures["ssim_data_range_2"] == pytest.approx(1)
    assert figures["rfid"] == pytest.approx(0, abs=1e-3)
    assert any("infinite" in note for note in result["notes"])


def test_what_cannot_be_had_is_null_with_its_reason(tiny_tokenizer) -> None:
    metrics = ("lpips", "rfid", "zero_shot", "retrieval")
    result = measure_tokenizer(tiny_tokenizer(), [noise(0)], metrics)
    for name in ("lpips_vgg", "rfid", "zero_shot", "retrieval"):
        assert result["figures"][name] is None
        assert any(note.startswith(f"{name} is null") for note in result["notes"])


def test_mistakes(tiny_tokenizer, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="'psrn' is unknown; there are psnr, ssim"):
        measure_tokenizer(tokenizer, [noise(0)], ("psrn",))
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "none")
    with pytest.raises(UserError, match="holds no image"):
        open_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="could be measured"):
        measure_tokenizer(tokenizer, open_images(tmp_path), ("psnr",))
    pytest.importorskip("open_clip")
    foxes = GivenImages([Sample("0", noise(0), "fox")])
    with pytest.raises(UserError, match="'fox', which is not among"):
        measure_tokenizer(tokenizer, foxes, ("zero_shot",), options=OPTIONS)


def test_a_broken_image_is_named_and_left_out(tiny_tokenizer, tmp_path: Path) -> None:
    for number in range(3):
        noise(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    result = measure_tokenizer(tiny_tokenizer(), open_images(tmp_path), ("codebook",))
    assert (result["n"], result["n_expected"]) == (2, 3)
    assert [name for name, _ in result["skipped"]] == ["1.png"]


def test_a_folder_with_links_pipes_and_foreign_names(tiny_tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    noise(0).save(folder / "a.avif")
    noise(1).save(folder / "b.jfif", "JPEG")
    noise(2).save(tmp_path / "elsewhere" / "c.GIF")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "more" / "back").symlink_to(folder)
    noise(3).save(folder / "latin.png")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "._a.avif").write_bytes(b"made by a foreign system")
    os.mkfifo(folder / "pipe.png")
    result = measure_tokenizer(tiny_tokenizer(), open_images(folder), ("codebook",))
    assert (result["n"], result["n_expected"]) == (3, 5)
    assert [name for name, _ in result["skipped"]] == ["latin.png", "pipe.png"]


def test_every_image_of_a_tar_counts(tiny_tokenizer, tmp_path: Path) -> None:
    names = [
        "img.v1.jpg",
        "img.v2.JPG",
        "x/img.v3.avif",
        "._img.v1.jpg",
        "k.left.png",
        "k.right.png",
        "bad.png",
    ]
    sidecars = {"img.v1.txt": b"one", "x/img.v3.TXT": b"three", "k.cls": b"7", "bad.txt": b"caf\xe9"}
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in [*names, *sidecars]:
            buffer = io.BytesIO()
            noise(0).save(buffer, "PNG")
            data = sidecars.get(name, buffer.getvalue())
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    images = open_images(tmp_path / "set.tar")
    samples = [images.read(index) for index in range(len(images))]
    assert [sample.name for sample in samples] == ["img.v1", "img.v2", "x/img.v3", "k.left", "k.right", "bad"]
    assert [sample.texts for sample in samples[:3]] == [("one",), (), ("three",)]
    assert [sample.label for sample in samples[3:5]] == [7, 7]
    result = measure_tokenizer(tiny_tokenizer(), images, ("codebook",))
    assert [name for name, _ in result["skipped"]] == ["bad"]


def as_folder(folder: Path) -> Path:
    for number in range(4):
        label = folder / "images" / ("owl" if number % 2 else "cat")
        label.mkdir(parents=True, exist_ok=True)
        noise(number).save(label / f"{number}.png")
        (label / f"{number}.txt").write_text(f"text {number}\n")
    return folder / "images"


def as_tar(folder: Path) -> Path:
    with tarfile.open(folder / "images.tar", "w") as tar:
        for number in range(4):
            buffer = io.BytesIO()
            noise(number).save(buffer, "PNG")
            members = {"png": buffer.getvalue(), "cls": b"owl" if number % 2 else b"cat"}
            for ending, data in (members | {"txt": f"text {number}".encode()}).items():
                info = tarfile.TarInfo(f"part.1/{number:03}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "images.tar"


def as_shards(folder: Path) -> Path:
    with ShardWriter(folder / "shards", source="made for tests", licence="MIT") as writer:
        for number in range(4):
            turns = [user(f"text {number}"), assistant(image_part(noise(number)))]
            writer.write(Record(str(number), turns, {"label": "owl" if number % 2 else "cat"}))
    return folder / "shards"


def as_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    columns = {
        "picture": [noise(number) for number in range(4)],
        "label": [0, 1, 0, 1],
        "caption": [f"text {number}" for number in range(4)],
    }
    features = datasets.Features(
        picture=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "owl"]),
        caption=datasets.Value("string"),
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("make", [as_folder, as_tar, as_shards, as_dataset])
def test_every_kind_of_set_holds_the_same(make, tmp_path: Path) -> None:
    images = open_images(make(tmp_path))
    samples = list(images.part())
    assert len(samples) == len(images) == 4
    by_text = {sample.texts: sample for sample in samples}
    for number in range(4):
        sample = by_text[(f"text {number}",)]
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(noise(number)))
        assert sample.label in (("cat", 0), ("owl", 1))[number % 2]
    assert images.classes == (None if make is as_tar else ["cat", "owl"])
    shared = [sample.name for rank in range(3) for sample in images.part(rank, 3)]
    assert sorted(shared) == sorted(sample.name for sample in samples)


def test_center_square_is_the_middle() -> None:
    wide = Image.new("RGB", (64, 16), "black")
    wide.paste("white", (24, 0, 40, 16))
    assert center_square(wide, 16).getcolors() == [(256, (255, 255, 255))]
    assert center_square(noise(0, 70, 33), 16).size == (16, 16)
    same = noise(0)
    assert np.array_equal(np.asarray(center_square(same, 16)), np.asarray(same))


def test_the_command(tiny_tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dualtoken.scripts import cli

    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "metrics.json"
    given = ["--model", tmp_path / "tokenizer", "--images", as_folder(tmp_path), "--device", "cpu"]
    given += ["--metrics", "psnr,codebook", "--output", output]
    arguments = [str(argument) for argument in given]
    assert cli.run_module("evaluate_tokenizer", "dualtoken eval tokenizer", arguments) == 0
    found = json.loads(output.read_text())
    assert f"{found['figures']['psnr']:.4f}" in capsys.readouterr().out
    wrong = [*arguments[:-3], "psrn"]
    assert cli.run_module("evaluate_tokenizer", "dualtoken eval tokenizer", wrong) == 2
    assert "there are psnr" in capsys.readouterr().err
