"""Untrusted model folders: any content gives a one-line error, and no code is run."""

import ast
import copy
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dualtoken.common.errors import UserError
from dualtoken.common.loading.model_source import NANO, PRETRAINED_FOLDER
from dualtoken.mllm import (
    DualTokenConfig,
    DualTokenForConditionalGeneration,
    DualTokenPipeline,
    DualTokenProcessor,
)
from dualtoken.mllm.assembly.tokenizers import load_text_tokenizer
from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig, DualTokenizerImageProcessor

ROOT = Path(__file__).resolve().parents[3]
FOLDER = PRETRAINED_FOLDER / NANO
MODEL = json.loads((FOLDER / "config.json").read_text())
TOKENIZER = json.loads((FOLDER / "visual_tokenizer" / "config.json").read_text())
CODE = "import pathlib\npathlib.Path({ran!r}).write_text('x')\nclass Evil:\n    pass\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of nano, to be made hostile."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def change(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a dot leads into an object."""
    found = json.loads(path.read_text())
    for key, value in changes.items():
        *above, last = key.split("__")
        inner = found
        for name in above:
            inner = inner[name]
        inner[last] = value
    path.write_text(json.dumps(found))


def refused(load: Any) -> str:
    """The message of the UserError that `load` raises, within five seconds."""
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load()
    assert time.perf_counter() - start < 5
    return str(caught.value)


# --- code ----------------------------------------------------------------------


def test_code_of_a_folder_is_never_run_nor_asked_about(folder: Path, tmp_path: Path, monkeypatch):
    ran = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    for name in ("evil.py", "visual_tokenizer/evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(ran=str(ran)))
    autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM", "AutoTokenizer")
    auto_map = dict.fromkeys((*autos, "AutoProcessor", "AutoImageProcessor"), "evil.Evil")
    for name in ("config.json", "processor_config.json", "visual_tokenizer/config.json"):
        change(folder / name, auto_map=auto_map)
    change(folder / "config.json", text_config__auto_map=auto_map)
    # Our own classes are all it needs, so the folder works.
    pipe = DualTokenPipeline.from_pretrained(folder, device="cpu")
    assert isinstance(pipe.model, DualTokenForConditionalGeneration)
    DualTokenForConditionalGeneration.from_pretrained(folder, trust_remote_code=True)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    load_text_tokenizer(folder)
    change(folder / "tokenizer_config.json", tokenizer_class="Evil")
    message = refused(lambda: DualTokenPipeline.from_pretrained(folder, device="cpu"))
    assert "custom code" in message
    assert "custom code" in refused(lambda: load_text_tokenizer(folder))
    assert not ran.exists()


def test_every_automatic_class_is_told_to_run_no_code():
    """Auto classes, and other choices made by the content of a folder."""
    checked = 0
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("tests", "build") or any(part.startswith(".") for part in parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value).rpartition(".")[2]
            if node.func.attr in ("from_pretrained", "from_config") and owner.startswith(("Auto", "kind")):
                keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert keywords.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                checked += 1
    assert checked > 10


# --- sizes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("text_config__num_hidden_layers", 10**6, "num_hidden_layers"),
        ("text_config__num_hidden_layers", 4000, "4000 layers"),
        ("text_config__num_hidden_layers", -1, "num_hidden_layers"),
        ("text_config__num_hidden_layers", 10**400, "num_hidden_layers"),
        ("text_config__hidden_size", 10**12, "hidden_size"),
        ("text_config__hidden_size", 1 << 17, "numbers"),
        ("text_config__intermediate_size", 1 << 20, "numbers"),
        ("text_config__vocab_size", 1 << 24, "numbers"),
        ("text_config__vocab_size", "many", "config.json"),
        ("text_config__hidden_act", "boom", "boom"),
        ("text_config", None, "config.json"),
        ("text_config", "llama", "text_config"),
        ("text_config__model_type", "no such", "config.json"),
        ("text_config__model_type", None, "config.json"),
        ("text_config___attn_implementation", "someone/kernels:run", "attn_implementation"),
        ("transformers_weights", "../../other.safetensors", "transformers_weights"),
        ("grid_size", [10**5, 10**5], "grid_size"),
        ("grid_size", [-1, 8], "grid_size"),
        ("grid_size", "88", "grid_size"),
        ("pixel_codebook__depth", 10**9, "depth"),
        ("pixel_codebook__num_codes", 1 << 23, "numbers"),
        ("pixel_codebook", [], "pixel_codebook"),
        ("pixel_codebook__colour", 1, "colour"),
        ("depth_transformer__num_layers", 10**5, "num_layers"),
        ("depth_transformer__num_heads", 0, "num_heads"),
        ("image_token_id", None, "image_token_id"),
        ("image_token_id", 2048, "image_token_id"),
        ("image_token_id", -1, "image_token_id"),
        ("eos_token_id", "x", "eos_token_id"),
        ("unconditional_prompt_ids", [1, 10**9], "unconditional_prompt_ids"),
        ("image_sampling", {"top_p": 7}, "top_p"),
        ("image_sampling", [1], "image_sampling"),
        ("pixel_depth_weights", [1, 1], "pixel_depth_weights"),
        ("pixel_depth_weights", ["a"] * 4, "pixel_depth_weights"),
        ("text_loss_weight", None, "text_loss_weight"),
        ("visual_branches", {"a": 1}, "visual_branches"),
        ("shared_classifier", 3, "shared_classifier"),
        ("initializer_range", -5, "initializer_range"),
    ],
)
def test_a_model_that_cannot_be_is_one_line(folder: Path, key: str, value: Any, named: str):
    change(folder / "config.json", **{key: value})
    assert named in refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("vision_config__num_hidden_layers", 10**6, "num_hidden_layers"),
        ("vision_config__num_hidden_layers", 3000, "3000 layers"),
        ("vision_config__hidden_size", 192 * 1000, "numbers"),
        ("vision_config__num_attention_heads", 0, "num_attention_heads"),
        ("vision_config__patch_size", 0, "patch_size"),
        ("vision_config__patch_size", 65, "patch_size"),
        ("vision_config", 5, "vision_config"),
        ("pixel_layer", None, "pixel_layer"),
        ("semantic_layer", "5", "semantic_layer"),
        ("pixel_quantizer__num_codes", 1 << 24, "numbers"),
        ("pixel_quantizer__depth", -4, "depth"),
        ("pixel_quantizer__decay", None, "decay"),
        ("pixel_quantizer", [4], "pixel_quantizer"),
        ("decoder__ch_mult", [1] * 40, "ch_mult"),
        ("decoder__ch_mult", 4, "ch_mult"),
        ("decoder__ch", 1 << 15, "numbers"),
        ("decoder__num_res_blocks", 10**7, "num_res_blocks"),
        ("decoder", "x", "decoder"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_one_line(folder: Path, key: str, value: Any, named: str):
    change(folder / "visual_tokenizer" / "config.json", **{key: value})
    assert named in refused(lambda: DualTokenizer.from_pretrained(folder / "visual_tokenizer"))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", "null", "{", "\udcff"])
@pytest.mark.parametrize(
    "name", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_files_that_hold_something_else_are_one_line(folder: Path, name: str, content: str):
    (folder / name).write_bytes(content.encode("utf-8", errors="surrogateescape"))
    refused(lambda: DualTokenPipeline.from_pretrained(folder, device="cpu"))


LOADERS: dict[str, Any] = {
    "pipeline": lambda folder: DualTokenPipeline.from_pretrained(folder, device="cpu"),
    "model": DualTokenForConditionalGeneration.from_pretrained,
    "configuration": DualTokenConfig.from_pretrained,
    "processor": DualTokenProcessor.from_pretrained,
    "text tokenizer": load_text_tokenizer,
    "tokenizer": lambda folder: DualTokenizer.from_pretrained(folder / "visual_tokenizer"),
    "image processor": lambda folder: DualTokenizerImageProcessor.from_pretrained(
        folder / "visual_tokenizer"
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pipe_a_device_or_a_file_without_end_is_never_read(folder: Path, loader: str):
    inner = "visual_tokenizer" if loader in ("tokenizer", "image processor") else "."
    for name in ("config.json", "chat_template.jinja", "preprocessor_config.json"):
        path = folder / inner / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        refused(lambda: LOADERS[loader](folder))
        path.unlink()
        path.symlink_to("/dev/zero")
        refused(lambda: LOADERS[loader](folder))
        path.unlink()
        with open(path, "wb") as file:
            file.truncate(1 << 32)
        assert "at most" in refused(lambda: LOADERS[loader](folder))
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)


@pytest.mark.parametrize("content", ["[]", '"x"', "null", "1", "{", "", "[" * 100_000, "\udcff"])
def test_settings_that_are_no_object_are_one_line_from_every_class(folder: Path, content: str):
    for name in ("config.json", "visual_tokenizer/config.json", "visual_tokenizer/preprocessor_config.json"):
        (folder / name).write_bytes(content.encode("utf-8", errors="surrogateescape"))
    for loader in ("pipeline", "configuration", "tokenizer", "image processor"):
        refused(lambda loader=loader: LOADERS[loader](folder))


def test_a_text_tokenizer_that_lost_its_settings_is_one_line(folder: Path):
    """Without tokenizer_config.json it has no pad token, which every batch needs."""
    (folder / "tokenizer_config.json").unlink()
    assert "pad token" in refused(lambda: DualTokenPipeline.from_pretrained(folder, device="cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 10**6),
        ("num_beams", "x"),
        ("max_new_tokens", -1),
        ("max_length", "x"),
        ("do_sample", "x"),
        ("temperature", -1),
        ("repetition_penalty", 0),
        ("eos_token_id", "x"),
        ("eos_token_id", [10**9]),
        ("bos_token_id", {}),
        ("suppress_tokens", "x"),
        ("begin_suppress_tokens", 5),
        ("bad_words_ids", [[10**9]]),
        ("forced_eos_token_id", 10**9),
        ("cache_implementation", "quantized"),
        ("stop_strings", ["x"]),
        ("assistant_early_exit", 3),
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("return_dict_in_generate", True),
        ("exponential_decay_length_penalty", "x"),
        ("decoder_start_token_id", "x"),
        ("guidance_scale", "x"),
    ],
)
def test_a_generation_config_with_which_no_answer_is_written_is_one_line(folder: Path, key: str, value: Any):
    change(folder / "generation_config.json", **{key: value})
    assert key in refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))


def test_usual_settings_of_generation_are_read(folder: Path):
    usual = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    change(folder / "generation_config.json", **usual, max_new_tokens=3, eos_token_id=[2043, 2040])
    pipe = DualTokenPipeline.from_pretrained(folder, device="cpu")
    assert pipe.model.generation_config.top_k == 20
    assert isinstance(pipe.answer(None, "What?", max_new_tokens=2), str)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("num_positions", None, "num_positions"),
        ("num_positions", "x", "num_positions"),
        ("num_positions", -1, "num_positions"),
        ("num_positions", 10**12, "num_positions"),
        ("num_positions", 1.5, "num_positions"),
        ("num_positions", 3, "num_positions 3"),
        ("chat_format", {"start": 5}, "start"),
        ("chat_format", {"end": None}, "end"),
        ("chat_format", {"trim_user": "x"}, "trim_user"),
        ("chat_format", {"colour": 1}, "colour"),
        ("image_processor__image_processor_type", "CLIPImageProcessor", "CLIPImageProcessor"),
    ],
)
def test_a_processor_that_cannot_be_is_one_line(folder: Path, key: str, value: Any, named: str):
    change(folder / "processor_config.json", **{key: value})
    assert named in refused(lambda: DualTokenPipeline.from_pretrained(folder, device="cpu"))


# --- weights --------------------------------------------------------------------


def test_an_index_that_names_files_outside_the_folder_is_refused(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    names = list(load_file(tmp_path / "other.safetensors"))
    for outside in ("../other.safetensors", str(tmp_path / "other.safetensors"), 5, None, "other.bin"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, outside)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "index names" in refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))
    indexes: list[Any] = [[], {"weight_map": []}, {}]
    for broken in indexes:
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))


def test_pickled_weights_are_not_read(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "model.safetensors" in refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))


def test_an_adapter_configuration_that_leads_to_another_model_is_refused(folder: Path):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    assert "adapter_config" in refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))


def test_weights_with_a_shape_of_their_own_are_refused(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights["branches.pixel.depth_transformer.norm.weight"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: DualTokenForConditionalGeneration.from_pretrained(folder))


# --- anything ---------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.sampled_from(
        [0, -1, 10**6, 2**31, 2**63, 10**400, float("nan"), 1e308, -0.5, "", "x", "/etc", [], {}]
    ),
    st.lists(st.integers(-5, 10**9), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def mutate(data: st.DataObject, given_settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with up to three of their values, at any depth, replaced."""
    changed = copy.deepcopy(given_settings)
    for _ in range(data.draw(st.integers(1, 3))):
        inner = changed
        key = data.draw(st.sampled_from(sorted(inner)))
        while isinstance(inner[key], dict) and inner[key] and data.draw(st.booleans()):
            inner = inner[key]
            key = data.draw(st.sampled_from(sorted(inner)))
        inner[key] = data.draw(VALUES)
    return changed


@pytest.mark.parametrize(("kind", "saved"), [(DualTokenConfig, MODEL), (DualTokenizerConfig, TOKENIZER)])
@settings(max_examples=100, deadline=5000, derandomize=True)
@given(data=st.data())
def test_any_settings_make_a_configuration_or_one_line(kind: Any, saved: dict[str, Any], data: st.DataObject):
    with suppress(UserError):
        kind.from_dict(mutate(data, saved))


@pytest.mark.parametrize("part", ["", "visual_tokenizer"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_settings_make_a_model_or_one_line(part: str, data: st.DataObject, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"fuzzed{part}"
    if not folder.exists():
        shutil.copytree(FOLDER / part, folder)
    saved = TOKENIZER if part else MODEL
    (folder / "config.json").write_text(json.dumps(mutate(data, saved)))
    kind = DualTokenizer if part else DualTokenForConditionalGeneration
    with suppress(UserError):
        kind.from_pretrained(folder)
