"""The image processor: resizing and normalisation, and back to PIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from ..common.errors import ImageError, UserError, shown
from ..common.images.reading import LONGEST_SIDE, MAX_PIXELS, ImageSource, load_image
from ..common.loading.hub_upload import UploadedWhole
from ..common.loading.model_files import check_model_files
from ..common.loading.strict import loading_reason, tokenizer_source
from ..common.values import finite_number, whole_number
from .configuration import DualTokenizerConfig
from .resizing import GREY, Resample, ResizeMode, Resizing, pad_colour_of, resample_of


class DualTokenizerImageProcessor(UploadedWhole, BaseImageProcessor):
    """Turn images into `pixel_values` and back.

    Images become size x size as `resize_mode`, `resample` and `pad_colour` say (see `TokenizerSettings`), and
    are normalised to [-1, 1] by mean and standard deviation 0.5. Needs Pillow only. Saved as
    preprocessor_config.json; `for_config` makes the one of a tokenizer.
    """

    model_input_names = ["pixel_values"]
    _has_weights = False

    def __init__(
        self,
        size: int | dict[str, int] = 64,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        max_pixels: int = MAX_PIXELS,
        resize_mode: ResizeMode = "squash",
        resample: Resample | int = "bicubic",
        pad_colour: Sequence[int] = GREY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        settings = Resizing(resize_mode, resample_of(resample), pad_colour_of(pad_colour))
        self.resize_mode, self.resample = settings.resize_mode, settings.resample
        self.pad_colour = list(settings.pad_colour)
        self.size = {"height": _side(size), "width": _side(size)}
        self.image_mean = _three(image_mean, "image_mean")
        self.image_std = _three(image_std, "image_std", above=0.0)
        self.max_pixels = whole_number(max_pixels, "max_pixels", 1)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> Any:
        """The image processor saved with a tokenizer: a folder, a hub id, or "nano".

        Raises:
            UserError: it is missing, or its settings are invalid.
        """
        source = tokenizer_source(pretrained_model_name_or_path)
        check_model_files(source, kwargs.get("subfolder"))
        try:
            return super().from_pretrained(source, **{**kwargs, "trust_remote_code": False})
        except UserError:
            raise
        except Exception as error:  # transformers reads an untrusted file unchecked
            raise UserError(f"{source} has no usable image processor: {loading_reason(error)}") from error

    @classmethod
    def for_config(cls, config: DualTokenizerConfig) -> DualTokenizerImageProcessor:
        """The image processor of a tokenizer with this configuration."""
        return cls(config.image_size, **asdict(Resizing.of(config)))

    @property
    def side(self) -> int:
        """Side of the output images, in pixels."""
        return self.size["height"]

    def __call__(  # type: ignore[override]
        self, images: Any, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One image or a list, each as `load_image` takes it -> BatchFeature(pixel_values (B, 3, S, S) fp32).

        An array or tensor of four dimensions is a batch of images.
        """
        return self.preprocess(images, return_tensors=return_tensors, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:
        """The same as calling the processor."""
        if return_tensors not in ("pt", "np", None):
            raise UserError(f'return_tensors is {shown(return_tensors)}; give "pt", "np" or None')
        batch = _batch(images)
        pixels = np.stack([self._resize(batch, index) for index in range(len(batch))])
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        mean, std = self._mean_and_std()
        values = values.sub_(mean).div_(std).contiguous()
        data = values if return_tensors == "pt" else values.numpy()
        return BatchFeature({"pixel_values": data}, tensor_type=return_tensors)

    def resize(self, image: ImageSource) -> np.ndarray:
        """Load one image and resize it: uint8 (S, S, 3)."""
        return np.array(Resizing.of(self)(load_image(image, self.max_pixels), self.side))

    def _resize(self, batch: Sequence[ImageSource], index: int) -> np.ndarray:
        """Resize one image of a batch; the message of an error has its index if there are several."""
        try:
            return self.resize(batch[index])
        except ImageError as error:
            if len(batch) == 1:
                raise
            raise ImageError(f"image {index} of {len(batch)}: {error}") from None

    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Each (1, 3, 1, 1), fp32 on the CPU, independent of torch's defaults."""
        mean, std = torch.tensor([self.image_mean, self.image_std], dtype=torch.float32, device="cpu")
        return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)

    def to_images(self, pixel_values: Tensor) -> list[Image.Image]:
        """Normalised images (B, 3, S, S) or (3, S, S) -> PIL images; values out of range are clamped."""
        shape = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else None
        plain = shape is not None and pixel_values.layout == torch.strided and not pixel_values.is_meta
        if shape is None or len(shape) not in (3, 4) or shape[-3] != 3 or not plain:
            given = f"of shape {shape}" if plain else shown(pixel_values)
            raise UserError(f"decoded images are {given}; give a tensor (images, 3, height, width)")
        values = pixel_values.detach().to("cpu", torch.float32)
        values = values.unsqueeze(0) if values.dim() == 3 else values
        mean, std = self._mean_and_std()
        pixels = (values * std + mean).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).contiguous().numpy()]


def processor_of(
    config: DualTokenizerConfig, processor: DualTokenizerImageProcessor | None = None
) -> DualTokenizerImageProcessor:
    """The given image processor, or that of the configuration.

    Raises:
        UserError: the given one resizes images otherwise than the tokenizer of this configuration.
    """
    if processor is None:
        return DualTokenizerImageProcessor.for_config(config)
    own, given = asdict(Resizing.of(config)), asdict(Resizing.of(processor))
    if own["resize_mode"] != "pad" != given["resize_mode"]:
        own["pad_colour"] = given["pad_colour"]  # which neither uses
    for name in own:
        if own[name] != given[name]:
            raise UserError(
                f"the image processor (preprocessor_config.json) has {name} {given[name]!r}, but the "
                f"tokenizer (config.json) {own[name]!r}; set both to the one that it was trained with"
            )
    return processor


def _side(size: int | dict[str, int]) -> int:
    """The side of a square size, an integer or transformers' dict."""
    if isinstance(size, Mapping):
        sides = {key: size[key] for key in ("height", "width", "shortest_edge") if key in size}
        if len(set(map(str, sides.values()))) != 1:
            raise UserError(f"image size {shown(size)} is not square; give one side in pixels")
        size = next(iter(sides.values()))
    return whole_number(size, "image size", 1, LONGEST_SIDE)


def _three(values: Sequence[float], name: str, above: float | None = None) -> list[float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise UserError(f"{name} is {shown(values)}; give three numbers")
    return [finite_number(value, name, above=above) for value in values]


def _batch(images: Any) -> Sequence[ImageSource]:
    """The images as a sequence; UserError for none."""
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    batch = images if several else [images]
    if len(batch) == 0:
        raise UserError("no images given; give at least one")
    return batch
