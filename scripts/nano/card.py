"""The nano model's card and README table: made from runs and evaluation, never by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

STEPS = ("contrastive", "tokenizer", "refinement", "mllm", "decoder")

# Sets of the answers whose names say too little.
ANSWERS = {
    "clothing": "clothing, which of ten labels",
    "scenes_reworded": "scenes, in words that are in no training data",
}
BEGIN, END = "<!-- nano figures: begin", "<!-- nano figures: end"
TEMPLATE = Path(__file__).with_name("card.md")


def write_card(model: Path, runs: Path, evaluation: dict[str, Any]) -> None:
    """Write ``README.md`` into the model's folder."""
    steps = [_step(runs / name, name) for name in STEPS]
    rows = [
        f"| {s['name']} | `{s['recipe']}` | {s['steps']:,} | {s['records']:,} | {s['minutes']:.0f} |"
        for s in steps
    ]
    config = json.loads((model / "config.json").read_text())
    text = TEMPLATE.read_text().format(
        machine=f"{evaluation['machine']['device']}",
        minutes=sum(step["minutes"] for step in steps),
        training="\n".join(rows),
        figures=figures_table(evaluation),
        sampling=", ".join(f"{key} {value}" for key, value in config["image_sampling"].items()),
        parameters=_parameters(model),
    )
    (model / "README.md").write_text(text)


def update_readme(readme: Path, evaluation: dict[str, Any]) -> None:
    """Put the evaluation's table between the README's two marks."""
    text = readme.read_text()
    begin, end = text.index(BEGIN), text.index(END)
    begin = text.index("-->", begin) + len("-->")
    readme.write_text(f"{text[:begin]}\n\n{figures_table(evaluation)}\n\n{text[end:]}")


def _step(run: Path, name: str) -> dict[str, Any]:
    """What a finished run's own files say about it."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    per_step = recipe["data"]["micro_batch_size"] * recipe["run"]["gradient_accumulation_steps"]
    seconds, previous = 0.0, 0
    for line in lines:
        seconds += (line["step"] - previous) * per_step / line["samples_per_second"]
        previous = line["step"]
    return {
        "name": name,
        "recipe": f"train/recipes/nano_{name}.yaml",
        "steps": previous,
        "records": previous * per_step,
        "minutes": seconds / 60,
    }


def figures_table(evaluation: dict[str, Any]) -> str:
    """The evaluation's JSON as one Markdown table."""
    rows = [
        f"| reconstruction, {name} | {value:.2f} dB |"
        for name, value in evaluation["tokenizer"]["psnr_db"].items()
    ]
    for branch, usage in evaluation["tokenizer"]["codebook_usage"].items():
        shares = ", ".join(f"{100 * share:.1f} %" for share in usage)
        rows.append(f"| codes used, {branch}, levels 1–{len(usage)} | {shares} |")
    if named := evaluation.get("named"):
        kept = f" (teacher {named['teacher']} %, kept {named['kept']} %)" if "teacher" in named else ""
        rows.append(f"| one object named by its semantic codes, zero-shot | {named['from_codes']} %{kept} |")
    for name, answers in evaluation["answers"].items():
        name = ANSWERS.get(name, name)
        rows.append(f"| answers, {name} ({answers['questions']} questions) | {answers['accuracy']} % |")
    for skill, drawn in evaluation["drawings"].items():
        name = skill.replace("_", " ")
        rows.append(f"| drawings, {name}: all right ({drawn['drawings']} prompts) | {drawn['correct']} % |")
        rows.append(f"| drawings, {name}: colours right / empty | {drawn['colour']} % / {drawn['empty']} % |")
    if emoji := evaluation.get("emoji"):
        what = f"{emoji['drawings']} emoji drawn by name: the name among the first five of {emoji['names']:,}"
        ceiling = (
            f" (true images: {emoji['judge_on_true_images']} %)" if "judge_on_true_images" in emoji else ""
        )
        rows.append(f"| {what} | {emoji['top5']} %{ceiling} |")
    return "\n".join(["| what | figure |", "|---|---|", *rows])


def _parameters(model: Path) -> str:
    """Millions of values stored in each weights file."""
    from safetensors import safe_open

    parts = {"language model and heads": model, "visual tokenizer": model / "visual_tokenizer"}
    counts = []
    for name, folder in parts.items():
        total = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118  (a safetensors handle is no dict)
                    size = 1
                    for side in file.get_slice(key).get_shape():
                        size *= side
                    total += size
        counts.append(f"{total / 1e6:.1f} M ({name})")
    return ", ".join(counts)
