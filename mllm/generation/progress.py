"""Progress of image generation: a callback, or a bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ...common.errors import UserError, shown

# Called after each position with (positions done, positions in all); False stops the generation.
Progress = Callable[[int, int], object]


class ProgressBar:
    """A bar of positions that appears with the first one and counts `rounds` image loops as one."""

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
    """What an image loop calls for an argument `progress`: a callback as it is, a bar for True, or nothing.

    The bar counts the positions of `rounds` loops, one after the other.

    Raises:
        UserError: `progress` is anything else.
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
            f"progress is {shown(progress)}; give True for a bar, or a function of (positions done, in all)"
        )
