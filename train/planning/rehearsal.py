"""Early checks of what only the end of a run needs, so that a run does not fail late."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ...common.errors import UserError, first_line
from ...common.packages import missing_package
from ..config.recipe import Recipe
from ..objectives import Objective


def require_packages(recipe: Recipe) -> None:
    """Raise UserError for a missing package that the run's logs need."""
    if find_spec("tensorboard") is None:
        raise UserError(missing_package("tensorboard"))
    if recipe.run.wandb_project is not None and find_spec("wandb") is None:
        raise UserError(f"run.wandb_project: {missing_package('wandb')}")


def rehearse_export(objective: Objective) -> None:
    """Write all of the exported model but its weights into a temporary folder.

    Errors:
        UserError if the export would fail after the training.
    """
    with TemporaryDirectory(prefix="dualtoken-") as folder:
        try:
            objective.rehearse_export(Path(folder))
        except UserError:
            raise
        except (OSError, ValueError) as error:  # transformers' settings that cannot be written
            raise UserError(f"the model could not be exported at the end: {first_line(error)}") from error
