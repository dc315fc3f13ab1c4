"""Which unfinished work is resumed, and which output is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.partial_output import (
    PLAN,
    can_resume,
    clear,
    locked_output,
    partial_folder,
    publish,
    read_plan,
    write_plan,
)

ANY_PLAN = {"settings": {"count": 3}, "input": "abc"}


def test_only_work_of_the_same_plan_is_resumed(tmp_path: Path):
    assert not can_resume(tmp_path, ANY_PLAN, overwrite=False), "nothing was begun"
    write_plan(tmp_path, ANY_PLAN)
    assert can_resume(tmp_path, ANY_PLAN, overwrite=False)
    assert can_resume(tmp_path, ANY_PLAN, overwrite=True)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({**ANY_PLAN, "input": "abd"}, "input"),
        ({"settings": {"count": 3}}, "input"),
        ({**ANY_PLAN, "size": 1, "settings": {}}, "settings, size"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, other: dict[str, object], named: str):
    write_plan(tmp_path, ANY_PLAN)
    with pytest.raises(UserError, match=f"unfinished work that differs in {named}: .*--overwrite"):
        can_resume(tmp_path, other, overwrite=False)
    assert read_plan(tmp_path) == ANY_PLAN, "nothing is lost"
    assert not can_resume(tmp_path, other, overwrite=True)


@pytest.mark.parametrize("torn", ["", '{"settings"', "[1]"])
def test_a_torn_plan_is_none(tmp_path: Path, torn: str):
    (tmp_path / PLAN).write_text(torn)
    assert read_plan(tmp_path) is None
    assert not can_resume(tmp_path, ANY_PLAN, overwrite=False)


@pytest.mark.parametrize("output", ["x", ".", "..", "a/..", "/"])
def test_the_unfinished_folder_lies_beside_the_output(output: str, tmp_path: Path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    folder = partial_folder(Path(output))
    assert folder.name.endswith(".partial")
    assert output == "/" or folder.resolve().parent == Path(output).resolve().parent


def test_unfinished_output_is_not_an_input(tmp_path: Path):
    (tmp_path / "x.partial").mkdir()
    with (
        pytest.raises(UserError, match="is also --input"),
        locked_output(tmp_path / "x", {"--input": tmp_path / "x.partial"}, overwrite=True, command="test"),
    ):
        pass


def test_clearing_keeps_the_lock_and_the_mark(tmp_path: Path):
    with locked_output(tmp_path / "x", {}, overwrite=False, command="test") as folder:
        before = sorted(path.name for path in folder.iterdir())
        (folder / "shards").mkdir()
        (folder / "shards" / "a.tar").touch()
        write_plan(folder, ANY_PLAN)
        clear(folder)
        assert sorted(path.name for path in folder.iterdir()) == before


def test_a_folder_that_cannot_be_renamed_stays(tmp_path: Path):
    (tmp_path / "done").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"kept in .*done"):
        publish(tmp_path / "done", tmp_path / "file" / "x")
    assert (tmp_path / "done").is_dir()
