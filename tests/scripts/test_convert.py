"""`dualtoken convert official`: the released layout becomes a folder that computes the same, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dualtoken.common.errors import UserError
from dualtoken.scripts import cli
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "A"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A released checkpoint as it is downloaded: weights, config.json and the backbone's configuration."""
    folder = tmp_path / "released"
    folder.mkdir()
    shutil.copytree(GOLDEN / "siglip_tiny", folder / "siglip_tiny")
    shutil.copy(GOLDEN / "config.json", folder)
    state = load_file(GOLDEN / "state_dict.safetensors")
    torch.save({"epoch": 1, "name": "tiny", "state_dict": state}, folder / "epoch_1.pt")
    return folder


def convert(folder: Path, output: Path, checkpoint: str = "epoch_1.pt", *more: str) -> int:
    config = str(folder / "config.json")
    arguments = ["official", str(folder / checkpoint), "--config", config, "--output", str(output), *more]
    return cli.run_command("convert", arguments)


def test_converted_folder_computes_what_the_checkpoint_does(released: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    assert convert(released, output) == 0
    direct = DualTokenizer.from_official(released / "epoch_1.pt", released / "config.json")
    loaded = DualTokenizer.from_pretrained(output)
    golden = load_file(GOLDEN / "io.safetensors")
    with torch.no_grad():
        ours, theirs = loaded(golden["images"]), direct(golden["images"])
    assert torch.equal(ours.codes.pixel, golden["code_pix"])
    assert torch.equal(ours.codes.semantic, golden["code_sem"])
    assert torch.equal(ours.reconstruction, theirs.reconstruction)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert DualTokenizerImageProcessor.from_pretrained(output).size["height"] == loaded.config.image_size
    assert not list(output.glob("*.pt"))


def test_causality_is_a_flag(released: Path, tmp_path: Path) -> None:
    assert convert(released, tmp_path / "seeing-all", "epoch_1.pt", "--not-causal") == 0
    assert not DualTokenizer.from_pretrained(tmp_path / "seeing-all").config.causal_post_projection


def test_latent_size_null_means_the_grid_of_patches(released: Path) -> None:
    config = json.loads((released / "config.json").read_text())
    config["rqvaesiglip"]["decoder_latent_shape"] = None
    config["rqvaesiglip"]["ddconfig"]["ch_mult"] = [1, 1]
    backbone = json.loads((released / "siglip_tiny" / "config.json").read_text())
    backbone["vision_config"] |= {"image_size": 12, "patch_size": 6}
    (released / "siglip_tiny" / "config.json").write_text(json.dumps(backbone))
    (released / "config.json").write_text(json.dumps(config))
    from dualtoken.tokenizer.official import read_official_config

    with pytest.raises(Exception, match="makes 4 px images"):  # 2 x 2 patches, two levels
        read_official_config(released / "config.json")


def edit(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["rqvaesiglip"])
    path.write_text(json.dumps(config))


def one_codebook(config: dict[str, Any]) -> None:
    config["n_embed"] = config.pop("vq_pix")["n_embed"]
    del config["vq_sem"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_codebook, "one codebook for pixels and semantics"),
        (lambda config: config.pop("vq_sem"), "has only vq_pix"),
        (lambda config: config["vq_sem"].update(bottleneck_type="lfq"), "vq_sem is a 'lfq' bottleneck"),
        (lambda config: config.pop("ddconfig"), "lacks 'ddconfig'"),
        (lambda config: config["vq_pix"].update(n_embed=32), "pixel_quantizer.codebooks"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(
    change: Any, message: str, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(released, change)
    assert convert(released, tmp_path / "output") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "output").exists()


def test_a_truncated_checkpoint_leaves_nothing_behind(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (released / "epoch_1.pt").read_bytes()
    (released / "epoch_1.pt").write_bytes(whole[: len(whole) // 2])
    assert convert(released, tmp_path / "output") == 2
    assert "epoch_1.pt" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_only_a_folder_that_it_made_is_replaced_and_only_when_asked(released: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    assert convert(released, output) == 0  # an empty one is nobody's
    assert convert(released, output) == 2
    assert convert(released, output, "epoch_1.pt", "--overwrite") == 0
    (output / "notes.txt").write_text("mine")
    assert convert(released, output, "epoch_1.pt", "--overwrite") == 2
    assert (output / "notes.txt").read_text() == "mine"
    assert convert(released, released, "epoch_1.pt", "--overwrite") == 2
    assert (released / "epoch_1.pt").is_file()


def test_safetensors_with_module_prefix(released: Path, tmp_path: Path) -> None:
    state = load_file(GOLDEN / "state_dict.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, released / "w.safetensors")
    assert convert(released, tmp_path / "output", "w.safetensors") == 0


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**15),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(0, 10**9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
KEYS = [
    *[
        (key,)
        for key in ("layer_recon", "layer_sem", "layer_shortcut", "weight_shortcut", "pretrained_model")
    ],
    *[("ddconfig", key) for key in ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "out_ch")],
    *[("vq_pix", key) for key in ("n_embed", "embed_dim", "code_shape", "decay", "shared_codebook")],
    ("ddconfig",),
    ("vq_sem",),
    ("decoder_latent_shape",),
]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_a_configuration_of_anything_is_read_or_refused(released: Path, key: tuple[str, ...], value: Any):
    shutil.copy(GOLDEN / "config.json", released)
    config = json.loads((released / "config.json").read_text())
    part = config["rqvaesiglip"]
    for name in key[:-1]:
        part = part[name]
    part[key[-1]] = value
    (released / "config.json").write_text(json.dumps(config))
    try:
        DualTokenizer.from_official(released / "epoch_1.pt", released / "config.json")
    except UserError:
        return
