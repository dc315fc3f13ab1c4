"""dualtoken chat: one question, and conversations typed line by line."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenPipeline
from dualtoken.scripts.chat import ChatSession, converse
from dualtoken.scripts.cli import main


class FakePipeline:
    """Gives every question the same answer, draws grey squares, and remembers what it was given."""

    def __init__(self) -> None:
        self.conversations: list[list[dict]] = []
        self.seeds: list[int] = []

    def chat(self, messages, stream, max_new_tokens, seed) -> Iterator[dict]:
        assert stream
        self.conversations.append([dict(message) for message in messages])
        if "draw" in messages[-1]["content"][-1]["text"]:
            yield {"type": "text", "text": "Here: "}
            yield {"type": "image", "image": Image.new("RGB", (4, 4), "grey")}
        if "fail" in messages[-1]["content"][-1]["text"]:
            raise UserError("the conversation is too long")
        for word in ("It ", "is ", "red."):
            yield {"type": "text", "text": word}

    def generate_images(self, prompt, num_images, seed):
        self.seeds.append(seed)
        return [Image.new("RGB", (4, 4), "grey")] * num_images


@pytest.fixture
def session(tmp_path: Path) -> ChatSession:
    return ChatSession(FakePipeline(), tmp_path / "drawings", seed=5)


def kinds(message: dict) -> list[str]:
    return [part["type"] for part in message["content"]]


def test_one_question_prints_the_answer_and_nothing_else(tiny_model, picture, capfd):
    argv = ["chat", "--model", str(tiny_model), "--device", "cpu", "--max-new-tokens", "6"]
    argv += ["--image", str(picture), "--question", "What colour is the circle?"]
    assert main(argv) == 0
    expected = DualTokenPipeline.from_pretrained(tiny_model, device="cpu").answer(
        picture, "What colour is the circle?", max_new_tokens=6
    )
    assert capfd.readouterr().out == expected + "\n"


def test_a_question_needs_no_image_and_takes_several(tiny_model, picture, capfd):
    argv = [
        "chat",
        "--model",
        str(tiny_model),
        "--device",
        "cpu",
        "--max-new-tokens",
        "2",
        "--question",
        "Why?",
    ]
    assert main(argv) == 0
    assert main([*argv, "--image", str(picture), "--image", str(picture)]) == 0


def test_a_conversation_with_the_model_itself(tiny_model, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"/image {picture}\nWhat is it?\n/draw a red circle\nAnd now?\n")
    )
    monkeypatch.chdir(tmp_path)
    argv = ["chat", "--model", str(tiny_model), "--device", "cpu", "--max-new-tokens", "3"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out.count("> ") == 5
    assert "error" not in captured.err
    assert Image.open(tmp_path / "drawings" / "drawing_000.png").size == (16, 16)


def test_history_grows_by_turns(session, capsys):
    session.handle("What colour is it?")
    session.handle("Are you sure?")
    assert capsys.readouterr().out == "It is red.\nIt is red.\n"
    roles = [message["role"] for message in session.pipeline.conversations[1]]
    assert roles == ["user", "assistant", "user"]
    assert session.messages[1]["content"] == [{"type": "text", "text": "It is red."}]


def test_images_go_with_the_next_question_only(session, picture):
    session.handle(f"/image {picture}")
    session.handle(f"/image '{picture}'")
    session.handle("Are they the same?")
    session.handle("Really?")
    assert kinds(session.pipeline.conversations[0][0]) == ["image", "image", "text"]
    assert kinds(session.pipeline.conversations[1][-1]) == ["text"]


def test_drawings_are_saved_and_stay_in_the_conversation(session, tmp_path):
    session.handle("/draw a red circle")
    session.handle("/draw a red circle")
    assert sorted(path.name for path in (tmp_path / "drawings").iterdir()) == [
        "drawing_000.png",
        "drawing_001.png",
    ]
    assert session.pipeline.seeds == [5, 6]
    session.handle("What is it?")
    assert [kinds(message) for message in session.pipeline.conversations[0]] == [
        ["text"],
        ["image"],
        ["text"],
        ["image"],
        ["text"],
    ]


def test_an_answer_may_hold_images(session, tmp_path, capsys):
    session.handle("Please draw it.")
    assert kinds(session.messages[-1]) == ["text", "image", "text"]
    assert (tmp_path / "drawings" / "drawing_000.png").exists()
    assert "drawing_000.png" in capsys.readouterr().out


def test_reset_forgets(session, picture):
    session.handle("Hello")
    session.handle(f"/image {picture}")
    session.handle("/reset")
    assert session.messages == []
    assert session.attached == []


@pytest.mark.parametrize("line", ["/image", "/image missing.png", "/draw", "/sing a song", "fail please"])
def test_a_mistake_leaves_the_conversation_as_it_was(session, line, tmp_path):
    session.handle("Hello")
    before = list(session.messages)
    with pytest.raises(UserError):
        session.handle(line)
    assert session.messages == before
    assert not (tmp_path / "drawings").exists()


def test_converse_goes_on_after_a_mistake_and_ends_with_quit(session, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("/sing\n\n/help\nHello\n/quit\nnot read\n"))
    converse(session)
    captured = capsys.readouterr()
    assert captured.err == "error: unknown command /sing; /help lists the commands\n"
    assert "/draw PROMPT" in captured.out
    assert len(session.pipeline.conversations) == 1


def test_converse_ends_with_the_input(session, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    converse(session)
