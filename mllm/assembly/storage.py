"""One folder, one call: how the unified model is saved and loaded together with its visual tokenizer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from ...common.errors import UserError, shown
from ...common.files import make_readable
from ...common.loading.bounded_settings import ATTENTION, most_layers
from ...common.loading.model_files import check_model_files
from ...common.loading.quiet import quiet, size_of, size_of_model
from ...common.loading.strict import TOKENIZER_FOLDER, loading_reason
from ...common.loading.weight_files import HUB_OPTIONS, refuse_bigger, weight_files
from ...tokenizer import DualTokenizer, StoredTokenizer, VisualCodes
from ..configuration import DualTokenConfig
from ..generation.generation_settings import check_generation_settings
from ..visual_embedding import FrozenCodebook
from .adapters import has_adapters
from .model_folder import resolve_model

VISUAL_TOKENIZER_FOLDER = TOKENIZER_FOLDER


class DualTokenStorage(PreTrainedModel):
    """The model's outermost layer: its visual tokenizer, saving and loading."""

    config: DualTokenConfig
    pixel_codebook: FrozenCodebook
    semantic_codebook: FrozenCodebook

    @property
    def visual_tokenizer(self) -> DualTokenizer | None:
        """The frozen visual tokenizer, or None for a model loaded for cached codes only."""
        return self.__dict__["_visual_tokenizer"]

    def require_visual_tokenizer(self) -> DualTokenizer:
        """The visual tokenizer; raises UserError when the model was loaded without."""
        if self.visual_tokenizer is None:
            raise UserError(
                "this needs the visual tokenizer, and the model was built without one; load it with "
                "from_pretrained(folder) of a complete model folder, or pass cached codes"
            )
        return self.visual_tokenizer

    def attach_visual_tokenizer(self, visual_tokenizer: DualTokenizer) -> None:
        """Freeze and hold `visual_tokenizer`, and copy its codebooks; errors as `copy_codebooks`."""
        self.copy_codebooks(visual_tokenizer)
        visual_tokenizer = visual_tokenizer.float().eval().requires_grad_(False)
        visual_tokenizer.to(device=self.device)  # type: ignore[call-arg]
        self._hold_visual_tokenizer(visual_tokenizer)

    def encode_images(self, pixel_values: Tensor) -> VisualCodes:
        """Codes of images: (I, 3, S, S) in the processor's range -> pixel and semantic, each (I, P, D)."""
        tokenizer = self.require_visual_tokenizer()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            codes = tokenizer.encode(pixel_values.to(device=self.device, dtype=torch.float32))
        return VisualCodes(pixel=codes.pixel.flatten(1, 2), semantic=codes.semantic.flatten(1, 2))

    def detach_visual_tokenizer(self) -> None:
        """Let go of the visual tokenizer; the codebooks stay, all that training on cached codes needs."""
        self._hold_visual_tokenizer(None)

    def copy_codebooks(self, visual_tokenizer: DualTokenizer | StoredTokenizer) -> None:
        """Copy the code vectors of both quantizers.

        Raises:
            UserError: grid or codebooks do not have the sizes of this model's configuration.
        """
        config = self.config
        if list(visual_tokenizer.config.grid_size) != list(config.grid_size):
            raise UserError(
                f"the visual tokenizer has a grid of {tuple(visual_tokenizer.config.grid_size)} positions, "
                f"the model one of {tuple(config.grid_size)}; use the tokenizer that the model was built with"
            )
        weights = visual_tokenizer.state_dict()
        for name in ("pixel", "semantic"):
            stored = "semantic" if visual_tokenizer.config.shared_quantizer else name
            vectors = weights[f"{stored}_quantizer.codebooks.vectors"]
            codebook = getattr(self, f"{name}_codebook")
            if vectors.shape != codebook.vectors.shape:
                raise UserError(
                    f"the visual tokenizer's {name} codebook is {tuple(vectors.shape)} (tables, codes, "
                    f"dimension), the model's {tuple(codebook.vectors.shape)}; use the tokenizer that the "
                    "model was built with"
                )
            codebook.assign(vectors)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[Any], **kwargs: Any
    ) -> Any:
        """Save config.json, model*.safetensors and, when there is one, `visual_tokenizer/`.

        Raises:
            UserError: the model has adapters, which a plain folder has no place for.
        """
        if has_adapters(self):
            raise UserError("the model has adapters; call merge_adapters(model) before it is saved")
        with quiet(size_of_model(self)):
            result = super().save_pretrained(save_directory, **kwargs)
        # safetensors makes its files private; a saved model is meant to be read like any other file.
        for weights in Path(save_directory).glob("*.safetensors"):
            make_readable(weights)
        if self.visual_tokenizer is not None and kwargs.get("is_main_process", True):
            self.visual_tokenizer.save_pretrained(Path(save_directory) / VISUAL_TOKENIZER_FOLDER)
        return result

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, load_visual_tokenizer: bool = True, **kwargs: Any
    ) -> Any:
        """Load a saved model with its visual tokenizer: a folder, a hub id, or "nano".

        No code of the folder is run, whatever `trust_remote_code` says, and nothing is unpickled.

        Args:
            load_visual_tokenizer: False saves its memory where only cached codes are used (training).
            attn_implementation: (keyword) of the language model: "sdpa", "eager" or "flash_attention_2".

        Raises:
            UserError: no model there, parameters missing from the folder or not belonging to the model (it
                never loads in part), a config.json that asks for more than the weights hold, no visual
                tokenizer where one was asked for, or an attention that is unknown or not installed.
        """
        check_attention(kwargs.get("attn_implementation"))
        kwargs = {key: value for key, value in kwargs.items() if key != "subfolder" or value is not None}
        source = resolve_model(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"trust_remote_code": False, "use_safetensors": True}
        hub = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        check_model_files(source, kwargs.get("subfolder"))
        try:
            files = weight_files(source, hub, "a model")
            if kwargs.get("config") is None:
                config = DualTokenConfig.from_pretrained(source, **hub)
                refuse_incomplete(config, source)
                refuse_bigger(lambda: cls(config), most_layers(config.to_dict()), files, source)
            with quiet(size_of(files.values())):
                loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        except UserError:
            raise
        except Exception as error:  # files from elsewhere, read by the code of a hundred language models
            raise UserError(f"cannot load a model from {source}: {loading_reason(error)}") from error
        model, info = loaded
        refuse_partial_load(source, info)
        if model.generation_config is not None:
            tokens = model.get_input_embeddings().weight.shape[0]
            check_generation_settings(model.generation_config.to_diff_dict(), tokens)
        if load_visual_tokenizer:
            model.attach_visual_tokenizer(_load_visual_tokenizer(source, hub))
        return (model, info) if with_info else model

    def _hold_visual_tokenizer(self, visual_tokenizer: DualTokenizer | None) -> None:
        # Past nn.Module's registration: no parameter of ours, no key of our state dict, untouched by train().
        self.__dict__["_visual_tokenizer"] = visual_tokenizer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if self.visual_tokenizer is not None:
            self.visual_tokenizer.to(device=self.device)  # type: ignore[call-arg]
        return result


def check_attention(implementation: str | None) -> None:
    """Raise UserError for an attention that is unknown or not installed; None leaves the choice to
    transformers.
    """
    known = isinstance(implementation, str) and implementation in ATTENTION
    if implementation is not None and not known:
        raise UserError(f"attn_implementation is {shown(implementation)}; allowed: {', '.join(ATTENTION)}")
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "attn_implementation 'flash_attention_2' needs a CUDA device and the package flash-attn (extra "
            "'gpu'); install it, or use 'sdpa'"
        )


def refuse_incomplete(config: DualTokenConfig, name: str) -> None:
    """Raise UserError for a saved configuration that lacks what a new one gets later."""
    fields = ("image_start_token_id", "image_token_id", "image_end_token_id", "unconditional_token_id")
    missing = [field for field in fields if getattr(config, field) is None]
    if missing:
        raise UserError(f"{name}: config.json has no {', '.join(missing)}; it is not a whole DualToken model")


def refuse_partial_load(name: str, info: dict[str, Any]) -> None:
    """Raise UserError when a checkpoint did not hold exactly the model's parameters."""
    for key, meaning in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "misfits"),
    ):
        found = sorted(str(entry) for entry in info.get(key) or ())
        if found:
            some = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
            raise UserError(
                f"{name} {meaning} {len(found)} parameters ({some}); it is not a model saved by DualToken"
            )


def _load_visual_tokenizer(source: str, hub: dict[str, Any]) -> DualTokenizer:
    subfolder = os.path.join(hub.get("subfolder", ""), VISUAL_TOKENIZER_FOLDER)
    if not Path(source).is_dir():
        return DualTokenizer.from_pretrained(source, **{**hub, "subfolder": subfolder})
    if not (Path(source) / subfolder).is_dir():
        raise UserError(
            f"{source} has no folder {subfolder}/; for cached codes only, load with "
            "load_visual_tokenizer=False"
        )
    return DualTokenizer.from_pretrained(Path(source) / subfolder)
