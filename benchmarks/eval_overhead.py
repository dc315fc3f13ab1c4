"""What the evaluation harness adds to the model's own time: `predict` against the bare batches.

nano answers the first easy-VQA questions, once by the harness (loading and checking the data, manifest, files
on disk) and once by `answer_many` on the same batches.

Examples:
  python benchmarks/eval_overhead.py
  python benchmarks/eval_overhead.py --size full      # all 1198 questions
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import argument_parser, compare, costs, report

from dualtoken.common.arguments import integer
from dualtoken.eval import get_task
from dualtoken.eval.harness.predictor import PipelinePredictor
from dualtoken.eval.harness.runner import predict
from dualtoken.eval.harness.task_data import Settings, load_data
from dualtoken.mllm import DualTokenPipeline

BATCH = 16
QUESTIONS = {"small": 320, "full": 1198}


def build(kind: str, questions: int) -> Callable[[], Any]:
    """One pass over the questions: "harness" or "model alone"."""
    task, settings = get_task("easyvqa"), Settings(batch_size=BATCH, limit=questions)
    predictor = PipelinePredictor(DualTokenPipeline.from_pretrained("nano"))
    items = load_data(task, settings).items[:questions]

    def harness() -> None:
        with tempfile.TemporaryDirectory() as folder:
            predict(task, predictor, Path(folder), settings)

    def alone() -> None:
        for start in range(0, len(items), BATCH):
            predictor.answer(items[start : start + BATCH], task.generation)

    return harness if kind == "harness" else alone


def main() -> None:
    parser = argument_parser(__doc__, QUESTIONS, "runs", repeats=3)
    parser.add_argument("--questions", type=integer(1, 1000), help="instead of the size's")
    args = parser.parse_args()
    kinds, questions = ("harness", "model alone"), args.questions or QUESTIONS[args.size]
    measured = costs({kind: partial(build, kind, questions) for kind in kinds}, args.repeats)
    report("eval_overhead", compare(f"{questions} answers", "harness", measured))


if __name__ == "__main__":
    main()
