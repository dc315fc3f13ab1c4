"""Figures of a visual tokenizer on any set of images: what it keeps, and what its embeddings know.

Every figure gathers batch by batch in bounded memory (embeddings for retrieval apart), and what several
processes gathered is merged into the figures of one. Under torch.distributed each process measures its own
share and all return the same result.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor, UserError, VisualCodes
from ..data.image_sets import GivenImages, ImageSet, Sample
from ..metrics.codebook import CodebookUsage
from ..metrics.fid import (
    INCEPTION_FILE,
    FeatureExtractor,
    FeatureStatistics,
    InceptionFeatures,
    frechet_distance,
)
from ..metrics.lpips import PerceptualDistance
from ..metrics.mean import RunningMean
from ..metrics.psnr import psnr
from ..metrics.retrieval import retrieval_recall
from ..metrics.ssim import DATA_RANGES, ssim
from ..metrics.zero_shot import (
    Template,
    TextIds,
    TextTower,
    ZeroShotAccuracy,
    imagenet_classes,
    imagenet_templates,
    zero_shot_classifier,
)

METRICS = ("psnr", "ssim", "lpips", "rfid", "codebook", "zero_shot", "retrieval")
CROPS = ("none", "center")
_PACKAGES = ("torch", "scikit-image", "lpips", "torchmetrics", "torch-fidelity", "open_clip_torch")


@dataclass(frozen=True)
class FigureOptions:
    """What single figures need.

    lpips_weights: state dict of `lpips.LPIPS(net="vgg")`. fid_weights: torch-fidelity's Inception file;
    `feature_extractor` takes its place for other features. Without them LPIPS and rFID are null: nothing is
    fetched.
    classes: names of the classes, by number; default: those the images come with, or ImageNet's. templates:
    prompts with "{}"; default: CLIP's 80. text_tokenizer: of the tokenizer's text side, for zero_shot and
    retrieval.
    crop: "none" resizes images to a square as the tokenizer's processor does; "center" cuts the middle square
    first, as ImageNet figures of tokenizer papers do.
    """

    lpips_weights: Path | None = None
    fid_weights: Path | None = None
    feature_extractor: FeatureExtractor | None = None
    classes: Sequence[str] | None = None
    templates: Sequence[Template] | None = None
    text_tokenizer: Any = None
    crop: str = "none"


@dataclass
class Batch:
    """One batch: uint8 images (B, 3, S, S) before and after, the codes, the embeddings (B, E)."""

    samples: list[Sample]
    originals: Tensor
    reconstructions: Tensor | None
    codes: VisualCodes
    features: Tensor | None


class Figure(ABC):
    """One family of figures: gathers from batches, merges states of other processes, and reports."""

    wants_reconstruction = False
    wants_features = False
    notes: list[str]

    def __init__(self) -> None:
        self.notes = []

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Gather from a batch."""

    @abstractmethod
    def state(self) -> Any:
        """What was gathered, to be sent to another process."""

    @abstractmethod
    def merge(self, states: Sequence[Any]) -> None:
        """Take the states of all processes, this one's included, in place of the own."""

    @abstractmethod
    def figures(self) -> dict[str, float | list[float] | None]:
        """The figures by name; None where one cannot be had, with the reason in `notes`."""


class PairFigure(Figure):
    """Means of a number per pair of images: PSNR, SSIM, LPIPS."""

    wants_reconstruction = True

    def __init__(self, scores: Mapping[str, Callable[[Tensor, Tensor], Sequence[float]]]) -> None:
        super().__init__()
        self._scores = scores
        self._means = {name: RunningMean() for name in scores}

    def update(self, batch: Batch) -> None:
        assert batch.reconstructions is not None
        for name, score in self._scores.items():
            self._means[name].update(score(batch.originals, batch.reconstructions))

    def state(self) -> dict[str, RunningMean]:
        return self._means

    def merge(self, states: Sequence[dict[str, RunningMean]]) -> None:
        self._means = {name: RunningMean() for name in self._scores}
        for state in states:
            for name, mean in state.items():
                self._means[name].merge(mean)

    def figures(self) -> dict[str, float | list[float] | None]:
        found: dict[str, float | list[float] | None] = {n: mean.value for n, mean in self._means.items()}
        if "psnr" in self._means:
            equal = self._means["psnr"].not_finite
            found["psnr_identical"] = float(equal)
            if equal:
                self.notes.append(
                    f"{equal} images came back identical: their PSNR is infinite and not in the mean"
                )
        return found


class RfidFigure(Figure):
    """FID between the images as the tokenizer sees them and what it gives back."""

    wants_reconstruction = True

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self._extractor = extractor
        self._sides = (FeatureStatistics(), FeatureStatistics())

    def update(self, batch: Batch) -> None:
        assert batch.reconstructions is not None
        for side, images in zip(self._sides, (batch.originals, batch.reconstructions), strict=True):
            side.update(self._extractor(images))

    def state(self) -> tuple[FeatureStatistics, FeatureStatistics]:
        return self._sides

    def merge(self, states: Sequence[tuple[FeatureStatistics, FeatureStatistics]]) -> None:
        self._sides = (FeatureStatistics(), FeatureStatistics())
        for state in states:
            for side, other in zip(self._sides, state, strict=True):
                side.merge(other)

    def figures(self) -> dict[str, float | list[float] | None]:
        first, second = self._sides
        if first.count < 2:
            self.notes.append("rfid is null: it needs at least two images")
            return {"rfid": None}
        if first.mean is not None and first.count <= len(first.mean):
            self.notes.append(
                f"rfid of {first.count} images with {len(first.mean)} features is biased upwards; compare it "
                "only with figures on the same images (papers: 50,000)"
            )
        return {"rfid": frechet_distance(first, second)}


class CodebookFigure(Figure):
    """Usage and perplexity of both codebooks at every depth."""

    def __init__(self, tokenizer: DualTokenizer) -> None:
        super().__init__()
        branches = {
            "pixel": tokenizer.config.pixel_quantizer,
            "semantic": tokenizer.config.semantic_quantizer,
        }
        self._sizes = {name: (int(of["num_codes"]), int(of["depth"])) for name, of in branches.items()}
        self._shared = {name: bool(of["shared_codebook"]) for name, of in branches.items()}
        self._usage = {name: CodebookUsage(*size) for name, size in self._sizes.items()}

    def update(self, batch: Batch) -> None:
        self._usage["pixel"].update(batch.codes.pixel)
        self._usage["semantic"].update(batch.codes.semantic)

    def state(self) -> dict[str, CodebookUsage]:
        return self._usage

    def merge(self, states: Sequence[dict[str, CodebookUsage]]) -> None:
        self._usage = {name: CodebookUsage(*size) for name, size in self._sizes.items()}
        for state in states:
            for name, usage in state.items():
                self._usage[name].merge(usage)

    def figures(self) -> dict[str, float | list[float] | None]:
        found: dict[str, float | list[float] | None] = {}
        for name, usage in self._usage.items():
            found[f"{name}_usage"] = usage.usage()
            found[f"{name}_perplexity"] = usage.perplexity()
            if self._shared[name]:
                found[f"{name}_usage_all_depths"] = usage.usage_of_all_depths()
        return found


class ZeroShotFigure(Figure):
    """Accuracy of the nearest class prompt."""

    wants_features = True

    def __init__(self, classifier: Tensor, classes: Sequence[str]) -> None:
        super().__init__()
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._accuracy = ZeroShotAccuracy(classifier)

    def update(self, batch: Batch) -> None:
        assert batch.features is not None
        labels = [self._number(sample.label) for sample in batch.samples]
        known = [row for row, label in enumerate(labels) if label is not None]
        if known:
            self._accuracy.update(batch.features[known], [label for label in labels if label is not None])

    def state(self) -> ZeroShotAccuracy:
        return self._accuracy

    def merge(self, states: Sequence[ZeroShotAccuracy]) -> None:
        self._accuracy = ZeroShotAccuracy(self._accuracy.classifier)
        for state in states:
            self._accuracy.merge(state)

    def figures(self) -> dict[str, float | list[float] | None]:
        if not self._accuracy.count:
            self.notes.append("zero_shot is null: no image has a class label")
        return {**self._accuracy.figures(), "zero_shot_n": float(self._accuracy.count)}

    def _number(self, label: str | int | None) -> int | None:
        if isinstance(label, str):
            if label not in self._numbers:
                raise UserError(f"an image has the class {label!r}, which is not among the classes given")
            return self._numbers[label]
        if label is not None and not 0 <= label < len(self._numbers):
            raise UserError(f"an image has the class number {label}; there are {len(self._numbers)} classes")
        return label


@dataclass
class Embeddings:
    """Image embeddings, text embeddings, and the image of each text."""

    images: list[Tensor] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def extend(self, other: Embeddings) -> None:
        shift = len(self.images)
        self.images += other.images
        self.texts += other.texts
        self.owners += [owner + shift for owner in other.owners]


class RetrievalFigure(Figure):
    """R@1, 5 and 10 both ways, over the images that have captions."""

    wants_features = True

    def __init__(self, tower: TextTower, text_ids: TextIds) -> None:
        super().__init__()
        self._tower, self._text_ids = tower, text_ids
        self._embeddings = Embeddings()

    def update(self, batch: Batch) -> None:
        assert batch.features is not None
        for features, sample in zip(batch.features.float().cpu(), batch.samples, strict=True):
            if sample.texts:
                own = self._tower.encode_text(self._text_ids(list(sample.texts))).cpu()
                self._embeddings.extend(Embeddings([features], list(own), [0] * len(own)))

    def state(self) -> Embeddings:
        return self._embeddings

    def merge(self, states: Sequence[Embeddings]) -> None:
        self._embeddings = Embeddings()
        for state in states:
            self._embeddings.extend(state)

    def figures(self) -> dict[str, float | list[float] | None]:
        found: dict[str, float | list[float] | None] = {"retrieval_n": float(len(self._embeddings.images))}
        if not self._embeddings.images:
            self.notes.append("retrieval is null: no image has a caption")
            return {**found, "image_to_text_R@1": None, "text_to_image_R@1": None}
        images, texts = torch.stack(self._embeddings.images), torch.stack(self._embeddings.texts)
        return {**found, **retrieval_recall(images, texts, self._embeddings.owners)}


def measure_tokenizer(
    tokenizer: DualTokenizer,
    images: ImageSet | Sequence[Any],
    metrics: Sequence[str] = METRICS,
    batch_size: int = 32,
    progress: bool = False,
    options: FigureOptions | None = None,
    processor: DualTokenizerImageProcessor | None = None,
) -> dict[str, Any]:
    """Measure a tokenizer on a set of images.

    Args:
        tokenizer: on its device; it is put in eval mode.
        images: an `ImageSet` (see `open_images`), or a list of PIL images, paths or `Sample`s.
        metrics: names out of METRICS.
        batch_size: changes the speed, and the figures by rounding only.
        progress: show a bar.
        options: weights, class names, crop; see `FigureOptions`.
        processor: of the tokenizer's images; default: one of its size.

    Returns:
        {"figures": name -> number, list over depths or None; "n": images measured; "n_expected": images in
        the set; "skipped": [[name, reason], …]; "notes": […]; "settings": {…}}, JSON values only.

    Raises:
        UserError: an unknown metric, a missing package (named with its extra), no image that can be read.
    """
    options = options or FigureOptions()
    _check(metrics, batch_size, options)
    tokenizer.eval()
    sources = images if isinstance(images, ImageSet) else GivenImages(images)
    processor = processor or DualTokenizerImageProcessor(size=tokenizer.config.image_size)
    figures, missing = _build(tokenizer, sources, metrics, options)
    skipped: list[list[str]] = []
    count = 0
    for samples in _batches(sources, batch_size, skipped, progress):
        batch = _run(tokenizer, processor, samples, figures, options.crop)
        for figure in figures:
            figure.update(batch)
        count += len(samples)
    states = _of_all_processes(([figure.state() for figure in figures], count, skipped))
    for number, figure in enumerate(figures):
        figure.merge([state[0][number] for state in states])
    count = sum(state[1] for state in states)
    skipped = sorted(entry for state in states for entry in state[2])
    if not count:
        reason = f": {skipped[0][1]}" if skipped else ""
        raise UserError(f"no image of {sources.source} could be measured{reason}")
    return _report(figures, missing, count, skipped, sources) | {
        "settings": _settings(tokenizer, sources, metrics, options, processor)
    }


def _check(metrics: Sequence[str], batch_size: int, options: FigureOptions) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        problem = f"metric {unknown[0]!r} is unknown" if unknown else "no metric was asked for"
        raise UserError(f"{problem}; there are {', '.join(METRICS)}")
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    if options.crop not in CROPS:
        raise UserError(f"crop {options.crop!r} is unknown; allowed: {', '.join(CROPS)}")


def _build(
    tokenizer: DualTokenizer, sources: ImageSet, metrics: Sequence[str], options: FigureOptions
) -> tuple[list[Figure], dict[str, str]]:
    """The figures asked for, and name -> reason for those that cannot be had."""
    figures: list[Figure] = []
    missing: dict[str, str] = {}
    if "psnr" in metrics:
        figures.append(PairFigure({"psnr": _per_image(psnr)}))
    if "ssim" in metrics:
        named = {name: _per_image(_with_range(value)) for name, value in DATA_RANGES.items()}
        figures.append(PairFigure(named))
    if "lpips" in metrics:
        if options.lpips_weights is None:
            missing["lpips_vgg"] = 'needs --lpips-weights, the state dict of lpips.LPIPS(net="vgg")'
        else:
            distance = PerceptualDistance(options.lpips_weights, tokenizer.device)
            figures.append(PairFigure({"lpips_vgg": distance}))
    if "rfid" in metrics:
        if options.feature_extractor is not None:
            figures.append(RfidFigure(options.feature_extractor))
        elif options.fid_weights is None:
            missing["rfid"] = f"needs --fid-weights, torch-fidelity's {INCEPTION_FILE}"
        else:
            figures.append(RfidFigure(InceptionFeatures(options.fid_weights, tokenizer.device)))
    if "codebook" in metrics:
        figures.append(CodebookFigure(tokenizer))
    for name, build in (("zero_shot", _zero_shot), ("retrieval", _retrieval)):
        if name in metrics:
            built = build(tokenizer, sources, options)
            if isinstance(built, Figure):
                figures.append(built)
            else:
                missing[name] = built
    return figures, missing


def _zero_shot(tokenizer: DualTokenizer, sources: ImageSet, options: FigureOptions) -> Figure | str:
    if options.text_tokenizer is None:
        return "needs the text tokenizer of the visual tokenizer's folder"
    labels, names = _classes(sources, options)
    if not labels:
        return "no image has a named class (with numbers for labels, name the classes with --classes)"
    templates = list(options.templates or imagenet_templates())
    text_ids = _text_ids(tokenizer, options)
    with torch.inference_mode():
        classifier = zero_shot_classifier(TextTower(tokenizer), text_ids, names, templates)
    return ZeroShotFigure(classifier, labels)


def _classes(sources: ImageSet, options: FigureOptions) -> tuple[list[str], list[str]]:
    """What the images are labelled with, and the names that the prompts say, in one order."""
    found = list(sources.classes or [])
    if options.classes is None:
        return found, imagenet_classes() if _are_imagenet_folders(found) else found
    names = list(options.classes)
    if set(found) <= set(names):
        return names, names
    if len(found) != len(names):
        raise UserError(
            f"{len(names)} class names were given and the images are of {len(found)} classes with other "
            "names; give the same names, or one for each class in their sorted order"
        )
    return found, names


def _are_imagenet_folders(names: Sequence[str]) -> bool:
    """Whether these are the 1000 folder names of ImageNet, which sorted are in the order of its labels."""
    return len(names) == 1000 and all(n[:1] == "n" and n[1:].isdecimal() and len(n) == 9 for n in names)


def _retrieval(tokenizer: DualTokenizer, sources: ImageSet, options: FigureOptions) -> Figure | str:
    if options.text_tokenizer is None:
        return "needs the text tokenizer of the visual tokenizer's folder"
    return RetrievalFigure(TextTower(tokenizer), _text_ids(tokenizer, options))


def _text_ids(tokenizer: DualTokenizer, options: FigureOptions) -> TextIds:
    text: Any = tokenizer.config.text_config
    length = text["max_position_embeddings"] if isinstance(text, dict) else text.max_position_embeddings
    return TextIds(options.text_tokenizer, int(length))


def _with_range(data_range: float) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda original, reconstruction: ssim(original, reconstruction, data_range)


def _per_image(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Tensor, Tensor], list[float]]:
    def of_batch(originals: Tensor, reconstructions: Tensor) -> list[float]:
        pairs = zip(*(side.permute(0, 2, 3, 1).numpy() for side in (originals, reconstructions)), strict=True)
        return [score(original, reconstruction) for original, reconstruction in pairs]

    return of_batch


def _batches(
    sources: ImageSet, batch_size: int, skipped: list[list[str]], progress: bool
) -> Iterator[list[Sample]]:
    """This process's share in batches of readable images; the others are noted in `skipped`."""
    rank, world = _place()
    total = len(range(rank, len(sources), world))
    hidden = None if progress and rank == 0 else True  # None: shown on a terminal only
    bar = tqdm(sources.part(rank, world), total=total, unit="images", disable=hidden)
    waiting: list[Sample] = []
    for sample in bar:
        if sample.image is None:
            skipped.append([sample.name, sample.problem])
            print(f"skipped {sample.name}: {sample.problem}", file=sys.stderr)
            continue
        waiting.append(sample)
        if len(waiting) == batch_size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


@torch.inference_mode()
def _run(
    tokenizer: DualTokenizer,
    processor: DualTokenizerImageProcessor,
    samples: list[Sample],
    figures: Sequence[Figure],
    crop: str,
) -> Batch:
    """Encode, decode and embed one batch."""
    pictures = [sample.image for sample in samples if sample.image is not None]
    if crop == "center":
        pictures = [center_square(picture, processor.side) for picture in pictures]
    pixel_values = processor(pictures)["pixel_values"]
    originals = _to_bytes(processor, pixel_values)
    given = pixel_values.to(tokenizer.device, tokenizer.dtype)
    features = None
    if any(figure.wants_features for figure in figures):
        output = tokenizer(given, reconstruct=False)
        codes, features = output.codes, output.pooled
    else:
        codes = tokenizer.encode(given)
    reconstructions = None
    if any(figure.wants_reconstruction for figure in figures):
        reconstructions = _to_bytes(processor, tokenizer.decode(codes.pixel))
    return Batch(samples, originals, reconstructions, codes, features)


def _to_bytes(processor: DualTokenizerImageProcessor, pixel_values: Tensor) -> Tensor:
    """Normalised images -> uint8 (B, 3, S, S), by the processor's own rounding."""
    images = np.stack([np.asarray(image) for image in processor.to_images(pixel_values)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def center_square(image: Image.Image, side: int) -> Image.Image:
    """The middle square at `side` pixels, as ADM's and LlamaGen's evaluations cut it: halved by boxes while
    at least twice as large, the shorter side brought to `side` by bicubic filtering, then cut.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _place() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _of_all_processes(state: Any) -> list[Any]:
    _, world = _place()
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    dist.all_gather_object(states, state)
    return states


def _report(
    figures: Sequence[Figure],
    missing: dict[str, str],
    count: int,
    skipped: list[list[str]],
    sources: ImageSet,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for figure in figures:
        found |= figure.figures()
    notes = [note for figure in figures for note in figure.notes]
    notes += [f"{name} is null: {reason}" for name, reason in missing.items()]
    if skipped:
        notes.append(f"{len(skipped)} of {len(sources)} images could not be read and are in no figure")
    return {
        "figures": found | dict.fromkeys(missing),
        "n": count,
        "n_expected": len(sources),
        "skipped": skipped,
        "notes": notes,
    }


def _settings(
    tokenizer: DualTokenizer,
    sources: ImageSet,
    metrics: Sequence[str],
    options: FigureOptions,
    processor: DualTokenizerImageProcessor,
) -> dict[str, Any]:
    """All that the figures depend on."""
    return {
        "images": sources.source,
        "metrics": list(metrics),
        "image_size": processor.side,
        "crop": options.crop,
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
        "lpips_weights_sha256": _sha256(options.lpips_weights),
        "fid_weights_sha256": _sha256(options.fid_weights),
        "classes": len(options.classes or sources.classes or []) if "zero_shot" in metrics else None,
        "templates": len(options.templates) if options.templates else "open_clip OPENAI_IMAGENET_TEMPLATES",
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
