"""Train and measure the variants of a plan, with several seeds each, and write tables and plots of them.

The plan is one YAML file (see ablations/nano.yaml). Runs that have a result are skipped and an interrupted
training is resumed when the same command is started again. The document is made from the result files alone;
remarks between its marks are kept.

Examples:
  dualtoken ablate ablations/nano.yaml --runs runs/ablations --list
  dualtoken ablate ablations/nano.yaml --runs runs/ablations --only layers --document docs/ablations.md
  dualtoken ablate ablations/nano.yaml --runs runs/try --seeds 0 --steps-scale 0.02
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError, shown
from . import cli, options
from .options import number
from .processes import sigterm_interrupts

if TYPE_CHECKING:
    from .ablation.plan import Plan
    from .ablation.recipes import Folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("plan", type=options.path, help="the plan, a YAML file")
    add("--runs", type=options.path, required=True, help="working folder: all runs and their results")
    add("--inputs", type=options.path, help="folder of the recipes' inputs (default: the plan's)")
    add("--only", action="append", metavar="GROUP", help="only this group (may be given several times)")
    add("--seeds", help="seeds, separated by commas (default: the plan's)")
    add("--steps-scale", type=number(0.0001, 1000), default=1.0, help="factor on all steps (default 1)")
    add("--measure-again", action="store_true", help="measure existing models again, for new metrics")
    add("--document", type=options.path, help="the document (default: ablations.md in --runs)")
    add("--heldout", type=options.path, help="held-out sets (default: those of the package)")
    add("--list", action="store_true", help="only list groups, runs and their minutes")
    add("--report", action="store_true", help="only write the document from existing results")
    options.add_shared(parser, "--device")


def run(args: argparse.Namespace) -> int:
    """Train, measure and write. UserError for a wrong plan or argument, or a run that failed."""
    from .ablation.plan import load_plan
    from .ablation.recipes import Folders

    options.quiet_transformers(progress=False)
    plan = load_plan(args.plan)
    folders = Folders(args.runs, args.inputs or Path(plan.inputs))
    groups = chosen_groups(plan, args.only)
    seeds = chosen_seeds(plan, args.seeds)
    if args.list:
        print("\n".join(listing(plan, folders, groups, seeds, args.steps_scale)))
        return 0
    from .ablation.document import check_document, write_document

    document = args.document or args.runs / "ablations.md"
    check_document(document)
    if not args.report:
        from ..eval.data.held_out import HELD_OUT, HeldOut
        from .ablation.runs import Runner

        device = options.resolve_device(args.device)
        heldout = HeldOut(args.heldout or HELD_OUT)
        runner = Runner(plan, folders, args.steps_scale, device, heldout, args.measure_again)
        with sigterm_interrupts():
            runner.run_all(groups, seeds)
    from .ablation.summary import Results

    command = shlex.join(["dualtoken", "ablate", *_shown_arguments(args)])
    written = write_document(Results.read(plan, folders), document, command)
    print("\n".join(map(str, written)))
    return 0


def chosen_groups(plan: Plan, only: list[str] | None) -> list[str]:
    """The groups of `--only`, in the plan's order."""
    unknown = sorted(set(only or ()) - set(plan.groups))
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such group; there are {', '.join(plan.groups)}")
    return [name for name in plan.groups if only is None or name in only]


def chosen_seeds(plan: Plan, given: str | None) -> list[int]:
    """The seeds of `--seeds`."""
    if given is None:
        return plan.seeds
    try:
        seeds = [options.seed(word) for word in given.split(",")]
    except argparse.ArgumentTypeError:
        raise UserError(f"--seeds {shown(given)}: give integers separated by commas, such as 0,1,2") from None
    return list(dict.fromkeys(seeds))


def listing(plan: Plan, folders: Folders, groups: list[str], seeds: list[int], scale: float) -> list[str]:
    """The runs that are left and their minutes; a run that several groups share is counted once."""
    from .ablation.runs import RESULT

    lines, minutes_left = [], dict[str, float]()
    for group in groups:
        lines.append(f"{group}: {plan.groups[group].title}")
        for variant in plan.needed([group]):
            done = sum((folders.run(variant, seed) / RESULT).is_file() for seed in seeds)
            minutes = plan.bases[plan.variants[variant].base].minutes * scale * (len(seeds) - done)
            left = "listed above" if variant in minutes_left else f"about {minutes:.0f} minutes left"
            minutes_left[variant] = minutes
            lines.append(f"  {variant:<24} {done} of {len(seeds)} runs done, {left}")
    total = sum(minutes_left.values())
    return [*lines, f"about {total:.0f} minutes in all, by the minutes that the plan names"]


def _shown_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments for the document; absolute paths are cut to their last two parts."""
    plan, runs = (Path(*path.parts[-2:]) if path.is_absolute() else path for path in (args.plan, args.runs))
    words = [str(plan), "--runs", str(runs)]
    for group in args.only or ():
        words += ["--only", group]
    if args.seeds:
        words += ["--seeds", args.seeds]
    if args.steps_scale != 1.0:
        words += ["--steps-scale", f"{args.steps_scale:g}"]
    return words


if __name__ == "__main__":
    cli.run_main(__spec__)
