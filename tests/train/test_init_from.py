"""A recipe that starts from a saved model names the model, the data and how to train, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenForConditionalGeneration, DualTokenProcessor
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import plain_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.planning.estimate import Estimate

from .conftest import Chain, train_here


@pytest.fixture(scope="module")
def saved(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of the chain as a saved folder, its weights random and in bf16."""
    folder = tmp_path_factory.mktemp("saved")
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", folder / "x")))
    objective.export(folder / "model", torch.bfloat16)
    return folder / "model"


def short_recipe(chain: Chain, folder: Path, **changes: Any) -> str:
    """A recipe without any setting of the model, not even its name."""
    content: dict[str, Any] = {
        "output": str(folder / "run"),
        "mllm": {},
        "data": {"micro_batch_size": 2, "sources": {"t2i": {"path": str(chain.folder / "codes_t2i")}}},
        "run": {"steps": 2, "threads": 1, "save_every": 1},
    }
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return str(path)


@pytest.mark.slow  # `make oldest` runs it too
@pytest.mark.parametrize("mllm", [{}, None, {"lora": {"rank": 2}}], ids=["empty", "missing", "lora"])
def test_a_short_recipe_trains_resumes_and_exports_a_complete_folder(
    mllm: Any, chain: Chain, saved: Path, tmp_path: Path
) -> None:
    validation = {"every": 2, "prompts": ["a red circle"]}
    path = short_recipe(chain, tmp_path, mllm=mllm, validation=validation)
    arguments = ["--config", path, "--init_from", str(saved)]
    assert train_here([*arguments, "--run.stop_after", "1"]) == 0
    assert train_here(arguments) == 0
    assert (tmp_path / "run" / "validation" / "step-00000002" / "00-a-red-circle.png").is_file()
    before = DualTokenForConditionalGeneration.from_pretrained(saved)
    after = DualTokenForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert after.visual_tokenizer is not None
    for name, tensor in before.visual_tokenizer.state_dict().items():
        assert torch.equal(after.visual_tokenizer.state_dict()[name], tensor), name
    same = {"image_sampling", "depth_transformer", "pixel_condition", "visual_target_fraction", "grid_size"}
    assert {name: getattr(after.config, name) for name in same} == {
        name: getattr(before.config, name) for name in same
    }
    vocabulary = [
        DualTokenProcessor.from_pretrained(one).tokenizer.get_vocab() for one in (saved, after.name_or_path)
    ]
    assert vocabulary[0] == vocabulary[1]
    written = plain_recipe(parse_recipe([str(tmp_path / "run" / "recipe.yaml")]))
    assert written["mllm"]["model"]["pixel_condition"] == "semantic"


def test_a_named_loss_is_the_recipes_and_all_else_the_models(
    chain: Chain, saved: Path, tmp_path: Path
) -> None:
    path = short_recipe(chain, tmp_path, init_from=str(saved), mllm={"model": {"text_loss_weight": 3.0}})
    recipe = parse_recipe([path])
    objective: Any = build_objective(recipe)
    config = objective.model.config
    assert (config.text_loss_weight, config.visual_target_fraction) == (3.0, 0.5)
    assert config.pixel_condition == "semantic"
    assert objective.model.dtype == torch.float32
    weights = DualTokenForConditionalGeneration.from_pretrained(saved, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in objective.model.state_dict().items())
    assert Estimate.of(recipe).sizes.total == sum(one.numel() for one in objective.model.parameters())


@pytest.mark.parametrize(
    ("mllm", "reasons"),
    [
        (
            {"model": {"depth_transformer": {"num_layers": 1}, "visual_position": "learned"}},
            [
                "mllm.model.depth_transformer.num_layers is 1, not 2",
                "visual_position is 'learned', not 'none'",
            ],
        ),
        ({"llm": {"model_type": "llama", "hidden_size": 64}}, ["mllm.llm.hidden_size is 64, not 32"]),
        ({"llm": "Qwen/Qwen2.5-7B"}, ["mllm.llm.model_type is 'qwen2', not 'llama'"]),
    ],
)
def test_another_architecture_is_one_line_for_each_mistake(
    mllm: dict[str, Any], reasons: list[str], chain: Chain, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe([short_recipe(chain, tmp_path, mllm=mllm), "--init_from", str(saved)])
    assert all(reason in str(caught.value) for reason in reasons)
    assert "\n" not in str(caught.value)


def test_other_tokenizers_than_the_models_are_refused(chain: Chain, saved: Path, tmp_path: Path) -> None:
    nano = "pretrained/nano"
    path = short_recipe(chain, tmp_path, init_from=str(saved))
    with pytest.raises(UserError, match=r"mllm\.text_tokenizer .* has another vocabulary than the model"):
        build_objective(parse_recipe([path, "--mllm.text_tokenizer", nano]))
    with pytest.raises(UserError, match="visual tokenizer has a grid"):
        build_objective(parse_recipe([path, "--mllm.visual_tokenizer", f"{nano}/visual_tokenizer"]))


def test_a_tokenizers_recipe_takes_the_settings_of_the_saved_one(chain: Chain, tmp_path: Path) -> None:
    section = {"teacher": str(chain.folder / "siglip"), "unquantized_steps": None}
    arguments = chain.recipe("tokenizer", tmp_path / "run", tokenizer=section)
    recipe = parse_recipe([*arguments, "--init_from", str(chain.folder / "tokenizer")])
    assert recipe.tokenizer is not None
    assert (recipe.tokenizer.model.pixel_layer, recipe.tokenizer.model.pixel_quantizer.num_codes) == (1, 16)
    objective: Any = build_objective(recipe)
    objective.initialise_from(recipe.init_from)
    wrong = [
        *arguments,
        "--init_from",
        str(chain.folder / "tokenizer"),
        "--tokenizer.model.shortcut_layer",
        "1",
    ]
    other: Any = build_objective(parse_recipe(wrong))
    with pytest.raises(UserError, match=r"^tokenizer\.model is not that of init_from"):
        other.initialise_from(str(chain.folder / "tokenizer"))


@pytest.mark.parametrize(
    ("holds", "reason"),
    [
        ("model/config.json", r"is a run; its model is .*start/model$"),
        ("checkpoints/step-00000001/state.json", r"is a run without a model yet: .*convert checkpoint`$"),
        ("state.json", r"is a checkpoint: make a model of it with `dualtoken convert checkpoint`$"),
        ("shard-00000.tar", r"has no config\.json; give the folder of a saved model$"),
    ],
)
def test_a_folder_without_a_model_is_one_line(holds: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "start" / holds
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match=rf"^init_from \S+start {reason}"):
        parse_recipe(["nano_sft", "--init_from", str(tmp_path / "start")])


def test_a_model_that_is_neither_here_nor_on_the_hub_is_one_line(chain: Chain, tmp_path: Path) -> None:
    recipe = parse_recipe([short_recipe(chain, tmp_path), "--init_from", "pretrained/nnano"])
    with pytest.raises(UserError, match=r"^init_from: no model 'pretrained/nnano': give 'nano', .*\)$"):
        build_objective(recipe)
