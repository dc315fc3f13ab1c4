"""The unified model's frozen visual tokenizer: images to codes and back."""

import torch
from torch import Tensor

from ..common.errors import UserError
from ..tokenizer import DualTokenizer, VisualCodes

DECODE_BATCH = 16


class VisualCodec:
    """Holds a visual tokenizer, or None for a model that works on cached codes only.

    It is not a module: the tokenizer's weights are not part of the model's parameters or state dict, and stay
    in fp32 and in eval mode.
    """

    def __init__(self) -> None:
        self.tokenizer: DualTokenizer | None = None

    def __repr__(self) -> str:
        size = "no tokenizer" if self.tokenizer is None else f"{self.tokenizer.config.image_size} px"
        return f"{type(self).__name__}({size})"

    def hold(self, tokenizer: DualTokenizer, device: torch.device) -> None:
        """Freeze a tokenizer and hold it on `device`."""
        self.tokenizer = tokenizer.float().eval().requires_grad_(False)
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move the tokenizer, if there is one."""
        if self.tokenizer is not None:
            self.tokenizer.to(device=device)  # type: ignore[call-arg]

    @property
    def required(self) -> DualTokenizer:
        """The tokenizer; raises UserError without one."""
        if self.tokenizer is None:
            raise UserError(
                "this needs the visual tokenizer, and the model was built without one; load it with "
                "from_pretrained(folder) of a complete model folder, or pass cached codes"
            )
        return self.tokenizer

    def encode(self, pixel_values: Tensor) -> VisualCodes:
        """Codes of images: (I, 3, S, S) in the processor's range -> pixel and semantic, each (I, P, D)."""
        tokenizer = self.required
        device = tokenizer.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            codes = tokenizer.encode(pixel_values.to(device=device, dtype=torch.float32))
        return VisualCodes(pixel=codes.pixel.flatten(1, 2), semantic=codes.semantic.flatten(1, 2))

    def decode(self, pixel_codes: Tensor) -> Tensor:
        """Pixels (I, 3, S, S) of pixel codes (I, P, D)."""
        tokenizer = self.required
        grid = pixel_codes.unflatten(1, tuple(tokenizer.config.grid_size))
        with torch.inference_mode(), torch.autocast(tokenizer.device.type, enabled=False):
            return torch.cat([tokenizer.decode(part) for part in grid.split(DECODE_BATCH)])

    def given(
        self, pixel_values: Tensor | None, pixel_codes: Tensor | None, semantic_codes: Tensor | None
    ) -> VisualCodes | None:
        """The codes (I, P, D) of a batch: cached ones, those of its images (I, 3, S, S), or None."""
        if (pixel_codes is None) != (semantic_codes is None):
            raise ValueError("pixel_codes and semantic_codes go together; only one was given")
        if pixel_codes is not None and semantic_codes is not None:
            if pixel_values is not None:
                raise ValueError("pass pixel_values or cached codes, not both")
            return VisualCodes(pixel=pixel_codes.long(), semantic=semantic_codes.long())
        return None if pixel_values is None else self.encode(pixel_values)
