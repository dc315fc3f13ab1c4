"""Names of models, and sizes in their settings."""

from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.common.loading.bounded_settings import check_settings, most_layers
from dualtoken.common.loading.model_source import is_hub_id, model_source


def test_a_name_is_the_packaged_model_a_folder_or_a_hub_id(tmp_path: Path):
    assert Path(model_source("nano")).name == "nano"
    assert model_source(tmp_path) == model_source(str(tmp_path)) == str(tmp_path)
    assert model_source("owner/name-1.5_b") == "owner/name-1.5_b"


@pytest.mark.parametrize(
    "name", ["nanoo", "a/b/c", "/absent", "./a/b", "../b", "a/..", "~/x", "", "a\0/b", 5, None]
)
def test_other_names_are_one_line_and_no_question_to_the_hub(name: object):
    with pytest.raises(UserError):
        model_source(name)  # type: ignore[arg-type]
    assert not is_hub_id(name)  # type: ignore[arg-type]


def test_settings_that_no_model_has_are_named():
    check_settings(
        {"num_hidden_layers": 80, "rope": {"theta": 1e6}, "layer_types": ["full"] * 80}, "config.json"
    )
    assert most_layers({"a": {"num_hidden_layers": 7}, "n_layers": 3}) == 7
    for wrong in (
        {"num_hidden_layers": 10**6},
        {"part": {"hidden_size": -1}},
        {"parts": [{"vocab_size": 10**400}]},
        {"eos": [0] * 100_000},
        {"transformers_weights": "../x"},
        {"_attn_implementation": "owner/kernel"},
    ):
        with pytest.raises(UserError, match=r"config\.json"):
            check_settings(wrong, "config.json")
