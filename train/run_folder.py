"""The folder of a run: what may become one, and one run at a time in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..common.errors import UserError
from ..common.locks import only_process
from ..common.outputs import examining, is_mount_point, refuse_overlap, require_writable
from ..common.paths import user_path
from ..data_pipelines.shards.storage import is_url
from .backend.distributed import World
from .backend.resume import named_paths
from .config.recipe import Recipe

CHECKPOINTS = "checkpoints"
MODEL = "model"
#: What a run overwrites in its folder.
WRITTEN = (CHECKPOINTS, MODEL, "recipe.yaml", "log.jsonl", "validation.jsonl", "validation", "tensorboard")


@contextmanager
def run_folder(recipe: Recipe, world: World) -> Iterator[Path]:
    """Hold the folder of a run for all its processes; every rank enters this.

    Errors:
        UserError on every rank, before anything is written: the folder is an input of the run or holds one,
        was not made by a run, cannot be written, or another run is active in it.
    """
    folder = user_path(recipe.output, "output")
    with ExitStack() as held:
        world.on_main(lambda: _take(recipe, folder, held))
        yield folder


def inputs_of(recipe: Recipe) -> dict[str, Path]:
    """The folders and files that a run reads, by the keys that name them; hub ids and URLs are left out."""
    local = {key: user_path(text, key) for key, text in named_paths(recipe).items() if not is_url(text)}
    return {key: path for key, path in local.items() if path.exists()}


def _take(recipe: Recipe, folder: Path, held: ExitStack) -> None:
    """Check the folder, make it and lock it. UserError for what is in the way of that."""
    with examining(folder, "output"):
        refuse_overlap(folder, inputs_of(recipe), "output")
        _refuse_foreign(folder)
        require_writable(folder, "output")
        held.enter_context(only_process(folder, f"output {folder}"))
        (folder / CHECKPOINTS).mkdir(exist_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """UserError for a folder whose content a run would overwrite though no run made it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} exists and is not a folder; give another name")
    if is_mount_point(folder / MODEL):
        raise UserError(
            f"output {folder}: {MODEL}/ in it is a mount point and could not be replaced by the exported "
            "model; mount the complete folder, or give another one"
        )
    is_run = (folder / CHECKPOINTS).is_dir() or (
        (folder / "recipe.yaml").is_file() and (folder / "tensorboard").is_dir()
    )
    taken = [name for name in WRITTEN if (folder / name).exists() or (folder / name).is_symlink()]
    if taken and not is_run:
        raise UserError(
            f"output {folder} holds {taken[0]}, which no run made there, and a run would overwrite it: give "
            "another folder"
        )
