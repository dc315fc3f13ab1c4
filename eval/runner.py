"""Predict and score.

Items are put into fixed batches first and batches dealt to ranks, so a batch, and with it every prediction,
is the same whatever the number of ranks and however often a run was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..common.errors import UserError
from ..common.files import atomic_file
from .benchmark import Benchmark, Item, Score
from .hub import fetch, is_hub
from .judged import JudgedBenchmark, judge_predictions
from .manifest import data_checksum, describe, open_manifest, prompts_checksum, read_manifest
from .predictions import PredictionWriter, merge_predictions, read_predictions
from .predictor import Predictor

RESULT = "result.json"


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    Args:
        data: folder of the benchmark's official files, or of folders that are named after benchmarks; or
            "hub", "hub@REVISION", "hub:ORG/NAME[@REVISION]"; None: what comes with the package.
        split: None takes the benchmark's default.
        batch_size: items at a time; part of what is compared when a run goes on.
        limit: only this many items, for a quick look; there is no headline figure then.
        seed: of drawings; item i is drawn from seed + i.
        generation: overrides of the benchmark's own settings.
        rank, world: this process among those that share the work.
    """

    data: Path | str | None = None
    split: str | None = None
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    generation: Mapping[str, Any] | None = None
    rank: int = 0
    world: int = 1


def run_folder(output: Path, benchmark: Benchmark, split: str) -> Path:
    """Where the predictions and the result of one benchmark are."""
    return output / benchmark.name / split


@dataclass(frozen=True)
class Loaded:
    """All items of a split, and where they are from: "package", "files" or "hub:ORG/NAME@COMMIT"."""

    split: str
    items: Sequence[Item]
    source: str


def load_data(benchmark: Benchmark, settings: Settings) -> Loaded:
    """The items of the split meant. UserError for ids that are not unique."""
    split = benchmark.split_or_default(settings.split)
    root, source = _open(benchmark, settings.data, split)
    items = benchmark.load(root, split)
    if len({item.id for item in items}) < len(items):
        raise UserError(
            f"{benchmark.name}: item ids are not unique; the data files are not the official ones"
        )
    return Loaded(split, items, source)


def _open(benchmark: Benchmark, data: Path | str | None, split: str) -> tuple[Path | None, str]:
    """The folder to load from, and where it is from."""
    packaged = not benchmark.source
    if data is None or (packaged and is_hub(data)):  # such a one may be asked for together with others
        return None, "package"
    if is_hub(data):
        return fetch(str(data), benchmark.name, benchmark.hub, split)
    return Path(data) if packaged else own_folder(Path(data), benchmark.name), "files"


def own_folder(data: Path, name: str) -> Path:
    """The benchmark's folder below `data`, if there is one of its name, else `data`."""
    folders = (data / name, data / name.replace("-", "_"))
    return next((folder for folder in folders if folder.is_dir()), data)


def image_paths(items: Sequence[Item]) -> list[Path]:
    """The images of the items that are files."""
    return [image for item in items for image in item.images if not isinstance(image, Image.Image)]


def need_images(benchmark: Benchmark, items: Sequence[Item]) -> None:
    """UserError if images are missing."""
    paths = image_paths(items)
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(
            f"{benchmark.name}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}"
        )


def predict(
    benchmark: Benchmark,
    predictor: Predictor,
    output: Path,
    settings: Settings,
    model: str = "",
    checkpoint: str = "",
    device: str = "",
    loaded: Loaded | None = None,
) -> Path:
    """Make this rank's share of the predictions, going on where an earlier run stopped; returns the folder.

    `loaded` is what `load_data` gave for these settings, where that was done before.

    Raises:
        UserError: the folder holds predictions of another model, other data or other settings.
    """
    loaded = loaded or load_data(benchmark, settings)
    split, items = loaded.split, loaded.items[: settings.limit]
    need_images(benchmark, items)
    generation = {**benchmark.generation, **(settings.generation or {}), "batch_size": settings.batch_size}
    folder = run_folder(output, benchmark, split)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = describe(
        benchmark,
        split,
        items,
        loaded.source,
        model,
        checkpoint,
        generation,
        settings.seed,
        settings.limit,
        device,
    )
    open_manifest(folder, manifest)
    ids = [item.id for item in items]
    done = read_predictions(folder, ids)
    batches = range(settings.rank, -(-len(items) // settings.batch_size), settings.world)
    with PredictionWriter(folder, settings.rank, settings.world) as writer:
        for number in tqdm(batches, desc=benchmark.name, unit="batch", disable=None):
            start = number * settings.batch_size
            batch = items[start : start + settings.batch_size]
            if all(item.id in done for item in batch):
                continue
            made = _predict_batch(benchmark, predictor, batch, start, folder, settings, generation)
            writer.write({item.id: p for item, p in zip(batch, made, strict=True) if item.id not in done})
    if merge_predictions(folder, ids) and benchmark.kind == "draw":
        benchmark.write_layout(items, folder)
    return folder


def score(
    benchmark: Benchmark, output: Path, settings: Settings, loaded: Loaded | None = None
) -> dict[str, Any]:
    """Score finished predictions, without the model that made them; writes and returns the result.

    A benchmark with a judge's part asks the local judge, where one is named, for verdicts not yet there.

    `loaded` is what `load_data` gave for these settings, where that was done before.

    Raises:
        UserError: predictions are missing, or the data are not those that the predictions were made from.
    """
    split = benchmark.split_or_default(settings.split)
    folder = run_folder(output, benchmark, split)
    manifest = read_manifest(folder)
    loaded = loaded or load_data(benchmark, settings)
    items = loaded.items[: manifest["limit"]]
    for name, checksum in (("data", data_checksum(items)), ("prompts", prompts_checksum(items))):
        if manifest[name] != checksum:
            raise UserError(
                f"{folder}: the predictions were made from other {name}; give the --data of that run"
            )
    predictions = read_predictions(folder, [item.id for item in items])
    missing = len(items) - len(predictions)
    if missing:
        raise UserError(
            f"{folder} lacks {missing} of {len(items)} predictions; run `dualtoken eval predict` again, it "
            "goes on where it stopped"
        )
    judge = None
    if isinstance(benchmark, JudgedBenchmark):
        judge = judge_predictions(benchmark, items, predictions, folder)
    result = _result(manifest, benchmark.score(items, predictions, folder), judge)
    with atomic_file(folder / RESULT) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _predict_batch(
    benchmark: Benchmark,
    predictor: Predictor,
    batch: Sequence[Item],
    start: int,
    folder: Path,
    settings: Settings,
    generation: Mapping[str, Any],
) -> list[Any]:
    options = {name: value for name, value in generation.items() if name != "batch_size"}
    if benchmark.kind == "choose":
        return list(predictor.choose(batch))
    if benchmark.kind == "answer":
        return list(predictor.answer(batch, options))
    seeds = [settings.seed + start + number for number in range(len(batch))]
    drawn = predictor.draw(batch, benchmark.images_per_prompt, seeds, options)
    names = [
        [benchmark.image_name(start + place, number) for number in range(len(images))]
        for place, images in enumerate(drawn)
    ]
    for files, images in zip(names, drawn, strict=True):
        for file, image in zip(files, images, strict=True):
            with atomic_file(folder / file) as partial:
                image.save(partial, format="PNG")
    return names


def _result(manifest: Mapping[str, Any], score: Score, judge: Mapping[str, Any] | None) -> dict[str, Any]:
    expected = manifest["n_expected"]
    complete = manifest["limit"] is None and expected in (None, manifest["n"])
    metrics = {
        name: None if value is None else round(float(value), 6) for name, value in score.metrics.items()
    }
    notes = list(score.notes)
    if judge:
        notes.append(f"judge: {', '.join(judge['models']) or 'not named in ' + judge['file']}")
    if not complete:
        notes.append(f"{manifest['n']} of {expected or 'all'} items: no headline figure")
    return {
        "benchmark": manifest["benchmark"],
        "split": manifest["split"],
        "headline": {score.headline: metrics[score.headline]} if complete else None,
        "metrics": metrics,
        "n": manifest["n"],
        "n_expected": expected,
        "n_unparsed": score.unparsed,
        "notes": notes,
        **{name: manifest[name] for name in ("model", "checkpoint", "data", "prompts", "generation", "seed")},
        "data_source": manifest.get("data_source", ""),
        "judge": judge,
        "device": manifest["device"],
        "versions": manifest["versions"],
    }
