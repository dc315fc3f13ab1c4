"""Files that commands write: together or not at all, and never over what somebody else made."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.common.files import atomic_file
from dualtoken.common.output_files import (
    check_file,
    check_files,
    is_our_image,
    staged_files,
    write_image,
)
from dualtoken.common.outputs import MARK, made_entries


def write(folder: Path, *names: str, outdated=lambda name: False) -> None:
    with staged_files(folder, "test", outdated) as staging:
        for name in names:
            (staging / name).write_text(name)


def break_off(folder: Path, name: str) -> None:
    with staged_files(folder, "test") as staging:
        (staging / name).touch()
        raise KeyError(name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_come_together_and_are_replaced_by_later_ones(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    write(folder, "one", "two", "grid")
    assert names(folder) == [MARK, "grid", "one", "two"]
    (folder / "mine").write_text("mine")
    check_files(folder, ["one", "grid"])
    write(folder, "one", "grid", outdated=lambda name: name == "two")
    assert names(folder) == [MARK, "grid", "mine", "one"]
    assert made_entries(folder) == {"grid", "one"}
    with pytest.raises(UserError, match="'mine', which dualtoken did not make"):
        check_files(folder, ["mine"])


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyError):
        break_off(tmp_path / "a" / "b", "one")
    assert names(tmp_path) == []
    write(tmp_path / "out", "one")
    with pytest.raises(KeyError):
        break_off(tmp_path / "out", "two")
    assert names(tmp_path / "out") == [MARK, "one"]


def test_two_commands_share_a_folder(tmp_path: Path):
    write(tmp_path, "one")
    write(tmp_path, "two")
    check_files(tmp_path, ["one", "two"])


@pytest.mark.parametrize("mark", ["[]", "{}", '{"entries": [1]}', "[" * 100_000, '{"entries": null}'])
def test_a_broken_mark_is_one_line(mark: str, tmp_path: Path):
    (tmp_path / MARK).write_text(mark)
    with pytest.raises(UserError, match=r"\.dualtoken\.json"):
        check_files(tmp_path, ["one"])


@pytest.mark.parametrize("place", ["file", "file/x", "loop", "loop/x", "nowhere", "/proc/x", "x" * 5000])
def test_a_folder_that_cannot_be_made_is_refused(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("absent")
    with pytest.raises(UserError, match="--output"):
        check_files(tmp_path / place, [])
    assert names(tmp_path) == ["file", "loop", "nowhere"]


def test_our_images_are_recognised_and_others_stay(tmp_path: Path):
    image = Image.new("RGB", (4, 4), "red")
    write_image(image, tmp_path / "ours.png")
    image.save(tmp_path / "theirs.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(tmp_path / "pipe.png")
    check_file(tmp_path / "ours.png", {}, is_our_image)
    check_file(tmp_path / "new.png", {}, is_our_image)
    for name in ("theirs.png", "broken.png", "pipe.png"):
        with pytest.raises(UserError, match="not made by dualtoken"):
            check_file(tmp_path / name, {}, is_our_image)


def test_an_input_is_refused_as_output_under_any_name(tmp_path: Path):
    write_image(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "soft.png").symlink_to("a.png")
    for name in ("a.png", "hard.png", "soft.png"):
        with pytest.raises(UserError, match="is also --image"):
            check_file(tmp_path / name, {"--image": [tmp_path / "a.png"]}, is_our_image)


def test_a_name_of_any_length_that_the_disk_takes_can_be_written(tmp_path: Path):
    for name in ("x" * 250 + ".png", "ü" * 120 + ".png"):
        with atomic_file(tmp_path / name) as temporary:
            temporary.touch()
        assert (tmp_path / name).is_file()


def test_an_input_that_is_not_there_is_not_the_outputs_fault(tmp_path: Path):
    write_image(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    check_file(tmp_path / "a.png", {"RUN": tmp_path / "none"}, is_our_image)
