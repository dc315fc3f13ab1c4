"""Images in and out: safe loading, resizing and normalising, and back to PIL."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from ..common.errors import UserError

ImageSource = str | Path | Image.Image
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    struct.error,
    zlib.error,
    EOFError,
    MemoryError,
)


def load_image(source: ImageSource, max_pixels: int = 64_000_000) -> Image.Image:
    """Read an image as upright RGB; transparent parts become white.

    source: a file or a PIL image. Raises UserError for a missing file, a folder, something that is no image,
    a broken image, or one of more than `max_pixels` pixels, which is refused before it is decoded.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the given image", max_pixels)
    if not isinstance(source, str | Path):
        raise UserError(f"an image is given as {type(source).__name__}; give a path or a PIL image")
    if str(source).startswith(("http://", "https://")):
        raise UserError(f"image {str(source)!r} is a web address; download it and give the file")
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"image {str(path)!r} does not exist")
    if path.is_dir():
        raise UserError(f"image {str(path)!r} is a folder; give a file")
    try:
        with Image.open(path) as image:
            return _to_rgb(image, repr(str(path)), max_pixels)
    except UnidentifiedImageError:
        raise UserError(f"{str(path)!r} is no image, or of a format that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {str(path)!r} is too big; at most {max_pixels} pixels are allowed") from None
    except UserError:
        raise
    except DECODING_ERRORS as error:
        raise UserError(f"image {str(path)!r} cannot be read: {error}") from None


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Check the size, decode, turn upright, put on white and convert."""
    if image.width * image.height > max_pixels:
        raise UserError(
            f"image {name} has {image.width} x {image.height} pixels; at most {max_pixels} are allowed: make "
            "it smaller"
        )
    if image.width == 0 or image.height == 0:
        raise UserError(f"image {name} is empty ({image.width} x {image.height})")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except DECODING_ERRORS as error:
        raise UserError(f"image {name} is broken: {error}") from None
    if image.mode.startswith("I"):  # 16-bit greys; convert("RGB") would clip them at 255
        grey = np.asarray(image, dtype=np.float64) / 257.0
        image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class DualTokenizerImageProcessor(BaseImageProcessor):
    """Turn images into `pixel_values` and back.

    Images are resized to size x size (bicubic, aspect ratio not kept, as SigLIP does) and normalised to [-1,
    1] by mean and standard deviation 0.5. Needs Pillow only. Saved as preprocessor_config.json.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | dict[str, int] = 64,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        max_pixels: int = 64_000_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = {"height": _side(size), "width": _side(size)}
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.max_pixels = max_pixels

    @property
    def side(self) -> int:
        """Side of the images made, in pixels."""
        return self.size["height"]

    def __call__(  # type: ignore[override]
        self, images: Any, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One image or a list (PIL, path, or uint8 array (H, W, 3)) -> BatchFeature(pixel_values (B, 3, S,
        S) fp32).
        """
        return self.preprocess(images, return_tensors=return_tensors, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:
        """The same as calling the processor."""
        batch = images if isinstance(images, list | tuple) else [images]
        if not batch:
            raise UserError("no images given; give at least one")
        pixels = np.stack([self.resize(image) for image in batch])
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        mean, std = (torch.tensor(given).view(1, 3, 1, 1) for given in (self.image_mean, self.image_std))
        values = values.sub_(mean).div_(std).contiguous()
        data = values if return_tensors == "pt" else values.numpy()
        return BatchFeature({"pixel_values": data}, tensor_type=return_tensors)

    def resize(self, image: ImageSource | np.ndarray) -> np.ndarray:
        """Load one image and resize it: uint8 (S, S, 3)."""
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        loaded = load_image(image, self.max_pixels)
        if loaded.size != (self.side, self.side):
            loaded = loaded.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.array(loaded)

    def to_images(self, pixel_values: Tensor) -> list[Image.Image]:
        """Normalised images (B, 3, S, S) or (3, S, S) -> PIL images; values out of range are clamped."""
        values = pixel_values.detach().to("cpu", torch.float32)
        values = values.unsqueeze(0) if values.dim() == 3 else values
        mean, std = (torch.tensor(given).view(1, 3, 1, 1) for given in (self.image_mean, self.image_std))
        pixels = (values * std + mean).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).contiguous().numpy()]


def _side(size: int | dict[str, int]) -> int:
    """The one side of a square size, given as a number or as transformers' dict."""
    if isinstance(size, int):
        sides = {size}
    else:
        sides = {size[key] for key in ("height", "width", "shortest_edge") if key in size}
    if len(sides) != 1 or min(sides) < 1:
        raise UserError(f"image size {size} is not square; give one side in pixels")
    return sides.pop()


def _from_array(array: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3), (H, W, 4) or (H, W) -> PIL."""
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits:
        raise UserError(
            f"an image array has shape {array.shape} and type {array.dtype}; give uint8 (height, width, 3)"
        )
    return Image.fromarray(array)
