"""Predict and score.

Items are put into fixed batches first and batches dealt to ranks, so a batch, and with it every prediction,
is the same whatever the number of ranks and however often a run was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...common.errors import ImageError, UserError, shown
from ...common.files import atomic_file
from ...common.images.reading import load_image
from ...common.locks import only_process
from ..data.hub import fetch, is_hub
from ..judges.judged import JudgedBenchmark, judge_predictions
from .identity import data_checksum, describe, open_manifest, prompts_checksum, read_manifest
from .predictions import PredictionWriter, check_predictions, merge_predictions, read_predictions
from .predictor import Predictor
from .task import Benchmark, Item, Score

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
    items = benchmark.items(root, split)
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
    with only_process(folder, f"--output {folder}", part=f"-{settings.rank}" if settings.rank else ""):
        open_manifest(folder, manifest)
        ids = [item.id for item in items]
        done = read_predictions(folder, ids)
        check_predictions(benchmark.kind, items, done, folder)
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
    check_predictions(benchmark.kind, items, predictions, folder)
    missing = len(items) - len(predictions)
    if missing:
        raise UserError(
            f"{folder} lacks {missing} of {len(items)} predictions; run `dualtoken eval predict` again, it "
            "goes on where it stopped"
        )
    unasked = [item.id for item in items if predictions[item.id] is None]
    predictions |= {item.id: _wrong(benchmark, item) for item in items if predictions[item.id] is None}
    judge = None
    if isinstance(benchmark, JudgedBenchmark):
        judge = judge_predictions(benchmark, items, predictions, folder)
    result = _result(manifest, benchmark.score(items, predictions, folder), judge, unasked)
    with atomic_file(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _wrong(benchmark: Benchmark, item: Item) -> Any:
    """The prediction that stands for none: the empty answer, or choices that are all alike."""
    return [0.0] * len(item.choices) if benchmark.kind == "choose" else ""


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
    if benchmark.kind != "draw":
        ask = predictor.choose if benchmark.kind == "choose" else partial(predictor.answer, settings=options)
        try:
            return list(ask(batch))
        except ImageError:
            readable = [item for item in batch if _is_readable(item)]
            answers = iter(ask(readable)) if readable else iter(())
            return [next(answers) if item in readable else None for item in batch]
    seeds = [settings.seed + start + number for number in range(len(batch))]
    drawn = predictor.draw(batch, benchmark.images_per_prompt, seeds, options)
    names = [
        [benchmark.image_name(start + place, number) for number in range(len(images))]
        for place, images in enumerate(drawn)
    ]
    for files, images in zip(names, drawn, strict=True):
        for file, image in zip(files, images, strict=True):
            with atomic_file(folder / file) as temporary:
                image.save(temporary, format="PNG")
    return names


def _is_readable(item: Item) -> bool:
    """Whether all images of an item can be decoded; says on stderr what is wrong with one that cannot."""
    try:
        for image in item.images:
            load_image(image)
    except ImageError as error:
        print(f"item {shown(item.id)} is not asked: {error}", file=sys.stderr)
        return False
    return True


def _result(
    manifest: Mapping[str, Any], score: Score, judge: Mapping[str, Any] | None, unasked: Sequence[str]
) -> dict[str, Any]:
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
    if unasked:
        notes.append(
            f"{len(unasked)} items could not be asked ({shown(unasked[0])} first): wrong, and no headline"
        )
    return {
        "benchmark": manifest["benchmark"],
        "split": manifest["split"],
        "headline": {score.headline: metrics[score.headline]} if complete and not unasked else None,
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
