"""Evaluation tasks in two steps: `predict` asks a model, `score` applies the official rule without one.

`run` does both. Predictions and results are kept in OUTPUT/TASK/SPLIT with a manifest of all that produced
them. A run that was stopped is resumed when it is started again, and several processes (torchrun) share the
work, with the same predictions.

Examples:
  dualtoken eval list
  dualtoken eval check --tasks pope,mme --data benchmarks
  dualtoken eval run --model nano --tasks easyvqa,nlvr,scenes,scenes-t2i --output results/nano
  torchrun --nproc-per-node 8 -m dualtoken.scripts.evaluate predict --model my-model --tasks pope \
      --data pope --output results
  dualtoken eval score --tasks pope --data pope --output results
  dualtoken eval tokenizer --model nano --images photos
  dualtoken eval report results/nano results/other --output report
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..common.errors import UserError
from ..common.output_files import check_files, staged_files
from ..common.paths import user_path
from . import cli, evaluate_tokenizer, options
from .options import integer

if TYPE_CHECKING:
    from ..eval import Task
    from ..eval.harness.task_data import Loaded, Settings

#: The files of a report: the table, its numbers, the chart.
REPORT = ("report.md", "report.json", "report.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="every task with its splits, and where its data come from")
    add_include_path(listed)
    check = actions.add_parser(
        "check",
        help="check the data of tasks: numbers of items, missing images",
        description="Load every split that is there (from the hub: the first) and compare with the official "
        "number of items. Status 2 if anything is missing.",
    )
    add_data_arguments(check)
    check.add_argument("--no-images", action="store_true", help="do not look for images")
    for action, summary in (
        ("run", "predict and score"),
        ("predict", "ask a model, resumable, alone or as one of several processes"),
        ("score", "score finished predictions; loads no model"),
    ):
        one = actions.add_parser(action, help=summary, description=summary)
        add_data_arguments(one)
        one.add_argument(
            "--output", type=options.path, required=True, help="folder of predictions and results"
        )
        if action != "score":
            add_prediction_arguments(one)
        if action != "predict":
            add_scoring_arguments(one)
    tokenizer = actions.add_parser(
        "tokenizer",
        help="measure a visual tokenizer on images: PSNR, SSIM, rFID, codes, zero-shot, retrieval",
        description=evaluate_tokenizer.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate_tokenizer.add_arguments(tokenizer)
    report = actions.add_parser("report", help="tables and a chart of results, several models side by side")
    report.add_argument("results", type=options.path, nargs="+", help="folders with results")
    report.add_argument(
        "--output", type=options.path, help="folder for report.md, report.json and report.png"
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name tasks and their data."""
    add = parser.add_argument
    add("--tasks", "--benchmarks", required=True, metavar="NAMES", help="names with commas between them")
    add(
        "--data",
        help="folder of the task's official files, or of folders named after tasks; "
        "or hub, hub@REVISION, hub:ORG/NAME[@REVISION]: from the Hugging Face hub or its cache",
    )
    add("--split", help="default: the task's first")
    add_include_path(parser)


def add_include_path(parser: argparse.ArgumentParser) -> None:
    """`--include-path FOLDER`: tasks from outside the package."""
    parser.add_argument(
        "--include-path",
        type=options.path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="also take the tasks that the Python files of this folder register; may be repeated",
    )


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of actions that ask a model."""
    add = parser.add_argument
    options.add_shared(parser, "--model")
    add("--batch-size", type=options.batch_size, default=16, help="items at a time (default: 16)")
    add("--limit", type=integer(1), help="only so many items, without a headline metric")
    add("--seed", type=options.seed, default=0, help="of generated images (default: 0)")
    options.add_shared(parser, "--device", "--quantization")


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """The models from disk that some scores need; without one such a score is null, with the reason."""
    for name, what in (
        ("clip", "folder of a CLIP, for CLIPScore"),
        ("detector", "folder of an object detector with the names of COCO"),
        ("inception", "torch-fidelity's Inception weights, for FID"),
    ):
        parser.add_argument(f"--{name}", type=options.path, help=f"{what}; only for the scores that need it")
    parser.add_argument(
        "--judge",
        metavar="local:MODEL|replay:FILE",
        help="local: folder of a model that answers questions about images (for generated images), or "
        "folder or hub id of a chat model (for answers); replay: a judge's recorded replies; only for scores "
        "that need it",
    )


def run(args: argparse.Namespace) -> int:
    """Run the action. UserError for unknown tasks, missing files, and predictions that do not fit."""
    if args.action == "report":
        return report(args)
    if args.action == "tokenizer":
        return evaluate_tokenizer.run(args)
    from ..eval import get_task, include

    include(args.include_path)
    if args.action == "list":
        return list_tasks()
    tasks = [get_task(name.strip()) for name in args.tasks.split(",") if name.strip()]
    if not tasks:
        raise UserError("--tasks is empty; name at least one (dualtoken eval list)")
    if args.action == "check":
        return check_data(args, tasks)
    check_files(args.output, ())
    settings = make_settings(args)
    judge = judge_option(None if args.action == "predict" else args.judge, tasks)
    loaded = {} if args.action == "score" else predict_all(args, tasks, settings)
    if args.action != "predict" and settings.rank == 0:
        score_all(args, tasks, settings, judge, loaded)
    return 0


class JudgeOption(NamedTuple):
    """`--judge`: a local model, or a file of recorded replies and the task they are for."""

    model: Path | None = None
    replay: Path | None = None
    task: Task | None = None


def judge_option(given: str | None, tasks: list[Task]) -> JudgeOption:
    """Parse `--judge`; a path alone is a local model. UserError for a replay that fits no task."""
    from ..eval import JudgedTask

    if given is None:
        return JudgeOption()
    kind, _, where = given.partition(":")
    if kind not in ("local", "replay"):
        kind, where = "local", given
    if not where:
        raise UserError(f"--judge {given} names nothing; write local:MODEL or replay:FILE")
    path = user_path(where, "--judge")
    if kind == "local":
        return JudgeOption(model=path)
    judged = [task for task in tasks if isinstance(task, JudgedTask)]
    if len(judged) != 1:
        names = ", ".join(task.name for task in judged) or "none"
        raise UserError(
            f"--judge replay:FILE is for one task with a judge, not for {len(judged)} of them ({names})"
        )
    return JudgeOption(replay=path, task=judged[0])


def make_settings(args: argparse.Namespace) -> Settings:
    """The runner's settings; rank and number of processes are those that torchrun sets."""
    from ..eval.harness.task_data import Settings

    data = data_option(args.data)
    if args.action == "score":
        return Settings(data, args.split)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.action == "run" and world > 1:
        raise UserError("with several processes use `predict`, and `score` once they have ended")
    return Settings(
        data, args.split, args.batch_size, limit=args.limit, seed=args.seed, rank=rank, world=world
    )


def data_option(given: str | None) -> str | Path | None:
    """`--data`: a name of the hub as it is, else a path."""
    from ..eval.data.hub import is_hub

    return given if given is None or is_hub(given) else user_path(given, "--data")


def predict_all(args: argparse.Namespace, tasks: list[Task], settings: Settings) -> dict[str, Loaded]:
    """Predict every task; returns the data, which are checked before the model is loaded."""
    from ..eval.harness.identity import ModelIdentity
    from ..eval.harness.predictor import PipelinePredictor
    from ..eval.harness.runner import predict
    from ..eval.harness.task_data import load_data, need_images

    loaded = {task.name: load_data(task, settings) for task in tasks}
    for task in tasks:
        need_images(task, loaded[task.name].items[: settings.limit])
    device = options.resolve_device(args.device)
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    predictor = PipelinePredictor(options.load_pipeline(args.model, device, args.quantization))
    model = ModelIdentity.of(args.model, device)
    for task in tasks:
        predict(task, predictor, args.output, settings, model, loaded[task.name])
    return loaded


def score_all(
    args: argparse.Namespace,
    tasks: list[Task],
    settings: Settings,
    judge: JudgeOption,
    loaded: dict[str, Loaded],
) -> None:
    """Score every task and print a line each. `loaded`: data that are already loaded."""
    from ..eval.harness.runner import run_folder, score
    from ..eval.judges.local_models import LocalModels
    from ..eval.judges.replay import place_replay

    named = {"clip": args.clip, "detector": args.detector, "inception": args.inception, "judge": judge.model}
    named = {name: path for name, path in named.items() if path}
    device = options.resolve_device("auto")
    judges = (LocalModels(**named, device=device) if named else LocalModels.from_environment()).judges()
    for task in tasks:
        folder = run_folder(args.output, task, task.split_or_default(args.split))
        if task is judge.task and judge.replay and folder.is_dir():
            place_replay(folder, task.name, judge.replay)
        result = score(task, args.output, settings, judges, loaded.get(task.name))
        headline = result["headline"] or {"no headline metric, items": result["n"]}
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in headline.items() if value is not None)
        print(f"{task.name} ({result['split']}): {metrics or 'no metric'}  [{result['n']} items]")
        for note in result["notes"]:
            print(f"  {note}")


def check_data(args: argparse.Namespace, tasks: list[Task]) -> int:
    """Print what every task's data lack; the status is 2 if anything is missing or wrong."""
    from ..eval.harness.data_check import check_splits

    complete = True
    for task in tasks:
        splits = [task.split_or_default(args.split)] if args.split else None
        for report in check_splits(task, data_option(args.data), splits):
            print("\n".join(report.lines))
            complete &= report.has_items and (args.no_images or report.has_images)
    return 0 if complete else 2


def list_tasks() -> int:
    """Print every task: name, summary, splits with the official number of items, source of the data."""
    from ..eval import get_task, task_names

    for name in task_names():
        task = get_task(name)
        splits = ", ".join(f"{split} ({count or 'any'})" for split, count in task.splits.items())
        print(f"{name:22} {task.summary}\n{'':22} {splits}")
        on_hub = f"; --data hub: {task.hub.repo}" if task.hub else ""
        print(f"{'':22} data: {task.source or 'in the package'}{on_hub}")
    return 0


def report(args: argparse.Namespace) -> int:
    """Print the table; with --output also write it, its numbers and a chart."""
    from ..eval.harness.reports import bar_chart, markdown, table
    from ..eval.harness.results import collect_results

    if args.output:
        check_files(args.output, REPORT)
    results = collect_results(args.results)
    text = markdown(results)
    print(text, end="")
    if args.output:
        with staged_files(args.output, "eval report") as folder:
            (folder / REPORT[0]).write_text(text, encoding="utf-8")
            numbers = {"table": table(results), "results": results}
            (folder / REPORT[1]).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
            bar_chart(results).savefig(folder / REPORT[2], dpi=120)
    return 0


if __name__ == "__main__":
    cli.run_main(__spec__)
