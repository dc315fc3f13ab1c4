"""How far a drawing is: a callback, or a bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...common.errors import UserError, shown

# Called after each position with (positions done, positions in all); False stops the drawing.
Progress = Callable[[int, int], object]


@contextmanager
def shown_progress(progress: Progress | bool | None, rounds: int = 1) -> Iterator[Progress | None]:
    """What an image loop calls for an argument `progress`: a callback as it is, a bar for True, or nothing.

    The bar counts the positions of `rounds` loops, one after the other.

    Errors:
        UserError for anything else.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        from tqdm import tqdm

        with tqdm(unit="position", leave=False) as bar:

            def advance(done: int, total: int) -> None:
                if bar.total is None:
                    bar.reset(rounds * total)
                bar.update()

            yield advance
    elif callable(progress):
        yield progress
    else:
        raise UserError(
            f"progress is {shown(progress)}; give True for a bar, or a function of (positions done, in all)"
        )
