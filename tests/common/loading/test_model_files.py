"""Files of a model's folder that would be waited for, or read without end."""

import os
from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.common.json_files import LARGEST_FILE
from dualtoken.common.loading.model_files import TEMPLATES, check_model_files


def test_plain_files_folders_and_hub_ids_pass(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.log")  # no library asks for it
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(LARGEST_FILE + 1)  # weights are as big as they are
    for source in (tmp_path, str(tmp_path), "owner/name", tmp_path / "absent", None, 5, "a\0b"):
        check_model_files(source)


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "merges.txt", "model.safetensors"])
def test_a_pipe_or_a_device_is_refused_unopened(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="pipe or a device"):
        check_model_files(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="pipe or a device"):
        check_model_files(tmp_path.parent, tmp_path.name)


@pytest.mark.parametrize("name", ["tokenizer.json", f"{TEMPLATES}/long.jinja"])
def test_files_read_into_memory_have_a_size_limit(tmp_path: Path, name: str):
    (tmp_path / TEMPLATES).mkdir()
    with open(tmp_path / name, "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(UserError, match="at most"):
        check_model_files(tmp_path)
