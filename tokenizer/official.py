"""Reading the released research checkpoints: their config.json and the names of their weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, SiglipConfig

from ..common.errors import UserError, first_line, shown
from ..common.json_files import read_json_object, take
from ..common.loading.bounded_settings import check_settings
from ..common.loading.strict import load_tensors
from .configuration import DualTokenizerConfig
from .settings import DecoderConfig, QuantizerConfig

# Released name -> ours, applied in order; released names have both "pix"/"sem" and "pixel"/"semantic".
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^module\.", ""),
    (r"^(\w+_)(pix|sem)\.", r"\1\2:."),
    (r"pix:\.", "pixel."),
    (r"sem:\.", "semantic."),
    (r"^siglip_model\.", "backbone."),
    (r"^quantizer_(pixel|semantic)\.", r"\1_quantizer."),
    (r"^prequant_(pixel|semantic|shortcut)\.", r"\1_projection."),
    (r"^postquant_(pixel|semantic)\.", r"\1_post_projection."),
    (r"_projection\.norm1\.", "_projection.attention_norm."),
    (r"_projection\.norm2\.", "_projection.mlp_norm."),
    (r"_projection\.norm3\.", "_projection.skip_norm."),
    (r"_projection\.proj\.", "_projection.skip."),
    (r"_projection\.attn\.", "_projection.attention."),
    (r"_projection\.mlp\.w0\.", "_projection.mlp.gate."),
    (r"_projection\.mlp\.w1\.", "_projection.mlp.value."),
    (r"_projection\.mlp\.w2\.", "_projection.mlp.out."),
    (r"^post_quant_conv\.", "pixel_decoder.post_quant."),
    (r"^decoder\.mid\.block_(\d)\.", r"pixel_decoder.middle_block\1."),
    (r"^decoder\.mid\.attn_1\.", "pixel_decoder.middle_attention."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.levels.\1.upsample."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.levels.\1.blocks."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.levels.\1.attentions."),
    (r"^decoder\.", "pixel_decoder."),
    (r"\.nin_shortcut\.", ".skip."),
)
ATTENTION_RENAMES = {"q": "query", "k": "key", "v": "value", "proj_out": "out"}
BOOK_PATTERN = re.compile(
    r"^(pixel|semantic)_quantizer\.codebooks\.(\d+)\.(weight|cluster_size_ema|embed_ema)$"
)
# "rq" moves its shared codebook after each depth, "rq_ema" once at the end.
BOTTLENECKS = ("rq", "rq_ema")
BOOK_BUFFERS = {"weight": "vectors", "cluster_size_ema": "counts", "embed_ema": "sums"}


def read_official(
    checkpoint: Path,
    config_file: Path,
    backbone_config: str | os.PathLike[str] | SiglipConfig | None,
    causal: bool,
) -> tuple[DualTokenizerConfig, dict[str, Tensor]]:
    """A released checkpoint (`.pt` or `.safetensors`, unpickling no code) as configuration and state dict."""
    config = read_official_config(config_file, backbone_config, causal)
    return config, convert_state_dict(load_tensors(checkpoint), config)


def read_official_config(
    config_file: Path,
    backbone_config: str | os.PathLike[str] | SiglipConfig | None = None,
    causal: bool = True,
) -> DualTokenizerConfig:
    """Translate a released config.json. `causal`: see `DualTokenizerConfig.causal_post_projection`."""
    released = _released(config_file)
    _refuse_older_variants(released, config_file)
    try:
        decoder = released["ddconfig"]
        if backbone_config is None:
            backbone_config = find_backbone(config_file)
        siglip: Any = _siglip_config(backbone_config)
        grid = siglip.vision_config.image_size // siglip.vision_config.patch_size
        latent = released.get("decoder_latent_shape") or (grid, grid)  # null: the grid of patches
        return DualTokenizerConfig(
            vision_config=siglip.vision_config,
            text_config=siglip.text_config,
            pixel_layer=_any_of(released, "layer_recon", "layer_pix", "layer_pixel"),
            semantic_layer=_any_of(released, "layer_sem", "layer_semantic"),
            shortcut_layer=released.get("layer_shortcut"),
            shortcut_weight=released.get("weight_shortcut", 0.0),
            pixel_quantizer=_quantizer(_any_of(released, "vq_pix", "vq_pixel")),
            semantic_quantizer=_quantizer(_any_of(released, "vq_sem", "vq_semantic")),
            decoder=DecoderConfig(
                latent_size=latent[0],
                in_channels=decoder["decoder_in_channels"],
                ch=decoder["ch"],
                ch_mult=decoder["ch_mult"],
                num_res_blocks=decoder["num_res_blocks"],
                attn_resolutions=decoder["attn_resolutions"],
                out_channels=decoder["out_ch"],
            ),
            causal_post_projection=causal,
            # What the released code prepares images with; its configuration does not name it.
            resize_mode="crop",
            resample="bicubic",
        )
    except KeyError as error:
        raise UserError(
            f"{str(config_file)!r} is not a released tokenizer configuration: it lacks {error}"
        ) from None
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:  # other types
        raise UserError(
            f"{str(config_file)!r} is not a released tokenizer configuration: {first_line(error)}"
        ) from None


def convert_state_dict(released: Mapping[str, Tensor], config: DualTokenizerConfig) -> dict[str, Tensor]:
    """Rename released weights to ours; codebooks lose their padding row, shared ones their copies."""
    levels = len(config.decoder.ch_mult)
    state: dict[str, Tensor] = {}
    books: dict[str, dict[int, Tensor]] = {}
    for name, tensor in released.items():
        ours = rename(name, levels)
        match = BOOK_PATTERN.match(ours)
        if match:
            branch, index, kind = match.groups()
            books.setdefault(f"{branch}_quantizer.codebooks.{BOOK_BUFFERS[kind]}", {})[int(index)] = tensor
        elif not ours.endswith(("attention.zero_k_bias", "embeddings.position_ids")):
            # A constant key bias cannot change softmax attention, and position ids are 0, 1, 2, ...
            state[ours] = tensor
    for name, tensors in books.items():
        state[name] = _stack_books(name, tensors, config)
    for branch in ("pixel", "semantic"):
        state[f"{branch}_quantizer.codebooks.num_updates"] = torch.zeros((), dtype=torch.int64)
    return state


def rename(name: str, levels: int) -> str:
    """Our name of a released weight; `levels` is the number of decoder resolutions."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    # The released decoder counts levels from the finest, ours from the coarsest.
    name = re.sub(r"(?<=\.levels\.)\d+", lambda found: str(levels - 1 - int(found.group())), name)
    if name.startswith("pixel_decoder.") and re.search(r"\.(attentions\.\d+|middle_attention)\.", name):
        parts = name.split(".")
        parts[-2] = ATTENTION_RENAMES.get(parts[-2], parts[-2])
        name = ".".join(parts)
    return name


def _stack_books(name: str, tensors: dict[int, Tensor], config: DualTokenizerConfig) -> Tensor:
    """The released per-depth tensors as one (K, N, ...) tensor."""
    branch = name.split("_", 1)[0]
    settings = config.quantizers[branch]
    rows = settings.num_codes
    for tensor in tensors.values():
        if len(tensor) not in (rows, rows + 1):  # the released vectors have one row of padding
            raise UserError(
                f"{name} has {len(tensor)} rows in the checkpoint, but the configuration has n_embed "
                f"{rows}; take the config.json that was released with it"
            )
    ordered = [tensors[index][:rows].float() for index in sorted(tensors)]
    if not settings.shared_codebook:
        return torch.stack(ordered)
    if any(not torch.equal(other, ordered[0]) for other in ordered[1:]):
        raise UserError(f"by the configuration all depths share a codebook, but {name} differs between them")
    return ordered[0].unsqueeze(0).clone()


def _refuse_older_variants(released: Mapping[str, Any], config_file: Path) -> None:
    """Raise UserError, with the reason, for related tokenizers in the same file layout."""
    branches = [name for name in ("vq_pix", "vq_pixel", "vq_sem", "vq_semantic") if name in released]
    if not branches and "n_embed" in released:
        raise UserError(
            f"{str(config_file)!r} describes a tokenizer with one codebook for pixels and semantics (the "
            "layout of VILA-U); a dual tokenizer has vq_pix and vq_sem"
        )
    if len(branches) == 1:
        raise UserError(
            f"{str(config_file)!r} has only {branches[0]}; a tokenizer with one branch cannot be loaded as a "
            "dual tokenizer"
        )
    for name in branches:
        kind = take(released, name, dict, config_file).get("bottleneck_type")
        if kind not in BOTTLENECKS:
            raise UserError(
                f"{str(config_file)!r}: {name} is a {kind!r} bottleneck; only residual quantizers can be "
                f"read ({' or '.join(BOTTLENECKS)})"
            )


def _quantizer(released: Mapping[str, Any]) -> QuantizerConfig:
    return QuantizerConfig(
        num_codes=released["n_embed"],
        code_dim=released["embed_dim"],
        depth=released["code_shape"][-1],
        shared_codebook=released["shared_codebook"],
        decay=released["decay"],
        restart_unused_codes=released["restart_unused_codes"],
        update_each_depth=released["bottleneck_type"] == "rq",
    )


def _any_of(settings: Mapping[str, Any], *names: str) -> Any:
    """The value of the first name present."""
    for name in names:
        if name in settings:
            return settings[name]
    raise KeyError(" or ".join(names))


def find_backbone(config_file: Path) -> str:
    """The SigLIP of a released config.json: the folder it names, one next to the file, or Google's hub id."""
    named = _released(config_file).get("pretrained_model")
    if not isinstance(named, str) or not named or "\0" in named:
        raise UserError(f"{config_file}: pretrained_model is {shown(named)}; give --backbone FOLDER")
    folder = Path(named).name
    for candidate in (Path(named), config_file.parent / folder):
        if (candidate / "config.json").is_file():
            return str(candidate)
    return f"google/{folder}"


def _siglip_config(source: str | os.PathLike[str] | SiglipConfig) -> PreTrainedConfig:
    if isinstance(source, SiglipConfig):
        return source
    try:
        return SiglipConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers reads an untrusted file unchecked
        raise UserError(
            f"cannot read the SigLIP configuration {str(source)!r}; give backbone_config=FOLDER with its "
            f"config.json ({first_line(error)})"
        ) from None


def _released(path: Path) -> dict[str, Any]:
    """The tokenizer's part of a released config.json, with checked sizes."""
    found = read_json_object(path)
    released = take(found, "rqvaesiglip", dict, path, found)
    check_settings(released, str(path))
    return released
