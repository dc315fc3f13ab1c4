"""Results on disk: metrics in `result.json`, and the scores of items in `samples.jsonl`.

`samples.jsonl` has one line for each item, in the task's order, with the fields

* `id`, `prompt`, `target`: those of the item;
* `prediction`: the model's answer, the choices' log-likelihoods, or the files of the generated images; null
  for an item that could not be asked;
* `parsed`: the answer that the rule finds in the prediction (a letter, a normalised string, a verdict), or
  null;
* `score`: mostly from 0 to 1; null where the rule scores no single items.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UserError, shown
from ...common.files import atomic_file
from ...common.json_files import read_json_object, take, take_count, take_list
from ...common.values import finite_number
from .identity import RunIdentity
from .score import Graded, Score
from .task import Item

RESULT = "result.json"
SAMPLES = "samples.jsonl"

Result = Mapping[str, Any]


def make_result(
    identity: RunIdentity, score: Score, judge: Mapping[str, Any] | None, unasked: Sequence[str]
) -> dict[str, Any]:
    """The content of `result.json`; its headline is null where items are left out or could not be asked.

    Args:
        judge: `Verdicts.source`, if a judge was asked.
        unasked: ids of the items without a prediction.
    """
    expected = identity.n_expected
    complete = identity.limit is None and expected in (None, identity.n)
    metrics = {key: None if value is None else round(float(value), 6) for key, value in score.metrics.items()}
    notes = list(score.notes)
    if judge:
        notes.append(f"judge: {', '.join(judge['models']) or 'not named in ' + judge['file']}")
    if not complete:
        notes.append(f"{identity.n} of {expected or 'all'} items: no headline metric")
    if unasked:
        notes.append(
            f"{len(unasked)} items could not be asked ({shown(unasked[0])} first): wrong, and no headline"
        )
    origin = identity.to_dict()
    return {
        "benchmark": identity.benchmark,
        "split": identity.split,
        "headline": {score.headline: metrics[score.headline]} if complete and not unasked else None,
        "metrics": metrics,
        "n": identity.n,
        "n_expected": expected,
        "n_unparsed": score.unparsed,
        "notes": notes,
        **{name: origin[name] for name in ("model", "checkpoint", "data", "prompts", "generation", "seed")},
        "data_source": identity.data_source,
        "judge": judge,
        "device": identity.device,
        "versions": origin["versions"],
    }


def sample_lines(items: Sequence[Item], predictions: Mapping[str, Any], score: Score) -> Iterator[str]:
    """The lines of `samples.jsonl`."""
    for item in items:
        graded = score.items.get(item.id, Graded(None, None))
        sample = {"id": item.id, "prompt": item.prompt, "target": dict(item.target)}
        yield json.dumps({**sample, "prediction": predictions[item.id], **graded._asdict()}) + "\n"


def write_result(folder: Path, result: Result, samples: Iterable[str]) -> None:
    """Write both files atomically."""
    with atomic_file(folder / RESULT) as result_file, atomic_file(folder / SAMPLES) as samples_file:
        samples_file.write_text("".join(samples), encoding="utf-8")
        result_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def collect_results(folders: Iterable[Path]) -> list[Result]:
    """Every result below the folders. UserError if there are none."""
    folders = list(folders)
    paths = sorted(path for folder in folders for path in folder.rglob(RESULT))
    if not paths:
        names = ", ".join(map(str, folders))
        raise UserError(f"no {RESULT} below {names}; make one with `dualtoken eval run` or `eval score`")
    return [read_result(path) for path in paths]


def read_result(path: Path) -> Result:
    """One result, with the fields that tables need checked. UserError names the file and the field."""
    result = read_json_object(path)
    for name in ("benchmark", "split", "model"):
        take(result, name, str, path)
    take_list(result, "notes", lambda note: isinstance(note, str), "texts", path)
    for name in ("n", "n_unparsed"):
        take_count(result, name, path)
    for metric, value in (take(result, "headline", dict, path, None) or {}).items():
        if value is not None:
            finite_number(value, f"{path}: {metric}")
    return result
