"""Measure how similar a backbone's layers are, and suggest those for pixel and semantic features.

Prints the suggested shortcut, pixel and semantic layer with the reasons and the confidence, and plots the
similarities. Images are taken from a folder with its subfolders, as files or in shards; a hundred are enough.

Example:
  dualtoken layers --backbone google/siglip-base-patch16-256 --images photos --output layers.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError, one_line
from ..common.files import write_text
from ..common.images.reading import ImageSource, is_image_name
from ..common.json_files import read_json_object
from ..common.loading.model_source import model_source
from ..common.output_files import check_file, is_our_image, json_with, write_plot
from ..common.packages import require_package
from ..common.paths import walk_files
from . import cli, options
from .options import integer

if TYPE_CHECKING:
    import torch

    from ..tokenizer.backbone import TappedSiglip
    from ..tokenizer.layer_split import LayerSplit

BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone", required=True, help="folder or hub id of a SigLIP model")
    add("--images", type=options.path, required=True, help="folder with images or shards")
    add("--output", type=options.path, default="layers.png", help="the plot (default: %(default)s)")
    add("--json", type=options.path, help="also write every number here")
    add(
        "--num-images",
        type=options.num_images,
        default=200,
        help="at most so many images are used (default %(default)s)",
    )
    add("--segments", type=integer(2, 100), default=3, help="segments of layers (default %(default)s)")
    add("--seed", type=options.seed, default=0, help="of the choice of images and tokens")
    options.add_shared(parser, "--device")


def run(args: argparse.Namespace) -> int:
    """Measure, plot and print. UserError for a folder without images or a backbone that cannot be read."""
    output = options.png_path(args.output, "--output")
    source = backbone_source(args.backbone)
    images = choose_images(args.images, args.num_images, args.seed)
    inputs = {"one of the images": [image for image in images if isinstance(image, Path)]}
    check_file(output, inputs, is_our_image)
    if args.json is not None:
        check_file(args.json, inputs, json_with("pixel_share", "linear_cka"), "--json")
    require_package("matplotlib")
    device = options.resolve_device(args.device)
    import torch

    from ..tokenizer.layer_split import split_layers

    backbone = load_backbone(source)
    torch.nn.Module.to(backbone, device)  # PreTrainedModel's own `to` has no usable types
    split = split_layers(backbone, batches(images, backbone, device), args.segments, args.seed)
    write_plot(heat_map(split, str(args.backbone)), output, dpi=120)
    if args.json is not None:
        write_text(args.json, json.dumps(numbers(split), indent=2) + "\n")
    for reason in split.reasons:
        print(reason)
    shortcut = "null" if split.shortcut_layer is None else split.shortcut_layer
    print(
        f"shortcut_layer: {shortcut}  pixel_layer: {split.pixel_layer}  "
        f"semantic_layer: {split.semantic_layer}"
    )
    sure = "clear" if split.confidence >= 0.1 else "weak: look at the plot, and try neighbouring layers"
    print(f"confidence {split.confidence:.2f} ({sure}); {output}")
    return 0


def choose_images(folder: Path, count: int, seed: int) -> list[ImageSource]:
    """At most `count` random images of a folder. UserError if there is none."""
    import random

    from ..data_pipelines.shards.format import MANIFEST
    from ..data_pipelines.shards.reader import ShardDataset

    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder")
    files = walk_files(folder)
    sources: list[ImageSource] = [path for path in files if is_image_name(path.name)]
    for manifest in (path for path in files if path.name == MANIFEST):
        shards = ShardDataset(manifest.parent, split="all")
        chosen = random.Random(seed).sample(range(len(shards)), min(count, len(shards)))
        sources += [part["image"] for n in chosen for part in shards[n].image_parts() if "image" in part]
    if not sources:
        raise UserError(f"--images {folder} holds no image (.jpg, .png, .webp, …) and no shards")
    return random.Random(seed).sample(sources, min(count, len(sources)))


def backbone_source(given: str) -> str:
    """The folder or hub id of `--backbone`. UserError for a folder without a model."""
    source = model_source(given, "backbone")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise UserError(f"--backbone {given} has no config.json; give the folder of a SigLIP model")
    return source


def load_backbone(source: str) -> TappedSiglip:
    """The SigLIP of a folder or hub id, or the one inside a saved tokenizer, in eval mode and fp32."""
    from ..common.loading.strict import load_siglip
    from ..tokenizer import DualTokenizer
    from ..tokenizer.backbone import TappedSiglip

    options.quiet_transformers()
    config = Path(source) / "config.json"
    if config.is_file() and read_json_object(config).get("model_type") == "dualtoken_tokenizer":
        return DualTokenizer.from_pretrained(source).backbone.eval()
    siglip = load_siglip(source)
    backbone = TappedSiglip(siglip.config)
    backbone.load_state_dict(siglip.state_dict())
    return backbone.float().eval()


def batches(sources: list[ImageSource], backbone: TappedSiglip, device: str) -> Iterator[torch.Tensor]:
    """Batches of normalised images, with a progress bar; unreadable images are named and skipped."""
    import torch
    from tqdm import tqdm

    from ..tokenizer import DualTokenizerImageProcessor, load_image

    vision: Any = backbone.config.vision_config
    processor = DualTokenizerImageProcessor(size=vision.image_size)
    for start in tqdm(range(0, len(sources), BATCH), unit="batches", disable=None):
        images: list[torch.Tensor] = []
        for source in sources[start : start + BATCH]:
            try:
                images.append(processor(load_image(source))["pixel_values"])
            except UserError as error:
                print(one_line(f"skipped: {error}"), file=sys.stderr)
        if images:
            yield torch.cat(images).to(device)


def heat_map(split: LayerSplit, title: str) -> Any:
    """A matplotlib Figure: both similarities with segments and taps marked, recovered pixels below."""
    from matplotlib.figure import Figure

    layers = len(split.pixel_share)
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    for column, (name, matrix) in enumerate((("cosine", split.cosine), ("linear CKA", split.cka))):
        axes = figure.add_subplot(grid[0, column])
        shown = axes.imshow(matrix.cpu().numpy(), origin="lower", vmin=0 if column else -0.2, vmax=1)
        figure.colorbar(shown, ax=axes, shrink=0.8)
        for boundary in split.boundaries:
            axes.axhline(boundary - 0.5, color="white", linewidth=1)
            axes.axvline(boundary - 0.5, color="white", linewidth=1)
        axes.set(title=name, xlabel="layer", ylabel="layer")
    axes = figure.add_subplot(grid[1, :])
    axes.plot(range(layers), split.pixel_share.cpu().numpy(), marker="o", color="black")
    taps = {"shortcut": split.shortcut_layer, "pixel": split.pixel_layer, "semantic": split.semantic_layer}
    for (name, layer), colour in zip(taps.items(), ("tab:green", "tab:blue", "tab:red"), strict=True):
        if layer is not None:
            axes.axvline(layer, color=colour, label=f"{name} layer {layer}")
    axes.set(
        xlabel="layer", ylabel="pixels recovered (R²)", ylim=(min(0.0, float(split.pixel_share.min())), 1)
    )
    axes.legend(loc="lower left")
    figure.suptitle(f"{one_line(title, 80)}: confidence {split.confidence:.2f}", parse_math=False)
    return figure


def numbers(split: LayerSplit) -> dict[str, Any]:
    """Everything measured, for JSON."""
    return {
        "shortcut_layer": split.shortcut_layer,
        "pixel_layer": split.pixel_layer,
        "semantic_layer": split.semantic_layer,
        "confidence": split.confidence,
        "boundaries": list(split.boundaries),
        "reasons": list(split.reasons),
        "pixel_share": split.pixel_share.tolist(),
        "cosine": split.cosine.tolist(),
        "linear_cka": split.cka.tolist(),
    }


if __name__ == "__main__":
    cli.run_main(__spec__)
