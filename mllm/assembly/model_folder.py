"""Folders of unified models, recognised by their config.json."""

import os
import re
from pathlib import Path

from ...common.errors import UserError, shown
from ...common.json_files import read_json_object
from ...common.loading.model_source import model_source
from ...common.paths import inside, user_path

CONFIG_FILE = "config.json"
MODEL_TYPE = "dualtoken"
#: Files of a saved model's folder and of a hub repository; saving replaces all of them.
_OURS = re.compile(
    r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?|visual_tokenizer|"
    r"(pre)?processor_config\.json|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|"
    r"merges\.txt|chat_template\.jinja|README\.md|recipe\.yaml|\.(dualtoken\.json|gitattributes|cache|git)"
)


def resolve_model(name: str | os.PathLike[str], subfolder: str = "") -> str:
    """The location of a model: the package's for "nano", else the folder or hub id "owner/name" itself.

    subfolder: of the folder or hub id, which holds the model.

    Raises:
        UserError: the folder is not a saved DualToken model, or the name is not a hub id either.
    """
    source = model_source(name)
    if not isinstance(subfolder, str):
        raise UserError(f"subfolder is {shown(subfolder)}; give a text, the name of a folder in the model's")
    if not Path(source).is_dir():
        return source
    folder = Path(source)
    if subfolder:
        folder = user_path(inside(folder, subfolder, "subfolder"), "subfolder")
    if not is_model_folder(folder):
        raise UserError(
            f"{folder} is not a DualToken model: it has no {CONFIG_FILE} of model_type {MODEL_TYPE!r}"
        )
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} has an adapter_config.json, which would load another model: remove it, or call "
            "merge_adapters before saving"
        )
    return source


def is_model_folder(folder: Path) -> bool:
    """Whether a folder's configuration is that of a unified model."""
    file = folder / CONFIG_FILE
    return file.is_file() and read_json_object(file).get("model_type") == MODEL_TYPE


def refuse_foreign(folder: Path) -> None:
    """Raise UserError unless a model may be saved to `folder`: absent, empty, or a saved model alone."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a link to nothing; give another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder")
    names = sorted(path.name for path in folder.iterdir())
    if names and not is_model_folder(folder):
        raise UserError(
            f"{folder} has {shown(names[0])} but no model, and saving would delete it: give another folder"
        )
    if foreign := [name for name in names if not _OURS.fullmatch(name)]:
        raise UserError(
            f"{folder} has {shown(foreign[0])} next to a model, and saving would delete it: move it away, or "
            "give another folder"
        )
