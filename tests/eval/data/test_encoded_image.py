"""An encoded image of a table equals the image of its file, and does not keep decoded pixels."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dualtoken.common.errors import ImageError
from dualtoken.common.images.reading import load_image
from dualtoken.eval.data.encoded_image import EncodedImage

UPRIGHT = 6  # the EXIF orientation of a camera held upright


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise():
    return Image.effect_noise((9, 7), 80).convert("RGB")


def turned():
    exif = Image.Exif()
    exif[0x0112] = UPRIGHT
    return encoded(noise(), "JPEG", exif=exif)


def transparent_palette():
    return encoded(noise().quantize(8), "PNG", transparency=0)


@pytest.mark.parametrize(
    "content",
    [
        encoded(noise()),
        encoded(noise().convert("RGBA")),
        encoded(noise().convert("L")),
        transparent_palette(),
        turned(),
    ],
    ids=["rgb", "rgba", "grey", "palette", "turned"],
)
def test_it_is_loaded_as_its_file_would_be(content, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(content)
    image = EncodedImage(content)
    with Image.open(path) as opened:
        assert (image.size, image.mode, image.format) == (opened.size, opened.mode, opened.format)
        assert np.array_equal(np.asarray(image), np.asarray(opened))
        assert np.array_equal(image.resize((4, 4)).convert("RGB"), opened.resize((4, 4)).convert("RGB"))
    assert np.array_equal(load_image(image), load_image(path))


def test_decoded_pixels_are_not_kept():
    image = EncodedImage(turned())
    image.load()
    load_image(image)
    np.asarray(image)
    assert image._im is None


def test_bytes_that_are_not_an_image_are_refused_at_once_and_broken_pixels_on_use():
    with pytest.raises(ImageError, match="is not an image"):
        EncodedImage(b"text")
    broken = EncodedImage(encoded(Image.effect_noise((64, 64), 80), "JPEG")[:-200])
    with pytest.raises(ImageError, match="truncated"):
        broken.load()
