"""Uploading a saved folder to the hub: made whole in a temporary folder first, then sent in one commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub

from ..errors import UserError, first_line, shown
from .model_source import is_hub_id

#: Weights of an earlier upload, which may have had other shards; files of the new one are kept.
_STALE = ["*.safetensors", "*.safetensors.index.json"]


def upload(
    save: Callable[[Path], Any],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload with DualToken",
    create_pr: bool = False,
    has_weights: bool = True,
) -> Any:
    """Upload the folder that `save` writes, in one commit; returns the hub's answer.

    Nothing reaches the hub unless saving succeeds. The repository is created if needed.

    Args:
        token: of the hub; None takes the one of `hf auth login` or of the variable HF_TOKEN.
        has_weights: whether weights of an earlier upload are removed in the same commit.

    Raises:
        UserError: a name that is not a hub id, no token, or a hub that cannot be reached or refuses; and
            what `save` raises.
    """
    if not is_hub_id(repo_id):
        raise UserError(f"repo_id is {shown(repo_id)}; give a hub id 'owner/name'")
    if token in (None, True) and huggingface_hub.get_token() is None:
        raise UserError(
            f"to upload to {repo_id} the hub needs a token, and there is none: run `hf auth login`, set "
            "HF_TOKEN or pass token="
        )
    with TemporaryDirectory() as name:
        folder = Path(name) / "saved"
        save(folder)
        try:
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
                delete_patterns=_STALE if has_weights else None,
            )
        except Exception as error:  # of the hub, and of any version of its HTTP client
            raise UserError(f"{repo_id} cannot be written on the hub: {first_line(error)}") from error


class UploadedWhole:
    """Makes `push_to_hub` of a transformers class upload all that its `save_pretrained` writes.

    transformers' own uploads the files of one level only, without `visual_tokenizer/`.
    """

    #: Whether `save_pretrained` writes weights.
    _has_weights = True

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload what `save_pretrained` writes, in one commit; `options` as of `upload`."""
        saved: Any = self
        return upload(saved.save_pretrained, repo_id, has_weights=self._has_weights, **options)
