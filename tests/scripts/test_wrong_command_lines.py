"""Wrong command lines: each ends in one short line and status 2, loads no model and touches no file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dualtoken.scripts.cli import main

LONG, HUGE = "x" * 5000, "9" * 400
STAR = "sample --prompt 'a star'"
TO = "sample --prompt 'a star' --output out"

LINES = [
    # values
    f"{TO} --num-images 0",
    f"{TO} --num-images 10001",
    f"{TO} --num-images 1.5",
    f"{TO} --num-images {HUGE}",
    f"{TO} --batch-size -3",
    f"{TO} --seed -1",
    f"{TO} --seed 9223372036854775808",
    f"{TO} --seed {'9' * 5000}",
    f"{TO} --guidance-scale nan",
    f"{TO} --guidance-scale 1e308",
    f"{TO} --guidance -1",
    f"{TO} --temperature inf",
    f"{TO} --temperature -0.1",
    f"{TO} --top-k -1",
    f"{TO} --top-p 0",
    f"{TO} --top-p 1.01",
    f"{TO} --sampler dice",
    f"{TO} --guidance-schedule {LONG}",
    f"{TO} --{LONG}",
    f"{TO} surplus",
    "sample --output out --prompt ''",
    "sample --output out --prompt BYTE",
    f"{TO} --prompts-file prompts.txt",
    "sample --prompts-file eleven.txt --num-images 10000 --output out",
    "chat --max-new-tokens 0",
    f"chat --max-new-tokens {HUGE}",
    "chat --seed many",
    "chat --question ' '",
    "chat --device abacus",
    "quickstart --num-images 99999",
    "quickstart --prompt ' '",
    "tokenize --tokenizer folder --input folder --output out --crop-scale 2",
    "tokenize --tokenizer folder --input folder --output out --batch-size 0",
    "layers --backbone folder --images folder --segments 1",
    "layers --backbone folder --images folder --num-images nan",
    "curves log.jsonl --smooth 0",
    "ablate plan.yaml --runs out --steps-scale nan",
    f"ablate plan.yaml --runs out --seeds {HUGE}",
    "ablate plan.yaml --runs out --seeds one",
    "prepare scenes --output out --count 0",
    "prepare scenes --output out --image-size 7",
    "prepare scenes --output out --paraphrase 1.5",
    "prepare scenes --output out --skills dancing",
    "prepare scenes --output out --seed -1",
    f"prepare scenes --output out --skills single_object={HUGE}",
    "prepare folder --input folder --output out --held-out nan",
    "prepare folder --input folder --output out --workers 0",
    "convert checkpoint folder --step never --output out",
    "bench losses --size enormous",
    # models
    f"{TO} --model ''",
    f"{TO} --model folder",
    f"{TO} --model good.png",
    f"{TO} --model {LONG}",
    f"{TO} --model ./missing",
    f"{TO} --model loop",
    "chat --question 'Who?' --model aNULLb",
    "tokenize --tokenizer folder --input folder --output out",
    "tokenize --tokenizer missing --input folder --output out",
    "layers --backbone ./missing --images pictures",
    "layers --backbone folder --images pictures",
    # paths to read
    "sample --output out --prompts-file missing.txt",
    "sample --output out --prompts-file blank.txt",
    "sample --output out --prompts-file binary",
    "sample --output out --prompts-file pipe",
    "sample --output out --prompts-file folder",
    "sample --output out --prompts-file /dev/zero",
    f"sample --output out --prompts-file {LONG}",
    "sample --output out --prompts-file loop",
    "chat --image missing.png",
    "chat --image binary --question Who?",
    "chat --image pipe --question Who?",
    "chat --image /dev/zero --question Who?",
    "chat --image loop --question Who?",
    f"chat --image {LONG} --question Who?",
    "chat --image ''",
    "chat --image ~nobody-of-this-name/a.png --question Who?",
    "reconstruct missing.png --output out.png",
    "reconstruct pipe --output out.png",
    "reconstruct folder --output out.png",
    f"reconstruct {LONG} --output out.png",
    "curves missing",
    "curves folder",
    "curves pipe",
    "curves binary",
    "curves deep",
    "curves table.csv",
    "curves /dev/zero",
    f"curves {LONG}",
    "ablate missing.yaml --runs out",
    "ablate deep --runs out",
    "ablate binary --runs out",
    "ablate pipe --runs out",
    "ablate folder --runs out",
    "layers --backbone folder --images missing",
    "layers --backbone folder --images folder",
    "train",
    "train missing.yaml",
    "train folder",
    "train binary",
    "train deep",
    "train blank.txt",
    "train --estimate missing.yaml",
    "prepare check missing",
    "prepare check good.png",
    "prepare stats folder",
    "prepare llava --input deep --output out",
    "prepare llava --input missing.json --output out",
    "prepare folder --input missing --output out",
    "prepare labels --input binary --output out",
    "prepare webdataset --input 'missing/*.tar' --output out",
    "prepare webdataset --input '{0..99999999}.tar' --output out",
    "prepare hf --input ./missing --output out",
    "eval score --benchmarks pope --data missing --output missing",
    "eval report missing",
    "eval report folder",
    "eval tokenizer --model nano --images missing",
    "convert official missing.pt --config table.csv --output out",
    "convert official binary --config deep --output out",
    "convert official binary --config binary --output out",
    "convert checkpoint missing --output out",
    "convert checkpoint folder --output out",
    # paths to write
    f"{STAR} --output good.png",
    f"{STAR} --output good.png/out",
    f"{STAR} --output /proc/out",
    f"{STAR} --output loop/out",
    f"{STAR} --output {LONG}",
    f"{STAR} --output ''",
    f"{STAR} --output own",
    "quickstart --output good.png",
    "quickstart --output /proc/out",
    "chat --output good.png",
    "reconstruct good.png --output good.png",
    "reconstruct good.png --output out.jpg",
    "reconstruct good.png --output /proc/out.png",
    f"reconstruct good.png --output {LONG}.png",
    "reconstruct good.png --output out.png --codes good.png",
    "curves log.jsonl --output good.png",
    "curves log.jsonl --output out.jpg",
    "curves log.jsonl --csv log.jsonl",
    "layers --backbone folder --images pictures --output good.png",
    "layers --backbone folder --images pictures --json table.csv",
    "bench losses --output good.png",
    "bench losses --output table.json",
    "prepare folder --input pictures --output pictures --overwrite",
    "prepare folder --input pictures --output . --overwrite",
    "prepare scenes --output own --overwrite",
    "prepare scenes --output /proc/out",
    "convert official binary --config table.csv --output own --overwrite",
    "convert official binary --config table.csv --output .",
    # words
    "",
    "paint",
    LONG,
    "eval",
    "eval dance",
    "eval run --output out",
    "eval run --benchmarks '' --output out",
    "eval run --benchmarks no-such --output out",
    f"eval run --benchmarks {LONG} --output out",
    "prepare",
    "prepare dance --output out",
    "convert",
    "bench dance",
    "ablate plan.yaml",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files of many kinds; loading a model fails the test."""
    import transformers

    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(fail))
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "pictures", "own"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (64, 64), "red").save("good.png")
    Image.new("RGB", (64, 64), "blue").save("pictures/blue.png")
    Image.new("RGB", (64, 64), "blue").save("own/grid.png")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("binary").write_bytes(bytes(range(256)) * 4)
    Path("deep").write_text("[" * 100_000)
    Path("blank.txt").write_text(" \n\n")
    Path("prompts.txt").write_text("a star\n")
    Path("eleven.txt").write_text("a star\n" * 11)
    Path("log.jsonl").write_text('{"step": 1, "loss/text": 2.0}\n')
    Path("table.csv").write_text('name,"age\n1,2\n')
    Path("table.json").write_text("{}")
    Path("plan.yaml").write_text("name: [1]\n")
    return tmp_path


def test_there_are_many():
    assert len(set(LINES)) == len(LINES) > 150


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60] or "nothing")
def test_a_wrong_command_line_is_one_short_line(line: str, folder: Path, capfd: pytest.CaptureFixture[str]):
    words = [word.replace("BYTE", "\udce9").replace("NULL", "\0") for word in shlex.split(line)]
    before = sorted(folder.rglob("*"))
    try:
        status = main(words)
    finally:
        error = capfd.readouterr().err
    assert status == 2, error
    assert "Traceback" not in error
    if line:  # without a word there is the whole help
        assert error.startswith("dualtoken"), error
        assert error.count("\n") == 1, error
        assert len(error) <= 301
        assert error.isprintable() or error[:-1].isprintable()
    assert sorted(folder.rglob("*")) == before
