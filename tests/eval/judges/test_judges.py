"""A local judge: official prompts, recorded replies, scores from the record only, no guesses."""

import json
from pathlib import Path

import pytest

from dualtoken.eval import get_task
from dualtoken.eval.harness.runner import predict, score
from dualtoken.eval.harness.task_data import Settings
from dualtoken.eval.judges.protocols import Judges
from dualtoken.eval.judges.text_judge import LocalTextJudge
from dualtoken.eval.scorers.mathvista import extraction_prompt
from dualtoken.eval.scorers.mmvet import grade_in, grading_prompt
from dualtoken.scripts import cli
from dualtoken.tokenizer import UserError

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class StubJudge:
    """Gives the replies that it was made with, and records what it was asked."""

    name = "stub sha256:0"

    def __init__(self, *replies):
        self.replies, self.asked, self.lengths = list(replies), [], []

    def reply(self, prompts, max_new_tokens):
        self.asked += prompts
        self.lengths.append(max_new_tokens)
        return [self.replies.pop(0) for _ in prompts]


class Talker:
    """A model whose answers are given."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def answer(self, items, settings):
        return [self.answers.pop(0) for _ in items]


def ask(*replies):
    """A judge that gives these replies, and what `score` takes to ask it."""
    stub = StubJudge(*replies)
    return stub, Judges(text_judge=lambda: stub)


@pytest.fixture
def mmvet(tmp_path):
    """Two graded questions, answered; their folder of data and that of the run."""
    rows = {
        f"v1_{n}": {
            "imagename": "a.png",
            "question": f"What is {n}?",
            "answer": "-1<AND>-5",
            "capability": ["ocr"],
        }
        for n in range(2)
    }
    return answered("mmvet", tmp_path, "mm-vet.json", rows, "x = -1", "x")


@pytest.fixture
def mathvista(tmp_path):
    """Three problems: a rule reads the first answer, a judge has to read the others."""
    row = {"question": "How long?", "query": "Q", "image": "images/a.png", "answer_type": "text"}
    row |= {"question_type": "multi_choice", "choices": ["12", "14"], "answer": "14", "metadata": {}}
    rows = {str(n): row for n in range(3)}
    return answered("mathvista", tmp_path, "annot_testmini.json", rows, "14", "It is (B)", "who knows")


@pytest.fixture
def mmbench(tmp_path):
    """Three questions in two rotations; a judge has to read an answer of the first and both of the third.

    The second question is incorrect in its first rotation, so that no reply on the other matters.
    """
    from base64 import b64encode

    data = tmp_path / "data"
    data.mkdir()
    columns = ("index", "question", "A", "B", "answer", "image")
    options = [("dog", "cat", "A"), ("cat", "dog", "B")]
    image = b64encode(noise()).decode()
    rows = [
        (number + rotation * 1_000_000, question, *options[rotation], image)
        for number, question in enumerate(("What is it", "Who is it", "这是什么"))
        for rotation in range(2)
    ]
    lines = ["\t".join(map(str, row)) for row in (columns, *rows)]
    (data / "MMBench_DEV_EN.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers = ("A", " a hound ", "B", "a hound", "a hound", "a pet")
    task, settings = get_task("mmbench"), Settings(data=data)
    folder = predict(task, Talker(*answers), tmp_path / "out", settings)
    return task, settings, tmp_path / "out", folder


def noise():
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


def answered(name, root, file, rows, *answers):
    from PIL import Image

    data = root / "data"
    (data / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(data / "images" / "a.png")
    (data / file).write_text(json.dumps(rows))
    task, settings = get_task(name), Settings(data=data)
    folder = predict(task, Talker(*answers), root / "out", settings)
    return task, settings, root / "out", folder


def test_the_official_prompts():
    asked = grading_prompt("What is x?", "-1<AND>-5", "x = 3")
    assert asked.startswith("Compare the ground truth and prediction from AI models, to give a correctness")
    assert "(totally right). Just complete the last space of the correctness score.\n\nQuestion | " in asked
    assert asked.endswith("physical characteristics. | 1.0\n\nWhat is x? | -1 <AND> -5 | x = 3 | ")
    asked = extraction_prompt("Hint: …\nQuestion: How long?", "It is 3.")
    assert asked.startswith("Please read the following example. Then extract the answer from the model resp")
    assert asked.endswith(
        "\n\nExtracted answer: B\n\nHint: …\nQuestion: How long?\n\nIt is 3.\n\nExtracted answer: "
    )
    assert asked.count("Model response: ") == 5


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1.0 | next", 1),
        ("0\nBecause", 0),
        ("", None),
        ("good", None),
        ("1.5", None),
        ("-0.1", None),
        ("nan", None),
    ],
)
def test_a_grade_is_a_number_from_0_to_1(reply, grade):
    assert grade_in(reply) == grade


def test_grades_are_recorded_and_scored_again_without_the_judge(mmvet):
    task, settings, output, folder = mmvet
    stub, judges = ask("0.5", "1.0")
    result = score(task, output, settings, judges)
    assert stub.asked == [
        grading_prompt("What is 0?", "-1<AND>-5", "x = -1"),
        grading_prompt("What is 1?", "-1<AND>-5", "x"),
    ]
    assert result["metrics"]["total"] == 75
    kept = json.loads((folder / "mmvet-judge.json").read_text())
    assert [(row["score"], row["reply"], row["model"]) for row in kept.values()] == [
        ([0.5], "0.5", "stub sha256:0"),
        ([1.0], "1.0", "stub sha256:0"),
    ]
    assert result["judge"]["models"] == ["stub sha256:0"]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(one["prediction"], one["parsed"], one["score"]) for one in samples] == [
        ("x = -1", [0.5], 0.5),
        ("x", [1.0], 1.0),
    ]
    assert score(task, output, settings) == result


def test_a_reply_without_a_grade_is_asked_again_and_never_guessed(mmvet):
    task, settings, output, folder = mmvet
    stub, judges = ask("0.5", "it is good", "very good")
    result = score(task, output, settings, judges)
    assert stub.asked[2] == stub.asked[1] + "\nPredict the correctness of the answer (digit): "
    assert result["metrics"]["total"] is None
    assert result["headline"] is None
    assert result["n_unparsed"] == 1
    assert "1 of 2 replies of the judge hold no verdict" in result["notes"][0]
    assert "score" not in json.loads((folder / "mmvet-judge.json").read_text())["v1_1"]


def test_only_missing_replies_are_requested(mmvet):
    task, settings, output, folder = mmvet
    _, judges = ask("0.5", "1.0")
    score(task, output, settings, judges)
    path = folder / "mmvet-judge.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({"v1_0": kept["v1_0"]}))
    stub, judges = ask("0.0")
    assert score(task, output, settings, judges)["metrics"]["total"] == 25
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"score": [1.0], "model": ["gpt-4-0613"]}, "verdicts of another judge"),
        ({"score": [1.0]}, "verdicts of another judge"),
        ({"score": [1.0], "model": "stub sha256:0", "prompt": "0"}, "on another answer"),
    ],
)
def test_verdicts_of_other_judges_and_predictions_are_refused(row, message, mmvet):
    task, settings, output, folder = mmvet
    path = folder / "mmvet-judge.json"
    path.write_text(json.dumps({"v1_0": row}))
    before = path.read_bytes()
    _, judges = ask("1.0", "1.0")
    with pytest.raises(UserError, match=message):
        score(task, output, settings, judges)
    assert path.read_bytes() == before


def test_the_judge_extracts_what_rules_cannot(mathvista):
    task, settings, output, folder = mathvista
    stub, judges = ask("B", "A")
    result = score(task, output, settings, judges)
    assert stub.asked == [extraction_prompt("Q", "It is (B)"), extraction_prompt("Q", "who knows")]
    assert result["metrics"]["accuracy"] == pytest.approx(200 / 3)
    assert json.loads((folder / "mathvista-judge.json").read_text())["1"]["extraction"] == "B"


def test_an_empty_reply_is_not_an_extraction(mathvista):
    task, settings, output, _ = mathvista
    _, judges = ask("B", "")
    result = score(task, output, settings, judges)
    assert result["metrics"]["accuracy"] is None
    assert result["n_unparsed"] == 1
    assert "1 of 2 replies" in result["notes"][0]


def test_the_judge_matches_answers_with_options(mmbench):
    task, settings, output, _ = mmbench
    alone = score(task, output, settings)
    assert (alone["metrics"]["accuracy"], alone["metrics"]["accuracy_with_judge"]) == (0, None)
    assert any("3 answers need a judge" in note for note in alone["notes"])
    stub, judges = ask("B", "A", "Your output: Z")
    result = score(task, output, settings, judges)
    assert stub.asked[0].endswith(
        "Question: What is it?\nOptions: There are several options: \nA. cat\nB. dog\n\n"
        "Answer: a hound\nYour output: "
    )
    assert stub.asked[1].startswith("你是一个")
    assert len(stub.asked) == 3
    # All rotations of the first question are right, one of the third is not.
    assert result["metrics"]["accuracy_with_judge"] == pytest.approx(100 / 3)
    assert (result["metrics"]["accuracy"], result["n_unparsed"]) == (0, 4)


@pytest.mark.parametrize("reply", ["", "a dog", "A or B", "E"])
def test_a_reply_that_names_no_option_is_not_a_verdict(reply, mmbench):
    task, settings, output, _ = mmbench
    _, judges = ask("B", reply, "A")
    result = score(task, output, settings, judges)
    assert result["metrics"]["accuracy_with_judge"] is None
    assert any("1 of 3 replies of the judge hold no verdict" in note for note in result["notes"])


# ---- a model


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    """A random language model of one layer, with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dualtoken.mllm import train_text_tokenizer

    folder = tmp_path_factory.mktemp("judge")
    tokenizer = train_text_tokenizer(["grade the answer 0.5", "extract it 14"], 300, folder / "text")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    # Settings of a chat model, which a judge must not follow.
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=1.5)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def test_replies_are_greedy_and_do_not_depend_on_the_batch(llm):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = ["grade", "extract it 14", "the answer"]
    replies = LocalTextJudge(llm).reply(prompts, 6)
    assert replies == LocalTextJudge(llm).reply(prompts, 6)
    assert replies == [LocalTextJudge(llm).reply([prompt], 6)[0] for prompt in prompts]
    tokenizer, model = AutoTokenizer.from_pretrained(llm), AutoModelForCausalLM.from_pretrained(llm)
    ids = tokenizer(f"[user]{prompts[0]}[assistant]", return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert replies[0] == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_the_name_changes_with_the_weights(llm, tmp_path):
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(llm, tmp_path / "model")
    assert LocalTextJudge(tmp_path / "model").name == LocalTextJudge(llm).name
    model = AutoModelForCausalLM.from_pretrained(llm)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "model")
    assert LocalTextJudge(tmp_path / "model").name != LocalTextJudge(llm).name


def test_folders_without_a_judge(llm, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        LocalTextJudge(Path("/nowhere/at/all"))
    with pytest.raises(UserError, match="cannot be fetched from the hub"):
        LocalTextJudge(Path("org/name"))
    with pytest.raises(UserError, match="no language model"):
        LocalTextJudge(tmp_path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(llm).save_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="no chat template"):
        LocalTextJudge(tmp_path / "plain")


# ---- on the command line


def evaluate(*arguments):
    return cli.run_command("eval", [str(argument) for argument in arguments])


def test_local_and_replay_on_the_command_line(mathvista, llm, tmp_path, capsys):
    _, settings, output, folder = mathvista
    given = ("score", "--tasks", "mathvista", "--data", settings.data, "--output", output)
    assert evaluate(*given, "--judge", f"local:{llm}") == 0
    first = json.loads((folder / "result.json").read_text())
    assert first["judge"]["models"] == [LocalTextJudge(llm).name]
    assert f"judge: {LocalTextJudge(llm).name}" in capsys.readouterr().out
    replay = (folder / "mathvista-judge.json").rename(tmp_path / "replies.json")
    assert evaluate(*given, "--judge", f"replay:{replay}") == 0
    assert json.loads((folder / "result.json").read_text()) == first
    replay.write_text("{}")
    assert evaluate(*given, "--judge", f"replay:{replay}") == 2
    assert "differs from" in capsys.readouterr().err
    assert evaluate(*given, "--judge", "replay:nowhere.json") == 2
    assert "nowhere.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "judge", "message"),
    [
        ("mmvet,mathvista", "replay:a.json", "for one task with a judge, not for 2"),
        ("nlvr", "replay:a.json", "not for 0"),
        ("mmvet", "local:", "names nothing"),
    ],
)
def test_unusable_judges_on_the_command_line(names, judge, message, tmp_path, capsys):
    assert evaluate("score", "--tasks", names, "--output", tmp_path, "--judge", judge) == 2
    assert message in capsys.readouterr().err
