"""Which unfinished work is gone on with, and which output is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.unfinished import PLAN, goes_on, read_plan, require_free, write_plan

ANY_PLAN = {"settings": {"count": 3}, "input": "abc"}


def test_only_work_of_the_same_plan_goes_on(tmp_path: Path):
    assert not goes_on(tmp_path, ANY_PLAN, overwrite=False), "nothing was begun"
    write_plan(tmp_path, ANY_PLAN)
    assert goes_on(tmp_path, ANY_PLAN, overwrite=False)
    assert goes_on(tmp_path, ANY_PLAN, overwrite=True)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({**ANY_PLAN, "input": "abd"}, "another input"),
        ({"settings": {"count": 3}}, "another input"),
        ({**ANY_PLAN, "size": 1, "settings": {}}, "another settings, size"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, other: dict[str, object], named: str):
    write_plan(tmp_path, ANY_PLAN)
    with pytest.raises(UserError, match=f"unfinished work with {named}: .*--overwrite"):
        goes_on(tmp_path, other, overwrite=False)
    assert read_plan(tmp_path) == ANY_PLAN, "nothing is lost"
    assert not goes_on(tmp_path, other, overwrite=True)


@pytest.mark.parametrize("torn", ["", '{"settings"', "[1]"])
def test_a_torn_plan_is_none(tmp_path: Path, torn: str):
    (tmp_path / PLAN).write_text(torn)
    assert read_plan(tmp_path) is None
    assert not goes_on(tmp_path, ANY_PLAN, overwrite=False)


def test_output_is_written_over_only_when_told(tmp_path: Path):
    require_free(tmp_path / "new", overwrite=False)
    require_free(tmp_path, overwrite=False)
    file = tmp_path / "file"
    file.write_text("kept")
    for taken in (tmp_path, file):
        with pytest.raises(UserError, match="exists already: give another folder or pass --overwrite"):
            require_free(taken, overwrite=False)
        require_free(taken, overwrite=True)
