"""Delivering training samples: cached codes, raw image shards, packed rows.

Cases: samples with cached codes against decoding and tokenizing the same images on the fly with nano; decoded
images out of our shards in random order against plain webdataset over the same tars in sequence, with the
same decoding and as many workers; and the share of the positions that packing fills on a mixture as for
fine-tuning (questions, captions, image generation, plain conversations), with the share of nano's training
step that is spent waiting for data without any worker.

Examples:
  python benchmarks/loader.py
  python benchmarks/loader.py --size full      # more and larger images, for a larger machine
"""

from __future__ import annotations

import io
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from conversations import WEIGHTS, conversation, random_codes
from measure import argument_parser, compare, costs, default_device, report, timed_in_turns
from PIL import Image

from dualtoken.data_pipelines.codes.code_cache import tokenize_shards
from dualtoken.data_pipelines.records import EncodedImage, Record, image_part
from dualtoken.data_pipelines.scenes.scene import Scene, render
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.data_pipelines.stream.loader import example_batches
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Draw, Mixture
from dualtoken.data_pipelines.stream.packed_loader import PackedBatches, Packing
from dualtoken.data_pipelines.stream.packing import WindowPlan
from dualtoken.data_pipelines.stream.statistics import StreamStatistics
from dualtoken.mllm import DualTokenForConditionalGeneration, DualTokenProcessor
from dualtoken.tokenizer import DualTokenizer

NANO = Path(__file__).resolve().parents[1] / "pretrained" / "nano"
BATCH, WORKERS = 32, 2
PACK_LENGTH, STREAMED = 1024, 200


@dataclass(frozen=True)
class Size:
    """Records of each kind, images read raw and their side, samples of one timed pass, training steps."""

    records: int
    raw: int
    side: int
    samples: int
    steps: int


SIZES = {"small": Size(192, 1024, 128, 64, 2), "full": Size(4096, 8192, 512, 2048, 50)}


# --- data ----------------------------------------


def write_data(folder: Path, size: Size) -> None:
    """Shards of photos ("raw"), of questions with photos and with their codes, and of the other kinds.

    Codes of the other kinds are random: they cost as much to compute.
    """
    rng = np.random.default_rng(0)
    small, large = partial(photo, side=size.side), partial(photo, side=2 * size.side)
    write(folder / "raw", size.raw, lambda: conversation("t2i", rng, small), size.raw // (2 * WORKERS))
    write(folder / "vqa-images", size.records, lambda: conversation("vqa", rng, large))
    tokenizer = DualTokenizer.from_pretrained(NANO / "visual_tokenizer")
    tokenize_shards(tokenizer, folder / "vqa-images", folder / "vqa", progress=False)
    for name in ("caption", "t2i", "chat"):
        write(folder / name, size.records, partial(conversation, name, rng, random_codes()))


def write(
    folder: Path, count: int, make: Callable[[], list[dict[str, Any]]], shard_size: int = 10_000
) -> None:
    with ShardWriter(folder, source="benchmark", licence="MIT", shard_size=shard_size) as writer:
        for number in range(count):
            writer.write(Record(f"{folder.name}-{number}", make()))


def photo(scene: Scene, rng: np.random.Generator, side: int) -> dict[str, Any]:
    """A scene with the noise of a camera, as JPEG: flat colours would decode faster than photos do."""
    pixels = np.asarray(render(scene).resize((side, side)), dtype=np.float32)
    noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format="JPEG", quality=90)
    return image_part(EncodedImage(buffer.getvalue(), "jpg"))


# --- cached codes against the tokenizer ----------------------------------------


def deliver_codes(folder: Path, samples: int) -> Callable[[], None]:
    """Batches of ids, labels and codes, out of cached codes."""
    processor = DualTokenProcessor.from_pretrained(NANO)
    return taking(batches(folder / "vqa", processor, processor.collate), samples)


def deliver_tokenized(folder: Path, samples: int) -> Callable[[], None]:
    """The same batches, each image decoded and tokenized on the fly."""
    processor = DualTokenProcessor.from_pretrained(NANO)
    tokenizer = DualTokenizer.from_pretrained(NANO / "visual_tokenizer").eval()

    def collate(records: list[Any]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(processor.collate(records))
        codes = tokenizer.encode(batch.pop("pixel_values"))
        pixel, semantic = codes.pixel.flatten(1, 2), codes.semantic.flatten(1, 2)
        return {**batch, "pixel_codes": pixel, "semantic_codes": semantic}

    return taking(batches(folder / "vqa-images", processor, collate), samples)


def batches(folder: Path, processor: DualTokenProcessor, collate: Callable[..., Any]) -> Iterator[Any]:
    dataset = ShardDataset(folder)
    plan = BatchPlan(Mixture([len(dataset)], [1.0], 0), BATCH)
    return example_batches(plan, [dataset], partial(prepared, processor), collate)


def prepared(processor: DualTokenProcessor, record: Record, draw: int) -> Any:
    return processor.encode_record(record.messages)


def taking(stream: Iterator[Any], samples: int) -> Callable[[], None]:
    """A step that takes the next `samples` samples of a stream."""
    return lambda: consume(islice(stream, samples // BATCH))


# --- raw images against webdataset ----------------------------------------


def resized(image: Image.Image) -> np.ndarray:
    """The decoding of both loaders: uint8 (64, 64, 3)."""
    return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))


def first_image(record: Record, draw: int) -> np.ndarray:
    return resized(record.image_parts()[0]["image"])


def sample_image(sample: dict[str, Any]) -> np.ndarray:
    return resized(Image.open(io.BytesIO(sample["0.jpg"])))


def stack(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def consume(batches: Iterable[Any]) -> None:
    deque(batches, maxlen=0)


class OneEpoch(BatchPlan):
    """A plan that ends after one epoch, as webdataset does: workers of an endless plan read ahead."""

    def batches(self, start: int = 0) -> Iterator[list[Draw]]:
        return islice(super().batches(start), sum(self.mixture.lengths) // self.micro_batch_size)


def read_shards(folder: Path) -> Callable[[], None]:
    """One epoch of all images through our loader, workers started anew."""
    dataset = ShardDataset(folder / "raw")
    plan = OneEpoch(Mixture([len(dataset)], [1.0], 0), BATCH)

    return lambda: consume(example_batches(plan, [dataset], first_image, stack, num_workers=WORKERS))


def read_webdataset(folder: Path) -> Callable[[], None]:
    """One epoch of the same tars through webdataset, workers started anew."""
    import webdataset

    urls = [str(path) for path in sorted((folder / "raw").glob("*.tar"))]

    def step() -> None:
        dataset = webdataset.WebDataset(urls, shardshuffle=False).map(sample_image)
        loader = webdataset.WebLoader(
            dataset.batched(BATCH, collation_fn=stack),
            batch_size=None,
            num_workers=WORKERS,
            prefetch_factor=4,
        )
        consume(loader)

    return step


# --- packing and waiting ----------------------------------------


def packing_metrics(folder: Path, steps: int) -> dict[str, float]:
    """The share of positions that packing fills, and the share of nano's training step spent on data.

    Many rows are timed without training, in complete windows, and training steps on some of them.
    """
    processor = DualTokenProcessor.from_pretrained(NANO)
    statistics = StreamStatistics(list(WEIGHTS))
    stream = statistics.timed(packed_batches(folder, processor, statistics))
    batches = [next(stream).inputs for _ in range(STREAMED)]
    metrics = statistics.read()
    start = time.perf_counter()
    consume(islice(stream, STREAMED))
    waiting = (time.perf_counter() - start) / STREAMED
    step = median_step(batches[: steps + 1])
    return {
        "fill_share": round(metrics["fill_share"], 4),
        "wait_share": round(waiting / (waiting + step), 5),
        "step_seconds": round(step, 3),
        "length_mean": round(metrics["length_mean"], 1),
        "length_p95": round(metrics["length_p95"], 1),
    }


def median_step(batches: list[dict[str, Any]]) -> float:
    """Seconds of nano's training step: forward, backward, AdamW; the first one is warm-up."""
    model = (
        DualTokenForConditionalGeneration.from_pretrained(NANO, load_visual_tokenizer=False).float().train()
    )
    device = default_device()
    torch.nn.Module.to(model, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        model(**{key: value.to(device) for key, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def packed_batches(
    folder: Path, processor: DualTokenProcessor, statistics: StreamStatistics
) -> PackedBatches:
    sources = [ShardDataset(folder / name) for name in WEIGHTS]
    mixture = Mixture([len(source) for source in sources], list(WEIGHTS.values()), seed=0)
    return PackedBatches(
        mixture,
        WindowPlan(),
        Packing(PACK_LENGTH),
        sources,
        partial(prepared, processor),
        processor.collate_packed,
        rows=1,
        statistics=statistics,
    )


def main() -> None:
    args = argument_parser(__doc__, SIZES, "passes", repeats=3).parse_args()
    size = SIZES[args.size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, size)
        cached = {
            "dualtoken": partial(deliver_codes, folder, size.samples),
            "tokenizing on the fly": partial(deliver_tokenized, folder, size.samples),
        }
        name = f"{size.samples} samples with cached codes"
        cases = compare(name, "dualtoken", costs(cached, args.repeats))
        raw = {"dualtoken": partial(read_shards, folder), "webdataset": partial(read_webdataset, folder)}
        name = f"{size.raw} images of {size.side} x {size.side}, {WORKERS} workers"
        seconds = timed_in_turns({kind: build() for kind, build in raw.items()}, 2 * args.repeats)
        speed = round(seconds["webdataset"] / seconds["dualtoken"], 3)
        # Its memory is that of the workers, which are the same library's on both sides.
        ours = {"speed": speed, "memory": None, "seconds": round(seconds["dualtoken"], 4)}
        cases.append({"name": name, "against": "webdataset", **ours})
        metrics = packing_metrics(folder, size.steps)
    report("loader", cases, packing={"pack_length": PACK_LENGTH, **metrics})


if __name__ == "__main__":
    main()
