"""Run a plan: data, training, codes and evaluation of every variant and seed.

Long work is done in subprocesses and results are written atomically, so that the same command resumes.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from ... import __version__
from ...common.errors import UserError
from ...common.files import write_text
from ...common.json_files import read_json_object, take, take_count
from ...common.machine import describe_machine
from ...common.values import finite_number
from ...common.yaml_files import read_yaml
from ...eval.data.held_out import HeldOut
from ..processes import run_process
from .metrics import Metrics
from .model_metrics import model_metrics
from .plan import Evaluation, Plan
from .recipes import Folders, resolve
from .tokenizer_metrics import tokenizer_metrics

#: Runs a module of `dualtoken.scripts`: its name, its arguments, the file of its output.
Launch = Callable[[str, Sequence[str], Path], None]
RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Runner:
    """Runs of a plan in one folder. scale: factor of the numbers of steps. again: also measure models that
    have a result. say: prints progress."""

    plan: Plan
    folders: Folders
    scale: float = 1.0
    device: str = "cpu"
    heldout: HeldOut = field(default_factory=HeldOut)
    again: bool = False
    say: Callable[[str], None] = print
    launch: Launch | None = None

    def run_all(self, groups: list[str], seeds: list[int]) -> None:
        """All runs without a result, seed by seed, so that every variant has one early on."""
        runs = [Run(variant, seed) for seed in seeds for variant in self.plan.needed(groups)]
        with self._alone():
            for number, run in enumerate(runs, 1):
                folder = self.folders.run(run.variant, run.seed)
                if self.is_done(run):
                    self.say(f"[{number}/{len(runs)}] {run}: already done")
                    continue
                self.say(f"[{number}/{len(runs)}] {run}: {folder}")
                result = self._do(run)
                self.say(f"[{number}/{len(runs)}] {run}: {sum(result['minutes'].values()):.1f} minutes")

    def is_done(self, run: Run) -> bool:
        """Whether the run has a result of the plan's evaluation. UserError if its recipe was another."""
        folder = self.folders.run(run.variant, run.seed)
        self._check_same(folder, self._recipe(run))
        if self.again and (folder / "model").is_dir():
            return False
        return bool(_result(folder).get("evaluation") == asdict(self.plan.evaluation))

    def _do(self, run: Run) -> dict[str, Any]:
        folder, settings = self.folders.run(run.variant, run.seed), self._recipe(run)
        minutes: dict[str, float] = dict(_result(folder).get("minutes", {}))
        if not (folder / "model").is_dir():
            self._prepare_sets(run, minutes)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "given.yaml", yaml.safe_dump(settings, sort_keys=False))
        recipe = folder / "train.yaml"
        own = resolve(self.plan, self.folders, run.variant, run.seed, self.scale)
        recipe.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
        if not (folder / "model").is_dir():
            with _timed(minutes, "training"):
                self._launch("train", [str(recipe)], folder / "train.log")
        with _timed(minutes, "evaluation"):
            kind = self.plan.base(run.variant).kind
            found = measure(kind, folder / "model", self.plan.evaluation, self.device, self.heldout)
        result = {
            "plan": self.plan.name,
            "variant": run.variant,
            "seed": run.seed,
            "steps": settings["run"]["steps"],
            **found,
            "minutes": {name: round(value, 2) for name, value in minutes.items()},
            "machine": describe_machine(self.device),
            "version": __version__,
            "evaluation": asdict(self.plan.evaluation),
        }
        write_text(folder / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # large, and no longer needed
        return result

    def _prepare_sets(self, run: Run, minutes: dict[str, float]) -> None:
        for name in self.plan.used_sets(run.variant, "data"):
            self._prepare(name)
        for name in self.plan.used_sets(run.variant, "codes"):
            if not self.folders.codes(self.plan, run.variant, run.seed, name).is_dir():
                with _timed(minutes, f"codes of {name}"):
                    self._tokenize(run, name)

    def _prepare(self, name: str) -> None:
        folder = self.folders.data(self.plan, name)
        if not folder.is_dir():
            words = [*self.plan.data[name], "--output", str(folder), "--no-progress"]
            self._launch("prepare", words, folder.with_suffix(".log"))

    def _tokenize(self, run: Run, name: str) -> None:
        self._prepare(name)
        output = self.folders.codes(self.plan, run.variant, run.seed, name)
        tokenizer = self.folders.tokenizer(self.plan, run.variant, run.seed)
        words = ["--tokenizer", str(tokenizer), "--input", str(self.folders.data(self.plan, name))]
        words += ["--output", str(output), "--device", self.device, "--no-progress"]
        self._launch("tokenize", words, output.with_suffix(".log"))

    def _recipe(self, run: Run) -> dict[str, Any]:
        """The recipe without paths of this machine, so that folders can be moved."""
        nowhere = Folders(Path("RUNS"), Path("INPUTS"))
        return resolve(self.plan, nowhere, run.variant, run.seed, self.scale)

    def _check_same(self, folder: Path, recipe: dict[str, Any]) -> None:
        given = folder / "given.yaml"
        if given.is_file() and read_yaml(given) != recipe:
            raise UserError(
                f"{folder} was made with other settings (its given.yaml differs from the plan); delete "
                "it, or give another --runs"
            )

    def _launch(self, module: str, words: Sequence[str], log: Path) -> None:
        (self.launch or run_process)(module, words, log)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folders.runs.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folders.runs / ".lock", timeout=0):
                yield
        except Timeout:
            raise UserError(f"another `dualtoken ablate` runs in {self.folders.runs}; wait for it") from None


def _result(folder: Path) -> dict[str, Any]:
    """The result of a run, {} where there is none."""
    path = folder / RESULT
    return read_result(path) if path.is_file() else {}


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file. UserError if it is damaged."""
    found = read_json_object(path)
    try:
        take_count(found, "seed", path)
        take_count(found, "steps", path, 0)
        take(found, "evaluation", dict, path, None)
        for name in ("figures", "reference", "minutes"):
            for metric, value in take(found, name, dict, path, {}).items():
                if value is not None:
                    finite_number(value, f"{path}: {name}, {metric}")
    except UserError as error:
        raise UserError(f"{error}; delete this run") from None
    return {"figures": {}, "minutes": {}, "steps": None, **found}


def measure(kind: str, model: Path, evaluation: Evaluation, device: str, data: HeldOut) -> dict[str, Metrics]:
    """The metrics of a trained model's folder ("figures") and of the tokenizer's teacher ("reference"); None
    for non-finite values, which JSON cannot hold."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "tokenizer":
            metrics, reference = tokenizer_metrics(model, evaluation, device, data)
        else:
            metrics, reference = model_metrics(model, evaluation, device, data), {}
    return {"figures": _finite(metrics), "reference": _finite(reference)}


def _finite(metrics: Metrics) -> Metrics:
    return {
        name: float(value) if value is not None and math.isfinite(value) else None
        for name, value in metrics.items()
    }


@contextmanager
def _timed(minutes: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    minutes[name] = (time.monotonic() - started) / 60
