"""Images in and out, and files that are written whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from dualtoken.common.files import atomic_file, atomic_folder
from dualtoken.tokenizer import DualTokenizerImageProcessor, UserError, load_image


def test_load_image_gives_upright_rgb_on_white(tmp_path):
    Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    loaded = load_image(tmp_path / "clear.png")
    assert loaded.mode == "RGB"
    assert loaded.size == (4, 3)
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    Image.new("RGB", (8, 4), "blue").save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(str(tmp_path / "turned.jpg")).size == (4, 8)
    grey = Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16))
    assert load_image(grey).getpixel((0, 0)) == (255, 255, 255)
    for mode in ("L", "LA", "P", "1", "CMYK"):
        assert load_image(Image.new(mode, (2, 2))).mode == "RGB"


def test_load_image_errors(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="is not an image"):
        load_image(tmp_path / "text.png")
    with pytest.raises(UserError, match="does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="web address"):
        load_image("https://example.org/a.png")
    with pytest.raises(UserError, match="given as int"):
        load_image(3)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="broken"):
        load_image(tmp_path / "torn.png")
    (tmp_path / "flipped.png").write_bytes(whole[:80] + bytes(40) + whole[120:])
    with pytest.raises(UserError):
        load_image(tmp_path / "flipped.png")


def test_too_big_is_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("RGB", (50, 50)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="50 x 50 pixels; at most 100"):
        load_image(tmp_path / "big.png", max_pixels=100)


def test_pixel_values_and_back():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    processor = DualTokenizerImageProcessor(16)
    values = processor(image)["pixel_values"]
    assert values.shape == (1, 3, 16, 16)
    assert values.dtype == torch.float32
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(values[0], expected)
    assert np.array_equal(np.array(processor.to_images(values)[0]), np.array(image))
    assert processor.to_images(torch.full((3, 16, 16), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_any_size_and_kind_becomes_one_square_batch(tmp_path):
    Image.new("RGB", (30, 10), "red").save(tmp_path / "red.png")
    images = [tmp_path / "red.png", Image.new("L", (5, 40)), np.zeros((9, 9, 3), dtype=np.uint8)]
    processor = DualTokenizerImageProcessor(size={"height": 16, "width": 16})
    assert processor(images)["pixel_values"].shape == (3, 3, 16, 16)
    assert isinstance(processor(images, return_tensors="np")["pixel_values"], np.ndarray)
    with pytest.raises(UserError, match="not square"):
        DualTokenizerImageProcessor(size={"height": 16, "width": 8})
    with pytest.raises(UserError, match=r"^an image array has values from -1 to 1; give uint8"):
        processor(np.full((4, 4, 3), -1.0) * [1, 1, -1])
    with pytest.raises(UserError, match=r"^image 1 of 2: image '/none\.png' does not exist"):
        processor([images[0], "/none.png"])
    with pytest.raises(UserError, match="no images"):
        processor([])


def test_arrays_and_tensors_are_the_image_they_hold():
    levels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    processor = DualTokenizerImageProcessor(16)
    expected = processor([Image.fromarray(image) for image in levels])["pixel_values"]
    tensor = torch.from_numpy(levels)
    channels_first = tensor.permute(0, 3, 1, 2)
    batches = [levels, list(levels), levels / 255, levels.astype(np.float32), levels.astype(np.int64)]
    batches += [tensor, channels_first, list(channels_first), channels_first / 255]
    for batch in batches:
        assert torch.equal(processor(batch)["pixel_values"], expected)
    assert processor(channels_first[0] / 255)["pixel_values"].shape == (1, 3, 16, 16)
    rounded = processor((channels_first / 255).to(torch.bfloat16).requires_grad_())["pixel_values"]
    assert (rounded - expected).abs().max() < 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"size": "64"},
        {"size": 10**9},
        {"size": {}},
        {"size": {"height": None, "width": None}},
        {"image_mean": 0.5},
        {"image_std": [0.5, 0.5, 0]},
        {"image_std": [0.5] * 2},
        {"max_pixels": "many"},
    ],
)
def test_wrong_settings_of_a_saved_processor_are_one_line(settings):
    with pytest.raises(UserError):
        DualTokenizerImageProcessor(**settings)


def test_a_tokenizer_prepares_images_as_its_processor_does(tiny, tmp_path):
    picture = Image.effect_noise((20, 30), 80).convert("RGB")
    picture.save(tmp_path / "a.png")
    inputs = DualTokenizerImageProcessor(16)(picture)
    expected = tiny.encode(inputs["pixel_values"])
    for given in (picture, [picture], tmp_path / "a.png", np.asarray(picture), inputs):
        assert torch.equal(tiny.encode(given).pixel, expected.pixel)
        assert torch.equal(tiny.encode(given).semantic, expected.semantic)
    assert torch.equal(tiny.decode(expected), tiny.decode(expected.pixel))
    with pytest.raises(UserError, match="does not exist"):
        tiny.encode("nowhere.png")


def test_saving_and_loading(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    DualTokenizerImageProcessor(16).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    for loader in (DualTokenizerImageProcessor, AutoImageProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, DualTokenizerImageProcessor)
        assert loaded.side == 16
    tiny.save_pretrained(tmp_path)  # leaves other files alone
    assert (tmp_path / "preprocessor_config.json").is_file()


def test_atomic_writing(tmp_path):
    with atomic_file(tmp_path / "deep" / "a.json") as path:
        path.write_text("1")

    def fail_halfway() -> None:
        with atomic_file(tmp_path / "deep" / "a.json") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert (tmp_path / "deep" / "a.json").read_text() == "1"
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "folder") as path:
            (path / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder"):
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "folder"]
