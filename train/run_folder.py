"""The folder of a run: checked before anything is written, and locked against other runs."""

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
#: The files and folders that a run overwrites in its folder.
WRITTEN = (CHECKPOINTS, MODEL, "recipe.yaml", "log.jsonl", "validation.jsonl", "validation", "tensorboard")


@contextmanager
def run_folder(recipe: Recipe, world: World) -> Iterator[Path]:
    """Check, create and lock the folder of a run; every rank enters this.

    Errors:
        UserError on every rank, before anything is written, if the folder is or contains an input of the
        run, was not made by a run, is not writable, or if another run is active in it.
    """
    folder = user_path(recipe.output, "output")
    with ExitStack() as held:
        world.on_main(lambda: _take(recipe, folder, held))
        yield folder


def inputs_of(recipe: Recipe) -> dict[str, Path]:
    """The folders and files that a run reads, by recipe key, without hub ids and URLs."""
    local = {key: user_path(text, key) for key, text in named_paths(recipe).items() if not is_url(text)}
    return {key: path for key, path in local.items() if path.exists()}


def _take(recipe: Recipe, folder: Path, held: ExitStack) -> None:
    """Check, create and lock the folder on the main process."""
    with examining(folder, "output"):
        refuse_overlap(folder, inputs_of(recipe), "output")
        _refuse_foreign(folder)
        require_writable(folder, "output")
        held.enter_context(only_process(folder, f"output {folder}"))
        (folder / CHECKPOINTS).mkdir(exist_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """Raise UserError if a run would overwrite files that no run has written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} exists and is not a folder; give another name")
    if is_mount_point(folder / MODEL):
        raise UserError(
            f"output {folder}: its {MODEL}/ is a mount point, which the exported model cannot replace; mount "
            "the complete folder, or give another one"
        )
    is_run = (folder / CHECKPOINTS).is_dir() or (
        (folder / "recipe.yaml").is_file() and (folder / "tensorboard").is_dir()
    )
    taken = [name for name in WRITTEN if (folder / name).exists() or (folder / name).is_symlink()]
    if taken and not is_run:
        raise UserError(
            f"output {folder} holds {taken[0]}, which was not made by a run and would be overwritten: give "
            "another folder"
        )
