"""What a session notices around the answers: progress."""

import pytest

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenPipeline


@pytest.fixture
def pipe(model, processor) -> DualTokenPipeline:
    return DualTokenPipeline(model, processor)


class TestProgress:
    def test_true_shows_one_bar_over_all_batches(self, pipe, capsys):
        positions = pipe.model.config.num_positions
        pipe.generate_images_many(["red", "blue"], 3, seed=0, batch_size=2, progress=True)
        assert f"/{4 * positions} " in capsys.readouterr().err
        pipe.generate_images("red", seed=0)
        assert capsys.readouterr().err == ""

    def test_a_function_sees_every_position_and_anything_else_is_refused(self, pipe):
        seen: list[tuple[int, int]] = []
        pipe.generate_images("red", 2, seed=0, progress=lambda *at: seen.append(at))
        assert seen == [(done, 16) for done in range(1, 17)]
        with pytest.raises(UserError, match="progress"):
            pipe.generate_images("red", progress="bar")
