"""Images of every shape and kind become square in every way, and every reader does it in the same one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.data_pipelines.codes.checksums import preprocessing_checksum
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor, UserError, load_image
from dualtoken.tokenizer.processing import processor_of
from dualtoken.tokenizer.resizing import FILTERS, GREY, Resizing

from .conftest import tiny_config

MODES = ("squash", "crop", "pad")
SIZES = [(30, 20), (20, 30), (17, 16), (16, 16), (5, 40), (33, 33), (100, 37), (3, 2)]


def noise(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FILTERS)
def test_crop_is_the_shortest_side_resized_then_the_centre(size, name):
    """The released preprocessing: torchvision's Resize(16), then CenterCrop(16)."""
    image, side = noise(*size), 16
    short = min(size)
    large = tuple(side if length == short else int(side * length / short) for length in size)
    whole = image.resize(large, FILTERS[name])
    left, top = (round((length - side) / 2) for length in large)
    expected = whole.crop((left, top, left + side, top + side))
    assert np.array_equal(Resizing("crop", name)(image, side), expected)


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000)])
def test_a_long_strip_is_cropped_as_a_short_one(size):
    """Without making the resized strip; its stripes are in the middle of the square."""
    ramp = np.arange(2000, dtype=np.float32) / 2000 * 255
    strip = Image.fromarray(np.tile(ramp.astype(np.uint8), (3, 1))).convert("RGB")
    image = strip if size == strip.size else strip.transpose(Image.Transpose.TRANSPOSE)
    found = np.asarray(Resizing("crop")(image, 16))
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("name", FILTERS)
def test_squash_is_one_resize(name):
    image = noise(30, 20)
    assert np.array_equal(Resizing("squash", name)(image, 16), image.resize((16, 16), FILTERS[name]))


@pytest.mark.parametrize(("size", "inside"), [((32, 16), (0, 4, 16, 12)), ((16, 32), (4, 0, 12, 16))])
def test_pad_keeps_all_of_the_image_between_bars(size, inside):
    image = noise(*size)
    found = Resizing("pad", pad_colour=(1, 2, 3))(image, 16)
    part = found.crop(inside)
    assert np.array_equal(part, image.resize(part.size, Image.Resampling.BICUBIC))
    bars = np.ones((16, 16), dtype=bool)
    bars[inside[1] : inside[3], inside[0] : inside[2]] = False
    assert (np.asarray(found)[bars] == (1, 2, 3)).all()
    values = DualTokenizerImageProcessor(16, resize_mode="pad")(Image.new("RGB", (16, 2), "white"))
    assert values["pixel_values"][0, :, 0, 0].abs().max() < 0.01, "grey is zero after normalisation"
    assert GREY == (127, 127, 127)


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_in_every_mode(mode, tmp_path):
    processor = DualTokenizerImageProcessor(16, resize_mode=mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise(40, 20).save(tmp_path / "turned.png", exif=exif)
    upright = noise(40, 20).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(processor.resize(tmp_path / "turned.png"), processor.resize(upright))
    clear = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    assert processor.resize(clear)[8, 8].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.full((20, 40), 65535, dtype=np.uint16))
    assert processor.resize(deep)[8, 8].tolist() == [255, 255, 255]
    for kind in ("L", "LA", "P", "1", "CMYK"):
        assert processor.resize(Image.new(kind, (7, 30))).shape == (16, 16, 3)
    for size in ((60_000, 1), (1, 60_000), (1, 1), (2, 1)):
        assert processor.resize(Image.new("RGB", size, "white")).shape == (16, 16, 3)


def test_settings_are_saved_and_read_by_everyone(tmp_path):
    config = tiny_config(resize_mode="pad", resample="lanczos", pad_colour=[9, 8, 7])
    model = DualTokenizer(config).eval()
    model.save_pretrained(tmp_path)
    DualTokenizerImageProcessor.for_config(config).save_pretrained(tmp_path)
    loaded = DualTokenizer.from_pretrained(tmp_path)
    processor = DualTokenizerImageProcessor.from_pretrained(tmp_path)
    assert Resizing.of(loaded.config) == Resizing.of(processor) == Resizing("pad", "lanczos", (9, 8, 7))
    assert processor_of(loaded.config, processor) is processor
    image = noise(40, 20)
    assert torch.equal(loaded.encode(image).pixel, loaded.encode(processor(image)["pixel_values"]).pixel)


def test_a_processor_that_resizes_otherwise_is_refused():
    config = tiny_config(resize_mode="crop")
    processor_of(config, DualTokenizerImageProcessor(16, resize_mode="crop", pad_colour=(0, 0, 0)))
    with pytest.raises(UserError, match=r"has resize_mode 'squash', but the tokenizer .* 'crop'"):
        processor_of(config, DualTokenizerImageProcessor(16))


def test_codes_of_another_way_of_resizing_have_another_checksum():
    ways = [{}, {"resize_mode": "crop"}, {"resample": "bilinear"}, {"resize_mode": "pad"}]
    ways.append({"resize_mode": "pad", "pad_colour": (0, 0, 0)})
    sums = [preprocessing_checksum(DualTokenizerImageProcessor(16, **way)) for way in ways]
    assert len(set(sums)) == len(ways)
    # That of codes made before the settings existed, which squashed.
    assert sums[0] == preprocessing_checksum(DualTokenizerImageProcessor(16, pad_colour=(0, 0, 0)))


def test_files_of_earlier_versions_and_of_transformers():
    assert Resizing.of(DualTokenizerImageProcessor.from_pretrained("nano")) == Resizing()
    assert Resizing.of(DualTokenizer.from_pretrained("nano").config) == Resizing()
    assert DualTokenizerImageProcessor(16, resample=2).resample == "bilinear"  # Pillow's number


@pytest.mark.parametrize(
    "settings",
    [
        {"resize_mode": "stretch"},
        {"resample": "sinc"},
        {"resample": 17},
        {"pad_colour": [0, 0]},
        {"pad_colour": [0, 0, 256]},
        {"pad_colour": "white"},
    ],
)
def test_wrong_settings_are_one_line(settings):
    (name,) = settings
    with pytest.raises(UserError, match=name):
        DualTokenizerImageProcessor(16, **settings)
    if settings != {"resample": 17}:
        with pytest.raises(UserError, match=name):
            tiny_config(**settings)


def test_an_image_of_the_right_size_is_unchanged():
    image = noise(16, 16)
    for mode in MODES:
        assert np.array_equal(Resizing(mode)(load_image(image), 16), image)
