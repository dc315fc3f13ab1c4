"""A language model's own answers as records: prompts, unfinished answers, and the command."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.text import general_questions as asked
from dualtoken.data_pipelines.text.prompts import prompts
from dualtoken.data_pipelines.text.replies import RepliesConverter

END = 0


def test_there_are_hundreds_of_prompts_of_many_kinds_and_always_the_same():
    found = prompts()
    assert len(found) == len(set(found)) >= 700
    assert found == prompts()
    beginnings = {" ".join(prompt.split()[:2]) for prompt in found[:60]}
    assert len(beginnings) > 20  # kinds alternate, so that a part of them has all


def test_no_prompt_is_a_general_question_or_asks_for_the_same_capital_sum_or_subject():
    found = prompts()
    assert not {question.prompt for question in asked.GENERAL_QUESTIONS} & set(found)
    words = {*asked.CAPITALS, *asked.CAPITALS.values(), *asked.SUBJECTS}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})s?\b", re.IGNORECASE)
    assert [prompt for prompt in found if pattern.search(prompt)] == []
    sums = [sorted(map(int, re.findall(r"\d+", question))) for question in asked.ARITHMETIC]
    numbers = [
        sorted(map(int, re.findall(r"\d+", prompt))) for prompt in found if prompt.startswith("What is")
    ]
    assert [pair for pair in numbers if pair and pair in sums] == []


class Tokenizer:
    """Words as ids by their length; the prompt's words are what a model is given."""

    eos_token_id, pad_token_id = END, END

    def apply_chat_template(self, messages, **options):
        lengths = [len(turns[0]["content"].split()) for turns in messages]
        ids = torch.tensor([[END] * (max(lengths) - n) + [1] * n for n in lengths])
        batch = {"input_ids": ids, "attention_mask": ids}
        return SimpleNamespace(to=lambda device: batch)

    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(f"w{n}" for n in row.tolist() if n != END) for row in ids]


class Model:
    """Answers a prompt of n words with n tokens, and ends only where there is room for the end."""

    device = "cpu"

    def generate(self, input_ids, attention_mask, max_new_tokens, **options):
        rows = [
            ([7] * n + [END] * max_new_tokens)[:max_new_tokens] for n in attention_mask.sum(dim=1).tolist()
        ]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


@pytest.fixture
def converter(tmp_path, monkeypatch) -> RepliesConverter:
    monkeypatch.setattr(RepliesConverter, "_loaded", lambda self: (Model(), Tokenizer()))
    (tmp_path / "prompts.txt").write_text("one\n\ntwo words\nthis has four words\n  and three words \nlast\n")
    return RepliesConverter("some/model", tmp_path / "prompts.txt", max_new_tokens=4, together=2)


def test_finished_answers_become_text_records_and_others_are_left_out(converter, tmp_path):
    write_shards(converter, OutputOptions(tmp_path / "replies", progress=False))
    found = ShardDataset(tmp_path / "replies")
    records = [found[index] for index in range(len(found))]
    expected = [["one", "w7"], ["two words", "w7 w7"], ["and three words", "w7 w7 w7"], ["last", "w7"]]
    assert [record.texts() for record in records] == expected
    assert {record.task() for record in records} == {"text"}
    assert not any(record.image_parts() for record in records)
    assert found.manifest["source"] == "answers of some/model"


def test_the_first_prompts_are_taken_and_another_list_is_another_input(converter, tmp_path):
    path = tmp_path / "prompts.txt"
    fewer = RepliesConverter("some/model", path, count=3, max_new_tokens=4, together=2)
    assert fewer.prompts == converter.prompts[:3]
    assert fewer.total() == 2
    assert fewer.fingerprint() != converter.fingerprint()
    assert RepliesConverter("some/model").prompts == prompts()


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_prompts_is_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="--prompts"):
        RepliesConverter("some/model", path)
