"""The first commands that a user tries, on the model that comes with the package."""

from pathlib import Path

import pytest

from dualtoken.common.loading.model_source import NANO, PRETRAINED_FOLDER
from dualtoken.scripts.cli import main

pytestmark = pytest.mark.skipif(
    not (PRETRAINED_FOLDER / NANO).is_dir(),
    reason="this checkout has no pretrained/nano; make nano trains it",
)


def test_quickstart_then_chat_then_reconstruct(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--device", "cpu", "--num-images", "2"]) == 0
    assert (tmp_path / "quickstart" / "drawing_1.png").is_file()
    capsys.readouterr()

    scene = str(Path("quickstart") / "scene.png")
    assert (
        main(["chat", "--device", "cpu", "--image", scene, "--question", "What colour is the circle?"]) == 0
    )
    answer = capsys.readouterr().out
    assert answer.strip()
    assert answer.count("\n") == 1

    assert main(["reconstruct", "--device", "cpu", scene, "--output", "both.png"]) == 0
    assert float(capsys.readouterr().out.split()[1]) > 20  # dB; an untrained tokenizer gives less than 15
