"""Progress of image generation: a callback, or a bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ...common.errors import UserError, shown

# Called after each position with (positions done, total positions); False stops the generation.
Progress = Callable[[int, int], object]


class ProgressBar:
    """A bar that appears at the first position and counts those of `rounds` image loops."""

    def __init__(self, rounds: int = 1) -> None:
        self.rounds = rounds
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=self.rounds * total, unit="position", leave=False)
        self.bar.update()
        if self.bar.n >= self.bar.total:
            self.close()

    def close(self) -> None:
        """Remove the bar; the next position opens a new one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextmanager
def shown_progress(progress: Progress | bool | None, rounds: int = 1) -> Iterator[Progress | None]:
    """The callback of image loops for an argument `progress`: a function as it is, a bar for True, or None.

    The bar counts the positions of `rounds` loops. UserError for any other value.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with closing(ProgressBar(rounds)) as bar:
            yield bar
    elif callable(progress):
        yield progress
    else:
        raise UserError(
            f"progress is {shown(progress)}; give True for a bar, or a function of (positions done, total)"
        )
