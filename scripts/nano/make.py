"""Make the nano model from data to folder: prepare, train in five steps, evaluate, write the model card.

Data sets that are missing in the folder of `--data` are downloaded from their public repositories first.
Started again, the command skips steps whose result exists, and resumes an interrupted training.

Example:
  python -m dualtoken.scripts.nano.make --data data --runs runs/nano --output runs/nano/model
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.files import atomic_folder, write_text
from ...data_pipelines.small_sets.public_sets import SETS
from ...eval.data.held_out import EMOJI_NAMES, evenly_spread
from ...eval.data.held_out import HELD_OUT as HELD_OUT_FOLDER
from ...train.config.compose import RECIPES, composed
from .. import cli
from ..processes import run_process, sigterm_interrupts

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/nano")
SHIPPED = ROOT / "pretrained" / "nano"
VOCABULARY = 2048

# Crops and mirror images delay the memorisation of three thousand photos.
VIEWS: dict[str, list[str]] = {"clothing_words": ["--crops", "2", "--crop-scale", "0.6", "--flips"]}
# Objects of scenes to generate are aligned with the tokenizer's patches: an object then has the same codes at
# every position, and a tenth of the records suffices.
_ON_PATCHES = "--grid 8 --skills single_object=0.3,two_object=0.2,counting=0.15,position=0.2,color_attr=0.15"
_CLOTHING = (
    "labels --input INPUT/clothing_128.zip --max-image-size 64 --source clothing-dataset-small "
    "--licence 'may be freely used for any purpose'"
)
_CALTECH = (
    "labels --input INPUT/caltech101_128.zip --max-image-size 64 --source Caltech-101 --licence CC-BY-4.0"
)


def _prepared(commands: dict[str, str]) -> dict[str, list[str]]:
    return {
        name: shlex.split(words) + (["--workers", "2"] if words.startswith("scenes") else [])
        for name, words in commands.items()
    }


# Arguments of `dualtoken prepare` for every set; INPUT stands for the folder of downloaded data sets.
DATA = _prepared(
    {
        "scenes_t2i": "scenes --task t2i --count 26000 --seed 1",
        "scenes_vqa": "scenes --task vqa --count 16000 --seed 2",
        "easyvqa": "easyvqa --input INPUT/easyvqa_64.zip --task vqa",
        "easyvqa_t2i": "easyvqa --input INPUT/easyvqa_64.zip --task t2i",
        "nlvr": "nlvr --input INPUT/nlvr.zip --max-image-size 64 --permutations 1",
        "emoji": "emoji --input INPUT/emoji_128.zip --task vqa --max-image-size 64",
        "emoji_t2i": "emoji --input INPUT/emoji_128.zip --task t2i --max-image-size 64",
        "clothing": _CLOTHING,
        "caltech": _CALTECH,
    }
)
# For the unified model only: more scenes,
MODEL_DATA = _prepared(
    {
        "scenes_drawn": f"scenes --task t2i --count 40000 --seed 4 {_ON_PATCHES}",
        "nlvr_orders": "nlvr --input INPUT/nlvr.zip --max-image-size 64",
        "scenes_vqa_more": "scenes --task vqa --count 32000 --seed 3",
    }
)
# and the same in other wordings and in dialogues of several turns.
WORDS_DATA = _prepared(
    {
        "scenes_vqa_words": "scenes --task vqa --count 16000 --seed 5 --paraphrase 0.8",
        "scenes_drawn_words": f"scenes --task t2i --count 16000 --seed 6 --paraphrase 0.8 {_ON_PATCHES}",
        "scenes_chat": "scenes --task chat --count 16000 --seed 7 --turns 5 --grid 8 --paraphrase 0.4",
        "clothing_words": f"{_CLOTHING} --variants 2 --noun 'piece of clothing'",
        "caltech_words": f"{_CALTECH} --variants 4",
    }
)
ALL_DATA = DATA | MODEL_DATA | WORDS_DATA
TOKENIZED = ("scenes_vqa", "easyvqa", "emoji", "emoji_t2i", *MODEL_DATA, *WORDS_DATA)
# Set -> split and number of records that ship with the package, to reproduce its metrics.
HELD_OUT = {
    "easyvqa": ("heldout", 400),
    "nlvr": ("heldout", 150),
    "emoji": ("heldout", 148),
    "clothing": ("test", 150),
    "caltech": ("test", 100),
}


@dataclass(frozen=True)
class Step:
    """A step that makes `result`, and is done when it exists."""

    name: str
    result: Path
    make: Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="folder with the data sets (default: data)")
    add("--runs", type=Path, default=RUNS, help="working folder (default: runs/nano)")
    add("--output", type=Path, help="the finished model (default: model in the working folder)")
    add("--heldout", type=Path, default=HELD_OUT_FOLDER, help="default: that of the package")
    add(
        "--until",
        help="stop after this step (sources, data, text, contrastive, tokenizer, codes, mllm, model, card)",
    )


def run(args: argparse.Namespace) -> int:
    args.output = args.output or args.runs / "model"
    steps = [
        *_source_steps(args),
        *_data_steps(args),
        *_held_out_steps(args),
        _text_step(args),
        *(_train_step(args, name) for name in ("contrastive", "tokenizer", "refinement")),
        *_code_steps(args),
        *(_train_step(args, name) for name in ("mllm", "decoder")),
        _model_step(args),
        _card_step(args),
    ]
    known = list(dict.fromkeys(step.name for step in steps))
    if args.until and args.until not in known:
        raise UserError(f"--until {args.until}: unknown step; allowed are {', '.join(known)}")
    with sigterm_interrupts():
        for step in steps:
            if step.result.exists():
                print(f"{step.name}: {step.result} exists", flush=True)
            elif not args.until or known.index(step.name) <= known.index(args.until):
                print(f"{step.name}: making {step.result}", flush=True)
                step.make()
    return 0


def _command(name: str, result: Path, module: str, *words: object) -> Step:
    """A step that runs one command."""
    return Step(name, result, lambda: run_process(module, list(map(str, words))))


def _source_steps(args: argparse.Namespace) -> list[Step]:
    def result(file: str) -> Path:
        """The zip or, once it was converted, a data set made from it."""
        made = [args.runs / "data" / name for name, words in ALL_DATA.items() if f"INPUT/{file}" in words]
        return made[0] if all(path.exists() for path in made) else args.data / file

    where = ("sources", "--output", args.data, "--only")
    return [_command("sources", result(one.file), "prepare", *where, name) for name, one in SETS.items()]


def _data_steps(args: argparse.Namespace) -> list[Step]:
    steps = []
    for name, words in ALL_DATA.items():
        given = [word.replace("INPUT", str(args.data)) for word in words]
        folder = args.runs / "data" / name
        steps.append(_command("data", folder, "prepare", *given, "--output", folder))
    return steps


def _held_out_steps(args: argparse.Namespace) -> list[Step]:
    def select(name: str) -> None:
        from ...data_pipelines.shards.reader import ShardDataset
        from ...data_pipelines.shards.writer import ShardWriter

        split, count = HELD_OUT[name]
        dataset = ShardDataset(args.runs / "data" / name, split=split)
        source, licence = dataset.manifest["source"], dataset.manifest["licence"]
        with ShardWriter(args.heldout / name, source=source, licence=licence) as writer:
            for index in evenly_spread(range(len(dataset)), count):
                writer.write(dataset[index], split)

    def write_names() -> None:
        from ...data_pipelines.shards.reader import ShardDataset

        dataset = ShardDataset(args.runs / "data" / "emoji")
        records = (dataset.record(index, load_images=False) for index in range(len(dataset)))
        names = dict.fromkeys(record.texts()[-1] for record in records)
        write_text(args.heldout / EMOJI_NAMES, "".join(f"{name}\n" for name in names))

    sets = [Step("heldout", args.heldout / name, partial(select, name)) for name in HELD_OUT]
    return [*sets, Step("heldout", args.heldout / EMOJI_NAMES, write_names)]


def _text_step(args: argparse.Namespace) -> Step:
    folder = args.runs / "text_tokenizer"

    def make() -> None:
        from ...data_pipelines.shards.reader import ShardDataset
        from ...mllm import train_text_tokenizer

        # A limit for each set, so that the few phrases of scenes do not fill the vocabulary.
        sources = [ShardDataset(args.runs / "data" / name) for name in (*DATA, *WORDS_DATA)]
        texts = chain.from_iterable(islice(source.texts(), 20_000) for source in sources)
        with atomic_folder(folder) as unfinished:
            train_text_tokenizer(texts, VOCABULARY, unfinished)

    return Step("text", folder, make)


def _train_step(args: argparse.Namespace, name: str) -> Step:
    recipe = RECIPES / f"nano_{name}.yaml"
    return _command(name, args.runs / name / "model", "train", recipe, *_moved(args, name))


def _moved(args: argparse.Namespace, name: str) -> list[str]:
    """Overrides that move a recipe's paths from runs/nano to `--runs`."""
    if args.runs == RUNS:
        return []
    paths = _paths(composed([RECIPES / f"nano_{name}.yaml"]))
    moved = [(f"--{key}", path.replace(str(RUNS), str(args.runs), 1)) for key, path in paths]
    return list(chain.from_iterable(moved))


def _paths(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, path) of every path of a recipe that is below runs/nano."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value.startswith(str(RUNS)):
            yield prefix + key, value


def _code_steps(args: argparse.Namespace) -> list[Step]:
    steps = []
    for name in TOKENIZED:
        words = ["--tokenizer", args.runs / "refinement" / "model", "--input", args.runs / "data" / name]
        codes = args.runs / "codes" / name
        words += ["--output", codes, *VIEWS.get(name, ())]
        steps.append(_command("codes", codes, "tokenize", *words))
    return steps


def _model_step(args: argparse.Namespace) -> Step:
    def make() -> None:
        """Copy the trained model, with the tokenizer of the decoder's training."""
        with atomic_folder(args.output) as unfinished:
            shutil.copytree(args.runs / "mllm" / "model", unfinished, dirs_exist_ok=True)
            shutil.rmtree(unfinished / "visual_tokenizer")
            shutil.copytree(args.runs / "decoder" / "model", unfinished / "visual_tokenizer")

    return Step("model", args.output, make)


def _card_step(args: argparse.Namespace) -> Step:
    evaluation = args.runs / "evaluation.json"
    shipped = args.output.resolve() == SHIPPED

    def make() -> None:
        import json

        from .card import update_readme, write_card

        data = ("--heldout", str(args.heldout))
        teacher, emoji = args.runs / "contrastive" / "model", args.runs / "data" / "emoji"
        judged = ("--teacher", str(teacher), "--emoji", str(emoji))
        model = ["--model", str(args.output)]
        run_process("nano.evaluate", [*model, *data, *judged, "--output", str(evaluation)])
        found = json.loads(evaluation.read_text())
        write_card(args.output, args.runs, found)
        if shipped:
            update_readme(ROOT / "README.md", found)
        folder = ROOT / "docs" / "gallery" if shipped else args.runs / "gallery"
        outputs = ("--output", str(folder), "--overview", str(args.output.parent / "nano.png"))
        run_process("nano.gallery", ["--model", "nano" if shipped else str(args.output), *data, *outputs])

    return Step("card", evaluation, make)


if __name__ == "__main__":
    cli.run_main(__spec__)
