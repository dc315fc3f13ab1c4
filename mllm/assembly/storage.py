"""Saving, uploading and loading of the unified model with its tokenizers: one folder, one call."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.files import atomic_folder, make_readable
from ...common.loading.attention import check_attention
from ...common.loading.bounded_settings import most_layers
from ...common.loading.hub_upload import upload
from ...common.loading.model_files import check_model_files
from ...common.loading.quiet import quiet, size_of, size_of_model
from ...common.loading.strict import TOKENIZER_FOLDER, loading_reason
from ...common.loading.weight_files import HUB_OPTIONS, refuse_bigger, weight_files
from ...common.paths import user_path
from ...tokenizer import DualTokenizer
from ..configuration import DualTokenConfig
from ..conversation.processing import DualTokenProcessor
from ..generation.generation_settings import check_generation_settings
from ..protocol import UnifiedModel
from .model_card import model_card
from .model_folder import refuse_foreign, resolve_model
from .tokenizers import VISUAL_TOKEN_FIELDS


def save_model(
    model: UnifiedModel, processor: DualTokenProcessor, folder: str | os.PathLike[str], **kwargs: Any
) -> None:
    """Write the one folder that `from_pretrained` loads: weights, tokenizers, processor, model card.

    All or nothing; an existing model is replaced. `kwargs` go to the model's `save_pretrained` (such as
    `max_shard_size`).

    Raises:
        UserError: the folder has other files, which would be lost, or cannot be written.
    """
    folder = user_path(folder)
    refuse_foreign(folder)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, **kwargs)
        processor.save_pretrained(temporary)
        model_card(model).save(temporary / "README.md")


def push_model(
    model: UnifiedModel,
    processor: DualTokenProcessor,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a DualToken model",
    create_pr: bool = False,
) -> Any:
    """`upload` the folder that `save_model` writes, in one commit; returns the hub's answer.

    Raises:
        UserError: the model has adapters, a name that is not a hub id, no token, or a hub that cannot be
            reached or refuses.
    """
    return upload(
        lambda folder: save_model(model, processor, folder),
        repo_id,
        private=private,
        token=token,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
    )


def save_with_tokenizer(
    model: UnifiedModel, save: Callable[..., Any], folder: str | os.PathLike[Any], **kwargs: Any
) -> Any:
    """Save by transformers' `save(folder, **kwargs)`, and add the model's visual tokenizer."""
    if model.adapters:
        raise UserError("the model has adapters; call merge_adapters(model) before it is saved")
    with quiet(size_of_model(model)):
        result = save(folder, **kwargs)
    # safetensors makes its files private; a saved model gets the permissions of any other file.
    for weights in Path(folder).glob("*.safetensors"):
        make_readable(weights)
    if model.visual_tokenizer is not None and kwargs.get("is_main_process", True):
        model.visual_tokenizer.save_pretrained(Path(folder) / TOKENIZER_FOLDER)
    return result


def load_model(
    model_class: Callable[[DualTokenConfig], Any],
    load: Callable[..., Any],
    name: Any,
    load_visual_tokenizer: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A saved model with its visual tokenizer, by transformers' `load`: a folder, a hub id, or "nano".

    Code of the folder is never run (`trust_remote_code` is ignored), and nothing is unpickled.

    Args:
        load_visual_tokenizer: False saves its memory where only cached codes are used (training).
        kwargs: of `from_pretrained`, as `attn_implementation` of the language model: "sdpa", "eager",
            "flash_attention_2", "flash_attention_3" or "flex_attention".

    Raises:
        UserError: no model, missing or unexpected parameters (it never loads in part), a config.json that
            describes a larger model than the weights, a missing visual tokenizer, or an attention that is
            unknown or not installed.
    """
    check_attention(kwargs.get("attn_implementation"))
    kwargs = {key: value for key, value in kwargs.items() if key != "subfolder" or value is not None}
    source = resolve_model(name, kwargs.get("subfolder", ""))
    with_info = kwargs.pop("output_loading_info", False)
    kwargs |= {"trust_remote_code": False, "use_safetensors": True}
    hub = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
    check_model_files(source, kwargs.get("subfolder"))
    try:
        files = weight_files(source, hub, "a model")
        config = kwargs.get("config")
        if not isinstance(config, DualTokenConfig):
            config = DualTokenConfig.from_pretrained(config or source, **({} if config else hub))
        missing = [field for field in VISUAL_TOKEN_FIELDS if field not in config.token_ids]
        if missing:
            raise UserError(
                f"{source}: config.json has no {', '.join(missing)}; it is not a complete DualToken model"
            )
        refuse_bigger(lambda: model_class(config), most_layers(config.to_dict()), files, source)
        with quiet(size_of(files.values())):
            model, info = load(source, *args, output_loading_info=True, **kwargs)
    except UserError:
        raise
    except Exception as error:  # untrusted files, read by the code of any language model
        raise UserError(f"cannot load a model from {source}: {loading_reason(error)}") from error
    refuse_partial_load(source, info)
    if model.generation_config is not None:
        check_generation_settings(model.generation_config.to_diff_dict(), model.config.num_text_tokens)
    if load_visual_tokenizer:
        model.attach_visual_tokenizer(_load_visual_tokenizer(source, hub))
    return (model, info) if with_info else model


def refuse_partial_load(name: str, info: dict[str, Any]) -> None:
    """Raise UserError when a checkpoint did not hold exactly the model's parameters."""
    verbs = {"missing_keys": "lacks", "unexpected_keys": "has unknown", "mismatched_keys": "misfits"}
    for key, verb in verbs.items():
        if found := sorted(map(str, info.get(key) or ())):
            some = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
            raise UserError(
                f"{name} {verb} {len(found)} parameters ({some}); it is not a model saved by DualToken"
            )


def _load_visual_tokenizer(source: str, hub: dict[str, Any]) -> DualTokenizer:
    subfolder = os.path.join(hub.get("subfolder", ""), TOKENIZER_FOLDER)
    if not Path(source).is_dir():
        return DualTokenizer.from_pretrained(source, **{**hub, "subfolder": subfolder})
    if not (Path(source) / subfolder).is_dir():
        raise UserError(
            f"{source} has no folder {subfolder}/; for cached codes only, load with "
            "load_visual_tokenizer=False"
        )
    return DualTokenizer.from_pretrained(Path(source) / subfolder)
