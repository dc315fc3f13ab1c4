"""Metrics of a visual tokenizer on any set of images.

Metrics accumulate batch by batch in bounded memory (except embeddings for retrieval). Under
torch.distributed each process measures its share, and all return the metrics over all images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor, UserError
from ...tokenizer.processing import processor_of
from ..data.image_sets import GivenImages, ImageSet, Sample
from .batch import CROPS, run_tokenizer
from .code_usage import CodebookFamily
from .family import Family, MetricOptions, Subject, Unavailable
from .reconstruction import LpipsFamily, PsnrFamily, RfidFamily, SsimFamily
from .retrieval import RetrievalFamily
from .settings import measure_settings
from .zero_shot import ZeroShotFamily

METRICS: dict[str, type[Family]] = {
    "psnr": PsnrFamily,
    "ssim": SsimFamily,
    "lpips": LpipsFamily,
    "rfid": RfidFamily,
    "codebook": CodebookFamily,
    "zero_shot": ZeroShotFamily,
    "retrieval": RetrievalFamily,
}


def measure_tokenizer(
    tokenizer: DualTokenizer,
    images: ImageSet | Sequence[Any],
    metrics: Sequence[str] = tuple(METRICS),
    batch_size: int = 32,
    progress: bool = False,
    options: MetricOptions | None = None,
    processor: DualTokenizerImageProcessor | None = None,
) -> dict[str, Any]:
    """Measure a tokenizer on a set of images.

    Args:
        tokenizer: on its device; it is put in eval mode.
        images: an `ImageSet` (see `open_images`), or a list of PIL images, paths or `Sample`s.
        metrics: names out of METRICS.
        progress: show a bar.
        processor: default: one of the tokenizer's image size.

    Returns:
        {"figures": name -> number, list over depths or None; "n": images measured; "n_expected": images in
        the set; "skipped": [[name, reason], …]; "notes": […]; "settings": {…}}, JSON values only.

    Raises:
        UserError: an unknown metric, a missing package (named with its extra), no image that can be read.
    """
    options = options or MetricOptions()
    _check(metrics, batch_size, options)
    tokenizer.eval()
    sources = images if isinstance(images, ImageSet) else GivenImages(images)
    processor = processor_of(tokenizer.config, processor)
    subject = Subject(tokenizer, sources, options)
    families, missing = _build(subject, metrics)
    share = _gather(families, subject, processor, _batches(sources, batch_size, progress))
    shares = _of_all_processes(share)
    count = sum(number for number, _ in shares)
    skipped = sorted(entry for _, entries in shares for entry in entries)
    if not count:
        reason = f": {skipped[0][1]}" if skipped else ""
        raise UserError(f"no image of {sources.source} could be measured{reason}")
    values, notes = _values_and_notes(families, missing)
    if skipped:
        notes.append(f"{len(skipped)} of {len(sources)} images could not be read and are in no metric")
    return {
        "figures": values,
        "n": count,
        "n_expected": len(sources),
        "skipped": skipped,
        "notes": notes,
        "settings": measure_settings(subject, metrics, processor),
    }


def _gather(
    families: Sequence[Family],
    subject: Subject,
    processor: DualTokenizerImageProcessor,
    batches: Iterable[list[Sample]],
) -> tuple[int, list[list[str]]]:
    """Update the families with this process's share: its count, and [name, reason] of skipped images."""
    needs = {
        "reconstruct": any(family.needs_reconstruction for family in families),
        "embed": any(family.needs_features for family in families),
    }
    count, skipped = 0, list[list[str]]()
    for samples in batches:
        readable = [sample for sample in samples if sample.image is not None]
        skipped += [[sample.name, sample.problem] for sample in samples if sample.image is None]
        if readable:
            batch = run_tokenizer(subject.tokenizer, processor, readable, subject.options.crop, **needs)
            for family in families:
                family.update(batch)
        count += len(readable)
    return count, skipped


def _values_and_notes(
    families: Sequence[Family], missing: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    for family in families:
        values |= family.compute()
    notes = [note for family in families for note in family.notes]
    notes += [f"{name} is null: {reason}" for name, reason in missing.items()]
    return values | dict.fromkeys(missing), notes


def _check(metrics: Sequence[str], batch_size: int, options: MetricOptions) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        problem = f"metric {unknown[0]!r} is unknown" if unknown else "no metric is given"
        raise UserError(f"{problem}; there are {', '.join(METRICS)}")
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    if options.crop not in CROPS:
        raise UserError(f"crop {options.crop!r} is unknown; allowed: {', '.join(CROPS)}")


def _build(subject: Subject, metrics: Sequence[str]) -> tuple[list[Family], dict[str, str]]:
    """The families that were asked for, and name -> reason for those that cannot be computed."""
    families: list[Family] = []
    missing: dict[str, str] = {}
    for name, family in METRICS.items():
        if name in metrics:
            try:
                families.append(family(subject))
            except Unavailable as unavailable:
                missing[unavailable.name] = str(unavailable)
    return families, missing


def _batches(sources: ImageSet, batch_size: int, progress: bool) -> Iterator[list[Sample]]:
    """This process's share in batches of `batch_size` readable images, and the unreadable ones among them."""
    rank, world = _rank_and_world()
    total = len(range(rank, len(sources), world))
    hidden = None if progress and rank == 0 else True  # None: shown on a terminal only
    batch: list[Sample] = []
    readable = 0
    for sample in tqdm(sources.part(rank, world), total=total, unit="images", disable=hidden):
        batch.append(sample)
        if sample.image is None:
            print(f"skipped {sample.name}: {sample.problem}", file=sys.stderr)
            continue
        readable += 1
        if readable == batch_size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch


def _rank_and_world() -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _of_all_processes(share: Any) -> list[Any]:
    _, world = _rank_and_world()
    if world == 1:
        return [share]
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, share)
    return shares
