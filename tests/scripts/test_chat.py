"""dualtoken chat: one question, and conversations typed line by line."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenPipeline
from dualtoken.scripts import chat
from dualtoken.scripts.chat import ChatSession, converse
from dualtoken.scripts.cli import main


class FakePipeline:
    """Gives every question the same answer, generates grey squares, and remembers what it was given."""

    def __init__(self) -> None:
        self.conversations: list[list[dict]] = []
        self.seeds: list[int] = []
        self.options: list[dict] = []

    def chat(self, messages, stream, max_new_tokens, seed, progress, **options) -> Iterator[dict]:
        assert stream
        self.options.append(options)
        self.conversations.append([dict(message) for message in messages])
        if "draw" in messages[-1]["content"][-1]["text"]:
            yield {"type": "text", "text": "Here: "}
            yield {"type": "image", "image": Image.new("RGB", (4, 4), "grey")}
        if "stop" in messages[-1]["content"][-1]["text"]:
            yield {"type": "text", "text": "It is"}
            raise KeyboardInterrupt
        if "silence" in messages[-1]["content"][-1]["text"]:
            raise KeyboardInterrupt
        if "fail" in messages[-1]["content"][-1]["text"]:
            raise UserError("the conversation is too long")
        for word in ("It ", "is ", "red."):
            yield {"type": "text", "text": word}

    def generate_images(self, prompt, num_images, seed, progress):
        self.seeds.append(seed)
        if "stop" in prompt:
            raise KeyboardInterrupt
        return [Image.new("RGB", (4, 4), "grey")] * num_images


@pytest.fixture
def session(tmp_path: Path) -> ChatSession:
    return ChatSession(FakePipeline(), tmp_path / "drawings", seed=5)


def kinds(message: dict) -> list[str]:
    return [part["type"] for part in message["content"]]


def test_one_question_prints_the_answer_and_nothing_else(tiny_model, photo, capfd):
    argv = ["chat", "--model", str(tiny_model), "--device", "cpu", "--max-new-tokens", "6"]
    argv += ["--image", str(photo), "--question", "What colour is the circle?"]
    assert main(argv) == 0
    expected = DualTokenPipeline.from_pretrained(tiny_model, device="cpu").answer(
        photo, "What colour is the circle?", max_new_tokens=6
    )
    assert capfd.readouterr().out == expected + "\n"


def test_a_question_needs_no_image_and_takes_several(tiny_model, photo, capfd):
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
    assert main([*argv, "--image", str(photo), "--image", str(photo)]) == 0


def test_a_conversation_with_the_model_itself(tiny_model, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"/image {photo}\nWhat is it?\n/draw a red circle\nAnd now?\n")
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


def test_images_go_with_the_next_question_only(session, photo):
    session.handle(f"/image {photo}")
    session.handle(f"/image '{photo}'")
    session.handle("Are they the same?")
    session.handle("Really?")
    assert kinds(session.pipeline.conversations[0][0]) == ["image", "image", "text"]
    assert kinds(session.pipeline.conversations[1][-1]) == ["text"]


def test_generated_images_are_saved_and_stay_in_the_conversation(session, tmp_path):
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


def test_reset_forgets(session, photo):
    session.handle("Hello")
    session.handle(f"/image {photo}")
    session.handle("/reset")
    assert session.messages == []
    assert session.attached == []


@pytest.mark.parametrize(
    "line",
    [
        "/image",
        "/image missing.png",
        "/image missing.png what is it?",
        "what is /image missing.png",
        "/image 'unclosed",
        "/draw",
        "/sing a song",
        "/seed -1",
        "/seed many",
        "/seed",
        f"/seed {'9' * 5000}",
        "/save",
        "/save .",
        "/save test.py/x",
        f"/save {'x' * 5000}",
        "fail please",
    ],
    ids=lambda line: line[:20],
)
def test_a_mistake_leaves_the_conversation_as_it_was(session, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.py").touch()
    session.handle("Hello")
    before = list(session.messages)
    with pytest.raises(UserError):
        session.handle(line)
    assert session.messages == before
    assert not (tmp_path / "drawings").exists()


def test_converse_continues_after_a_mistake_and_ends_with_quit(session, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("/sing\n\n/help\nHello\n/quit\nnot read\n"))
    converse(session)
    captured = capsys.readouterr()
    commands = "/image, /draw, /seed, /save, /reset, /help, /quit"
    assert captured.err == f"error: unknown command /sing; there are {commands}\n"
    assert "/draw PROMPT" in captured.out
    assert len(session.pipeline.conversations) == 1


def test_converse_ends_with_the_input(session, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    converse(session)


@pytest.mark.parametrize(
    ("line", "question", "count"),
    [
        ("/image {0} What is it?", "What is it?", 1),
        ("What is it? /image {0}", "What is it?", 1),
        ("Is /image {0} like /image {0} or not?", "Is like or not?", 2),
        ("/image '{1}' What is it?", "What is it?", 1),
        ("/image {1} What is it?", "What is it?", 1),
        ('/image "{1}"   Who?', "Who?", 1),
    ],
)
def test_images_and_words_share_a_line(session, photo, tmp_path, line, question, count):
    spaced = tmp_path / "my photo [1].png"
    shutil.copy(photo, spaced)
    session.handle(line.format(photo, spaced))
    (asked,) = session.pipeline.conversations[0]
    assert kinds(asked) == ["image"] * count + ["text"]
    assert asked["content"][-1]["text"] == question
    assert session.attached == []


def test_a_path_that_exists_is_taken_as_it_is_written(session, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(photo, "'quoted' and spaced.png")
    session.handle("/image 'quoted' and spaced.png")
    assert len(session.attached) == 1


def test_a_stopped_answer_keeps_its_text(session, photo, capsys):
    session.handle(f"/image {photo}")
    session.handle("please stop")
    assert session.messages[-1]["content"] == [{"type": "text", "text": "It is"}]
    assert kinds(session.messages[0]) == ["image", "text"]
    assert session.attached == []
    assert "(stopped)" in capsys.readouterr().out


def test_ctrl_c_stops_the_turn_and_not_the_conversation(session, photo, monkeypatch, capsys):
    lines = f"/image {photo}\nsilence\n/draw stop\nstill there?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    converse(session)
    assert capsys.readouterr().out.count("(stopped)") == 2
    assert kinds(session.messages[0]) == ["image", "text"], "the image waited for the next question"
    assert len(session.messages) == 2


@pytest.mark.parametrize(
    "line", [f"/image {'x' * 5000}", f"/save {'x/' * 5000}", f"/{'x' * 5000}", "/image \0"]
)
def test_a_mistake_is_one_short_line(session, line, capsys):
    chat.take_turn(session, line)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) <= 301
    assert session.messages == []


def test_ctrl_c_twice_at_the_prompt_leaves(session, monkeypatch, capsys):
    presses = iter([KeyboardInterrupt, "Who?", KeyboardInterrupt, KeyboardInterrupt, "never read"])

    def read_line():
        line = next(presses)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr(chat, "read_line", read_line)
    converse(session)
    assert next(presses) == "never read"
    assert len(session.messages) == 2


def test_a_line_that_is_not_text_costs_only_itself(session, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("caf\udce9?\nWho?\n"))
    converse(session)
    assert capsys.readouterr().err == "error: that line is not UTF-8 text, and was left out\n"
    assert len(session.pipeline.conversations) == 1


def test_a_line_without_end_ends_the_conversation(session, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\0" * 1_100_000))
    with pytest.raises(UserError, match="a line of more than"):
        converse(session)


@pytest.mark.parametrize("line", ["hello", "Hi there!", "Good morning.", "thank you", "How are you?"])
def test_a_greeting_is_answered_in_words(session, line):
    session.handle(line)
    assert session.pipeline.options == [{"max_images": 0}]


@pytest.mark.parametrize("line", ["a red circle", "hello, draw a red circle", "?", "What is good?"])
def test_anything_else_may_be_answered_with_an_image(session, line):
    session.handle(line)
    assert session.pipeline.options == [{}]


def test_the_seed_can_be_set(session, capsys):
    session.handle("/seed 9223372036854775807")
    session.handle("/draw a red circle")
    session.handle("/draw a red circle")
    assert session.pipeline.seeds == [2**63 - 1, 0]


def test_a_saved_conversation_has_its_images_and_replaces_nothing(session, photo, tmp_path):
    session.handle(f"/image {photo} What is it?")
    session.handle("/draw a red circle")
    session.handle(f"/save {tmp_path / 'kept'}")
    saved = json.loads((tmp_path / "kept" / "dialogue.json").read_text())["messages"]
    assert [kinds(message) for message in saved] == [kinds(message) for message in session.messages]
    names = [part["image"] for message in saved for part in message["content"] if part["type"] == "image"]
    assert names == ["image_000.png", "image_001.png"]
    assert Image.open(tmp_path / "kept" / names[0]).size == Image.open(photo).size
    assert isinstance(session.messages[0]["content"][0]["image"], Image.Image)
    with pytest.raises(UserError, match="exists already"):
        session.handle(f"/save {tmp_path / 'kept'}")


def test_a_line_that_is_too_long_costs_only_itself(session, monkeypatch, capsys):
    monkeypatch.setattr(chat, "LONGEST_LINE", 10)
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("x" * 95 + "\nfirst\n" + "y" * 11 + "\n" + "z" * 10 + "\nlast")
    )
    converse(session)
    assert [turns[-1]["content"][-1]["text"] for turns in session.pipeline.conversations] == [
        "first",
        "z" * 10,
        "last",
    ]
    assert capsys.readouterr().err.count("has more than 10 characters, and was left out") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 5000))
    with pytest.raises(UserError, match="give shorter ones"):
        converse(session)
