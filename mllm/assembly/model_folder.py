"""Which folders hold a unified model, by their config.json alone."""

import os
import re
from pathlib import Path

from ...common.errors import UserError, shown
from ...common.json_files import read_json_object
from ...common.loading.model_source import model_source
from ...common.paths import inside, user_path

CONFIG_FILE = "config.json"
MODEL_TYPE = "dualtoken"
#: What a saved model's folder may hold, and what else a repository of the hub has; saving replaces all of it.
_OURS = re.compile(
    r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?|visual_tokenizer|"
    r"(pre)?processor_config\.json|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|"
    r"merges\.txt|chat_template\.jinja|README\.md|recipe\.yaml|\.(dualtoken\.json|gitattributes|cache|git)"
)


def resolve_model(name: str | os.PathLike[str], subfolder: str = "") -> str:
    """Where a model is: "nano" -> the model inside the package, a folder -> itself, else a hub id
    "owner/name".

    subfolder: the part of the folder or hub id in which the model lies.

    Raises:
        UserError: the folder is not a saved DualToken model, or the name is none of the three.
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
            f"{folder} has an adapter_config.json, which would load another model: remove it, or merge the "
            "adapters before saving (merge_adapters)"
        )
    return source


def is_model_folder(folder: Path) -> bool:
    """Whether a folder's configuration is that of a unified model."""
    if not (folder / CONFIG_FILE).is_file():
        return False
    return read_json_object(folder / CONFIG_FILE).get("model_type") == MODEL_TYPE


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
            f"{folder} holds {shown(names[0])} but no model, and saving would replace it: give another folder"
        )
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign:
        raise UserError(
            f"{folder} holds {shown(foreign[0])} next to a model, which would be lost: move it away, or give "
            "another folder"
        )
