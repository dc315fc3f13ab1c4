"""Images of tables (TSV, parquet) that stay encoded in memory."""

import hashlib
from functools import cached_property
from typing import Any

from PIL import Image

from ...common.images.reading import open_image, pillow_errors


class EncodedImage(Image.Image):
    """A PIL image that keeps its file's bytes and decodes them anew for every use.

    An ordinary image keeps its pixels once decoded, so that the images of a table would take gigabytes.
    Raises ImageError if the bytes are not an image; broken pixels raise when used, as with a file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content
        opened = open_image(content)
        self.format, self._mode, self._size = opened.format, opened.mode, opened.size
        self.info = opened.info

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self._content).hexdigest()

    def decode(self) -> Image.Image:
        """An ordinary image with the pixels. ImageError where these are broken."""
        with pillow_errors():
            image = open_image(self._content)
            image.load()
        return image

    @property
    def im(self) -> Any:
        """The pixels, for those methods of Pillow that are not overridden below."""
        return self.decode().im

    @im.setter
    def im(self, im: Any) -> None:
        raise AttributeError("an EncodedImage cannot be changed; use its copy()")

    def load(self) -> Any:
        """The pixel access of Pillow; the decoded pixels are not kept."""
        return self.decode().load()

    def copy(self) -> Image.Image:
        """An ordinary image."""
        return self.decode().copy()

    def convert(self, *args: Any, **kwargs: Any) -> Image.Image:
        return self.decode().convert(*args, **kwargs)

    def transpose(self, *args: Any, **kwargs: Any) -> Image.Image:
        return self.decode().transpose(*args, **kwargs)
