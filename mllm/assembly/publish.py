"""Upload of a model to the hub."""

import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub

from ...common.errors import UserError, first_line, shown
from ...common.loading.model_source import is_hub_id
from ..conversation.processing import DualTokenProcessor
from ..protocol import UnifiedModel
from .storage import save_model


def push_model(
    model: UnifiedModel,
    processor: DualTokenProcessor,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a DualToken model",
    create_pr: bool = False,
) -> Any:
    """Upload the folder that `save_model` writes, in one commit; returns the hub's answer.

    Raises:
        UserError: a name that is not a hub id, or a hub that cannot be reached or refuses.
    """
    if not is_hub_id(repo_id):
        raise UserError(f"repo_id is {shown(repo_id)}; give a hub id 'owner/name'")
    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        save_model(model, processor, folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        except (OSError, ValueError, RuntimeError) as error:  # the hub's and httpx's errors
            raise UserError(f"{repo_id} cannot be written on the hub: {first_line(error)}") from error
