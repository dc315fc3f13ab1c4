"""Sampling of codes from logits: guidance, truncation, and one random stream per image.

Shapes: R images side by side, N codes, D depths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...common.errors import UserError, shown
from ...common.limits import limited, validate
from ...common.values import refuse_unknown, scalar, seed_number

_WORD = 0xFFFFFFFF
#: So that a seed gives the same image for every default dtype and device of torch.
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@dataclass(frozen=True)
class ImageSamplingConfig:
    """How the codes of an image are sampled.

    Args:
        guidance_scale: s of classifier-free guidance, logits u + s (c - u); 1.0 is plain conditional sampling
            without the unconditional branch, 0.0 ignores the prompt.
        guidance_schedule: "constant", or the growth of the scale from 1 at the image's first position to
            `guidance_scale` at the last: "linear", or "cosine" (slow at both ends).
        temperature: divides the logits; 0.0 takes the most likely code.
        top_k: sample from the k most likely codes; 0 samples from all.
        top_p: sample from the fewest codes that together have this probability; 1.0 samples from all.
        sampler: "inverse_cdf" (one random number per code against the cumulative distribution) or "gumbel"
            (Gumbel-max: the largest of logits plus noise, without a distribution).
        truncate_from_level: first depth (0-based) to which `top_k` and `top_p` apply. Truncating depth 0
            tends to blank images: an object's first code is rarely among the most likely ones.
        batch_invariant: n > 0 computes every image in a batch of n images of its prompt alone, so that image
            i of a seed has the same codes however many are generated and beside which prompts, in every
            dtype. n is part of what an image depends on, as are device, torch version and threads. Up to
            n - 1 images a prompt are computed in vain; prompts are generated one after the other. With 0
            batches are as they come: in fp32 the logits then differ in their last bits, which decide about a
            code in rare cases; in bf16 about one code in a hundred differs.

    Raises:
        UserError: a value outside its range.
    """

    guidance_scale: float = limited(3.0, least=0.0, most=100.0)
    temperature: float = limited(1.0, least=0.0, most=100.0)
    top_k: int = limited(0, least=0, most=1 << 24)
    top_p: float = limited(1.0, above=0.0, most=1.0)
    truncate_from_level: int = limited(0, least=0, most=64)
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    sampler: Literal["inverse_cdf", "gumbel"] = "inverse_cdf"
    batch_invariant: int = limited(0, least=0, most=1024)

    def __post_init__(self) -> None:
        for one in fields(self):  # numpy's and torch's numbers become Python's
            value = scalar(getattr(self, one.name))
            if value is None or isinstance(value, list | tuple | Mapping):
                raise UserError(f"{one.name} is {shown(value)}; give one value")
            object.__setattr__(self, one.name, value)
        validate(self)

    @classmethod
    def of(cls, *settings: "Mapping[str, Any] | ImageSamplingConfig | None") -> "ImageSamplingConfig":
        """Options of mappings or other options; later ones override earlier ones, None overrides nothing.

        Raises:
            UserError: an unknown name, or a value outside its range.
        """
        chosen: dict[str, Any] = {}
        for one in settings:
            given = vars(one) if isinstance(one, cls) else one
            if not isinstance(given, Mapping | None):
                raise UserError(f"image_sampling is {shown(given)}; give its settings by name")
            chosen |= {name: value for name, value in (given or {}).items() if value is not None}
        refuse_unknown(chosen, cls.names(), "option of image generation")
        return cls(**chosen)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all options."""
        return tuple(one.name for one in fields(cls))

    @property
    def guided(self) -> bool:
        """Whether sampling needs the unconditional branch."""
        return self.guidance_scale != 1.0

    def truncates(self, level: int) -> bool:
        """Whether top_k or top_p act at this depth."""
        return level >= self.truncate_from_level and (self.top_k > 0 or self.top_p < 1.0)


def image_uniforms(seed: int, image_index: int, positions: int, codes: int) -> Tensor:
    """The random numbers of one image: (positions, codes) uniform in [0, 1), fp32, on the CPU.

    They depend on `seed` and `image_index` only, and so are the same on every device and in every batch.
    """
    stream = int(np.random.SeedSequence([seed, image_index]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator("cpu").manual_seed(stream)
    return torch.rand(positions, codes, generator=generator, **_PLAIN)


def guidance_scales(options: ImageSamplingConfig, positions: int) -> Tensor:
    """The guidance scale at every position of an image: (positions,) fp32."""
    if options.guidance_schedule == "constant":
        return torch.full((positions,), options.guidance_scale, **_PLAIN)
    progress = torch.linspace(0.0, 1.0, positions, **_PLAIN) if positions > 1 else torch.ones(1, **_PLAIN)
    if options.guidance_schedule == "cosine":
        progress = (1.0 - torch.cos(math.pi * progress)) / 2.0
    return 1.0 + (options.guidance_scale - 1.0) * progress


def guide(logits: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance: (2R, N) logits, conditional rows first -> (R, N) of u + s (c - u)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the likeliest codes to -inf: (R, N) -> (R, N). The most likely code always stays."""
    if top_k > 0:
        smallest_kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # A code is dropped when those before it already reach top_p.
        dropped = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
    return logits


def sample_codes(logits: Tensor, uniforms: Tensor, options: ImageSamplingConfig, level: int) -> Tensor:
    """One code per image: (R, N) guided logits of depth `level` and (R,) uniforms -> (R,) int64.

    One random number per code, and no transfer to the host.
    """
    logits = logits.float()
    if options.temperature == 0.0:
        return logits.argmax(dim=-1)
    logits = logits / options.temperature
    if options.truncates(level):
        logits = truncate(logits, options.top_k, options.top_p)
    if options.sampler == "gumbel":
        return (logits + gumbel_noise(uniforms, logits.shape[-1])).argmax(dim=-1)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Below the total, so that a code with a cumulative probability above it exists.
    below = total.nextafter(torch.zeros_like(total))
    threshold = torch.minimum(uniforms.to(total.dtype).unsqueeze(1) * total, below)
    return (cumulative <= threshold).sum(dim=-1)


def gumbel_noise(uniforms: Tensor, count: int) -> Tensor:
    """`count` standard Gumbel numbers from each uniform: (R,) -> (R, count), fp32.

    Counter-based: a class's number is a hash (MurmurHash3's finalizer, Appleby) of the uniform's 24 bits and
    the class, the same on every device and in every batch.
    """
    key = (uniforms * 2**24).long()  # exact, also in fp32
    key = key.unsqueeze(1) * 0x9E3779B1
    h = (key + torch.arange(count, device=uniforms.device) * 0x85EBCA77) & _WORD
    for multiplier, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        h = ((h ^ (h >> 16)) * multiplier) & _WORD
        h = h ^ (h >> shift)
    # 23 bits and a half: never 0 or 1, whose logarithms are infinite.
    uniform = ((h >> 9).float() + 0.5) / 2**23
    return -torch.log(-torch.log(uniform))


def prompt_seeds(seed: Any, prompts: int, generator: torch.Generator | None = None) -> list[int]:
    """One seed per prompt: one number for all, or a sequence of as many.

    A missing seed is sampled, one for all prompts, from `generator` or torch's global generator.

    Raises:
        UserError: another count, or a value that is not a seed.
    """
    if seed is None:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**31, (1,), generator=generator, device=device))
    if isinstance(seed, list | tuple | range) or getattr(seed, "ndim", 0) == 1:
        seeds = [seed_number(one) for one in seed]
        if len(seeds) != prompts:
            raise UserError(f"{len(seeds)} seeds for {prompts} prompts; give one seed, or one per prompt")
        return seeds
    return [seed_number(seed)] * prompts
