"""Measure a visual tokenizer on images: reconstructions, codes and embeddings.

Images come from a folder, a webdataset tar, shards, a HF dataset on disk, or the hub (hf:OWNER/NAME).
Metrics: psnr, ssim (both variants in use), lpips, rfid, codebook, zero_shot (for images with classes) and
retrieval (for images with captions). Weights are never downloaded: without its file LPIPS or rFID is null,
with the reason. Under torchrun every process measures its share, with the same metrics.

Example:
  dualtoken eval tokenizer --model nano --images photos --output metrics.json
  dualtoken eval tokenizer --model nano --images imagenet/val --crop center \\
    --fid-weights pt_inception-2015-12-05-6726825d.pth --lpips-weights lpips_vgg.pt
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError, shown
from ..common.files import write_text
from ..common.json_files import enumerate_lines, read_text
from ..common.output_files import check_file, json_with
from ..common.paths import user_path
from . import cli, options

if TYPE_CHECKING:
    from ..tokenizer import DualTokenizer

#: Characters of a class or a template; the text tower reads a few dozen tokens.
LONGEST_NAME = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_shared(parser, "--model")
    add("--images", required=True, help="folder, tar, shards, HF dataset on disk, or hf:OWNER/NAME")
    add("--split", help="split of shards or of a HF dataset (default: all, or the only one)")
    add("--metrics", help="metrics to compute, separated by commas (default: all)")
    add("--output", type=options.path, help="also write the result here, as JSON")
    add(
        "--crop",
        choices=("none", "center"),
        default="none",
        help="center cuts the middle square, as papers do on ImageNet; none leaves it to the tokenizer's "
        "resize_mode (default: none)",
    )
    add("--classes", help="file with a class name on every line, or imagenet")
    add("--templates", type=options.path, help="file with a prompt on every line, {} for the class")
    add("--lpips-weights", type=options.path, help='state dict of lpips.LPIPS(net="vgg")')
    add("--fid-weights", type=options.path, help="torch-fidelity's pt_inception-2015-12-05-6726825d.pth")
    add("--batch-size", type=options.batch_size, default=32, help="(default %(default)s)")
    options.add_shared(parser, "--device")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write. UserError for inputs that are missing or cannot be read."""
    if args.output:
        check_file(args.output, {"--images": Path(args.images)}, json_with("figures", "settings"))
    device = options.resolve_device(args.device)
    from ..eval.data.image_sets import open_images
    from ..eval.tokenizer.measure import METRICS, MetricOptions, measure_tokenizer
    from ..mllm.assembly.tokenizers import load_text_tokenizer
    from ..tokenizer import DualTokenizerImageProcessor

    asked = METRICS if args.metrics is None else args.metrics.split(",")
    metrics = [name.strip() for name in asked if name.strip()]
    images = open_images(args.images, args.split)
    tokenizer, folder = load_tokenizer(args.model)
    metric_options = MetricOptions(
        lpips_weights=args.lpips_weights,
        fid_weights=args.fid_weights,
        classes=class_names(args.classes),
        templates=templates(args.templates) if args.templates else None,
        text_tokenizer=saved_part(load_text_tokenizer, folder, "tokenizer.json", "tokenizer_config.json"),
        crop=args.crop,
    )
    processor = saved_part(
        DualTokenizerImageProcessor.from_pretrained, folder, "preprocessor_config.json"
    )  # without one the tokenizer's size decides
    with processes(device) as (rank, own_device):
        import torch

        torch.nn.Module.to(tokenizer, own_device)  # PreTrainedModel's own `to` has no usable types
        result = measure_tokenizer(
            tokenizer,
            images,
            metrics,
            args.batch_size,
            progress=True,
            options=metric_options,
            processor=processor,
        )
    if rank:
        return 0
    result["settings"]["model"] = str(args.model)
    if args.output:
        write_text(args.output, json.dumps(result, indent=2, allow_nan=False) + "\n")
    print("\n".join(summary(result)))
    return 0


def load_tokenizer(model: str) -> "tuple[DualTokenizer, str]":
    """The tokenizer of `--model`, a model's or its own folder or a hub id, and where it was found."""
    from ..common.loading.strict import TOKENIZER_FOLDER, tokenizer_source
    from ..tokenizer import DualTokenizer

    options.quiet_transformers()
    source = tokenizer_source(model)
    inside = Path(source) / TOKENIZER_FOLDER
    source = str(inside) if inside.is_dir() else source
    return DualTokenizer.from_pretrained(source), source


def saved_part(load: Callable[[str], Any], source: str, *files: str) -> Any:
    """`load(source)` of the tokenizer's folder or hub id; None where it has no such part.

    files: a folder with any of them has the part, and must then load without error.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in files):
        return None
    try:
        return load(source)
    except UserError:
        if folder.is_dir():
            raise
        return None


def class_names(given: str | None) -> list[str] | None:
    """The names of `--classes`."""
    if given is None:
        return None
    if given == "imagenet":
        from ..eval.metrics.zero_shot import imagenet_classes

        return imagenet_classes()
    return lines(user_path(given, "--classes"), "--classes")


def templates(file: Path) -> list[Callable[[str], str]]:
    """The prompts of `--templates`, as functions of a class's name. UserError for one without {}."""
    found = lines(file, "--templates")
    without = next((line for line in found if "{}" not in line), None)
    if without is not None:
        raise UserError(f"--templates {file}: {shown(without)} has no {{}} for the class")
    return [partial(_filled, line) for line in found]


def _filled(template: str, name: str) -> str:
    return template.replace("{}", name)  # not format, which would let a file read attributes


def lines(file: Path, option: str) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        found = [line.strip() for _, line in enumerate_lines(read_text(file, largest=10_000_000))]
    except UserError as error:
        raise UserError(f"{option} {error}") from None
    if not found:
        raise UserError(f"{option} {file} is empty")
    longest = max(found, key=len)
    if len(longest) > LONGEST_NAME:
        raise UserError(
            f"{option} {file}: {shown(longest)} has {len(longest)} characters; at most "
            f"{LONGEST_NAME} are read"
        )
    return found


@contextmanager
def processes(device: str) -> Iterator[tuple[int, str]]:
    """Yield this process's rank and device; under torchrun a process group exists within the block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, device
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")  # the metrics' states are on the CPU
    try:
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
        yield dist.get_rank(), own
    finally:
        dist.destroy_process_group()


def summary(result: dict[str, Any]) -> list[str]:
    """The metrics for the console: one a line, then how many images, then the notes."""
    rows = []
    for name, value in result["figures"].items():
        if isinstance(value, list):
            text = " ".join(f"{number:.4g}" for number in value)
        else:
            text = "null" if value is None else f"{value:.4f}"
        rows.append(f"{name:<24} {text}")
    images = f"{result['n']} of {result['n_expected']} images"
    return [*rows, images, *(f"note: {note}" for note in result["notes"])]


if __name__ == "__main__":
    cli.run_main(__spec__)
