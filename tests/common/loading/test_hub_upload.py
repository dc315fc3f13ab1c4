"""What `push_to_hub` sends: all that `save_pretrained` writes, in one commit, or nothing and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenForConditionalGeneration, DualTokenPipeline, DualTokenProcessor, add_lora
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor

LOADED = [
    DualTokenForConditionalGeneration,
    DualTokenizer,
    DualTokenizerImageProcessor,
    DualTokenProcessor,
    DualTokenPipeline,
]


class FakeHub:
    """A hub that notes commits."""

    def __init__(self) -> None:
        self.commits: list[dict[str, Any]] = []
        self.repos: list[str] = []

    def __call__(self, token: Any = None) -> FakeHub:
        return self

    def create_repo(self, repo_id: str, **_: Any) -> None:
        self.repos.append(repo_id)

    def upload_folder(self, folder_path: Path, **options: Any) -> str:
        names = {
            one.relative_to(folder_path).as_posix() for one in Path(folder_path).rglob("*") if one.is_file()
        }
        self.commits.append({"names": names, **options})
        return "done"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    return hub


@pytest.mark.parametrize("kind", LOADED)
def test_the_finished_folder_is_one_commit(kind: Any, hub: FakeHub, tmp_path: Path) -> None:
    part = kind.from_pretrained("nano")
    part.save_pretrained(tmp_path / "saved")
    saved = {
        p.relative_to(tmp_path / "saved").as_posix() for p in (tmp_path / "saved").rglob("*") if p.is_file()
    }
    assert part.push_to_hub("me/model", token="secret", revision="next") == "done"
    (commit,) = hub.commits
    assert commit["names"] == saved
    assert (commit["repo_id"], commit["revision"]) == ("me/model", "next")
    # Shards of an earlier upload would be loaded beside the new weights.
    assert bool(commit["delete_patterns"]) == any(name.endswith(".safetensors") for name in saved)


def test_adapters_are_refused_before_anything_reaches_the_hub(hub: FakeHub) -> None:
    pipe = DualTokenPipeline.from_pretrained("nano", device="cpu")
    add_lora(pipe.model)
    for push in (pipe.push_to_hub, pipe.model.push_to_hub):
        with pytest.raises(UserError, match="merge_adapters"):
            push("me/model", token="secret")
    assert not hub.repos
    assert not hub.commits


def test_without_a_token_or_a_hub_it_is_one_line(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    part = DualTokenizerImageProcessor.from_pretrained("nano")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"needs a token.*hf auth login"):
        part.push_to_hub("me/model")
    with pytest.raises(UserError, match="owner/name"):
        part.push_to_hub("/tmp/model")

    class ClientError(Exception):
        """Like httpx's: of no common kind."""

    def refuse(**_: Any) -> None:
        raise ClientError("connection refused\nat length")

    monkeypatch.setattr(hub, "upload_folder", refuse)
    with pytest.raises(UserError, match=r"cannot be written on the hub: connection refused$"):
        part.push_to_hub("me/model", token="secret")


def test_offline_is_one_line() -> None:
    part = DualTokenizerImageProcessor.from_pretrained("nano")
    with pytest.raises(UserError, match="offline mode"):
        part.push_to_hub("me/model", token="secret")
