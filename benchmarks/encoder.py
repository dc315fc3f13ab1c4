"""Encoding at the released sizes: images to both kinds of codes, against the bare SigLIP forward.

Random weights of the real shapes. The reference is transformers' SiglipVisionModel with the same weights, in
the same precision, up to the layer of the semantic codes, without its pooling head. `sizes` says how many
parameters each part has, and what decoding takes.

Examples:
  python benchmarks/encoder.py
  python benchmarks/encoder.py --recipe so400m_256_rvq4
  python benchmarks/encoder.py --size full      # 32 images at a time in bf16, for a GPU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from measure import argument_parser, compare, costs, default_device, report
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig
from dualtoken.train.config.reading import parse_recipe

RECIPES = Path(__file__).resolve().parent.parent / "train" / "recipes"
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# (layers and widths, image size, patch size) of the SigLIP 2 that each recipe names.
BACKBONES = {
    "so400m_384_rvq8": (SO400M, 384, 14),
    "so400m_256_rvq4": (SO400M, 256, 16),
    "base_256_rvq4": (BASE, 256, 16),
}
IMAGES = {"small": 1, "full": 32}
SIGLIP2_VOCABULARY = 256_000


def tokenizer_config(recipe: str, text_layers: int | None = None) -> DualTokenizerConfig:
    """The recipe's tokenizer on its backbone; `text_layers` shortens the text tower, unused by images."""
    shape, image_size, patch_size = BACKBONES[recipe]
    text = {**shape, "vocab_size": SIGLIP2_VOCABULARY, "max_position_embeddings": 64}
    if text_layers is not None:
        text |= {"num_hidden_layers": text_layers, "vocab_size": 100}
    settings = parse_recipe([str(RECIPES / f"{recipe}.yaml")]).tokenizer
    assert settings is not None
    vision = {**shape, "image_size": image_size, "patch_size": patch_size}
    return DualTokenizerConfig(vision_config=vision, text_config=text, **vars(settings.model))


@cache  # the candidates of one process share the weights
def tokenizer(recipe: str, dtype: torch.dtype) -> DualTokenizer:
    """A tokenizer of random weights."""
    torch.manual_seed(0)
    with torch.device(default_device()):
        return DualTokenizer(tokenizer_config(recipe, text_layers=1)).eval().to(dtype)


def bare_siglip(model: DualTokenizer) -> SiglipVisionModel:
    """The vision tower up to the semantic layer as a model of transformers, with the tokenizer's weights."""
    vision = SiglipVisionConfig.from_dict(
        {
            **model.config.vision_config.to_dict(),
            "num_hidden_layers": model.config.semantic_layer,
            "vision_use_head": False,
        }
    )
    with torch.device("meta"):
        bare = SiglipVisionModel(vision)
    shared = model.backbone.vision_model.state_dict(keep_vars=True)
    bare.load_state_dict({name: shared[name] for name in bare.state_dict()}, assign=True)
    bare.embeddings.position_ids = model.backbone.vision_model.embeddings.position_ids
    return bare.eval()


def build(kind: str, recipe: str, images: int, dtype: torch.dtype) -> Callable[[], Any]:
    """One pass of `kind` ("dualtoken", "bare SigLIP" or "decode") over the same images."""
    model = tokenizer(recipe, dtype)
    config, bare = model.config, bare_siglip(model)
    with torch.device(default_device()):
        pixels = torch.randn(images, 3, config.image_size, config.image_size, dtype=dtype)
        codes = torch.randint(
            config.pixel_quantizer.num_codes, (images, *config.grid_size, config.pixel_quantizer.depth)
        )
    calls: dict[str, Callable[[], Any]] = {
        "dualtoken": lambda: model.encode(pixels),
        "bare SigLIP": lambda: bare(pixel_values=pixels),
        "decode": lambda: model.decode(codes),
    }

    def step() -> Any:
        with torch.inference_mode():
            return calls[kind]()

    return step


def parameters(recipe: str) -> dict[str, float]:
    """Millions of parameters and codebook entries of each part, from the shapes alone."""
    with torch.device("meta"):
        model = DualTokenizer(tokenizer_config(recipe))
    parts: dict[str, list[nn.Module]] = {
        "vision tower": [model.backbone.vision_model],
        "text tower": [model.backbone.text_model],
        "projections": [part for name, part in model.named_children() if name.endswith("_projection")],
        "quantizers": [model.pixel_quantizer, model.semantic_quantizer],
        "pixel decoder": [model.pixel_decoder],
    }

    def millions(modules: list[nn.Module]) -> float:
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        return round(sum(tensor.numel() for tensor in tensors) / 1e6, 1)

    return {**{name: millions(modules) for name, modules in parts.items()}, "all": millions([model])}


def main() -> None:
    parser = argument_parser(__doc__, IMAGES, "passes", repeats=2)
    parser.add_argument("--recipe", choices=list(BACKBONES), default="so400m_384_rvq8")
    args = parser.parse_args()
    dtype, images = (torch.bfloat16 if args.size == "full" else torch.float32), IMAGES[args.size]
    kinds = ("dualtoken", "bare SigLIP", "decode")
    measured = costs({k: partial(build, k, args.recipe, images, dtype) for k in kinds}, args.repeats)
    decode = asdict(measured.pop("decode"))
    cases = compare(f"encode, {args.recipe}, {images} images", "dualtoken", measured)
    report("encoder", cases, sizes={"millions": parameters(args.recipe), "decode": decode})


if __name__ == "__main__":
    main()
