"""Settings that a recipe takes from the model that it starts from (`init_from`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ...common.errors import UserError, first_line, shown
from ...common.json_files import read_json_object
from ...common.loading.model_source import is_hub_id, model_source
from ...common.loading.strict import TOKENIZER_FOLDER
from ...mllm.configuration import DualTokenConfig
from ...mllm.settings import ModelSettings
from ...tokenizer.configuration import DualTokenizerConfig
from ...tokenizer.settings import TokenizerSettings
from ..backend.checkpoint_files import STATE
from ..planning.known_llms import KNOWN_LLMS
from .compose import merged
from .paths import located
from .recipe import OBJECTIVES, Recipe

#: Settings of a unified model that training may change; its weights depend on all others.
FREE = ("_weight", "_weights", "visual_target_fraction", "image_sampling")
#: Settings of a tokenizer on which its weights depend.
FIXED = (
    "num_codes",
    "code_dim",
    "depth",
    "shared_codebook",
    "decoder",
    "shared_quantizer",
    "separate_encoders",
)
#: Sizes that distinguish two language models.
LLM_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class StartingPoint:
    """A saved model that a run starts from.

    Args:
        source: its folder or hub id.
        objective: the section of the recipe that trains such a model.
        config: its configuration.
    """

    source: str
    objective: str
    config: DualTokenConfig | DualTokenizerConfig

    @classmethod
    def open(cls, init_from: Any) -> StartingPoint | None:
        """The saved model, tokenizer or not, at `init_from`; None for anything else, also what is not there.

        Errors:
            UserError for a folder without a saved model, and for a damaged configuration.
        """
        if not isinstance(init_from, str):
            return None
        try:
            source = model_source(located(init_from, "init_from"))
        except (UserError, OSError):  # named when its weights are read
            return None
        _require_model(Path(source), init_from)
        try:
            model_type = _model_type(source)
        except (UserError, OSError):  # named when its weights are read
            return None
        if model_type == DualTokenConfig.model_type:
            return cls(source, "mllm", DualTokenConfig.from_pretrained(source))
        if model_type == DualTokenizerConfig.model_type:
            return cls(source, "tokenizer", DualTokenizerConfig.from_pretrained(source))
        return None

    def beneath(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a recipe, laid over those of the saved model."""
        if any(settings.get(name) is not None for name in OBJECTIVES if name != self.objective):
            return dict(settings)
        kind = ModelSettings if self.objective == "mllm" else TokenizerSettings
        section: dict[str, Any] = {"model": {one.name: self._setting(one.name) for one in fields(kind)}}
        if self.objective == "mllm" and Path(self.source).is_dir():
            section["text_tokenizer"] = self.source
            section["visual_tokenizer"] = str(Path(self.source) / TOKENIZER_FOLDER)
        given = {key: value for key, value in settings.items() if key != self.objective or value is not None}
        return merged({self.objective: section}, given)

    def model_config(self, settings: ModelSettings | None) -> DualTokenConfig:
        """The saved unified model's configuration with the recipe's losses and sampling, if it has any."""
        found = self.config.to_dict()
        if settings is not None:
            free = [one.name for one in fields(ModelSettings) if one.name.endswith(FREE)]
            found |= {name: getattr(settings, name) for name in free}
        config: DualTokenConfig = DualTokenConfig.from_dict(found)
        return config

    def _setting(self, name: str) -> Any:
        value = getattr(self.config, name)
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

    def refuse_contradictions(self, recipe: Recipe) -> None:
        """Raise UserError where the recipe describes another architecture than the saved model has."""
        section = getattr(recipe, self.objective)
        if section is None:
            return
        saved = {one.name: self._setting(one.name) for one in fields(section.model)}
        pairs = list(_differences(asdict(section.model), saved, f"{self.objective}.model"))
        wrong = [pair for pair in pairs if self._is_fixed(pair[0])]
        if self.objective == "mllm":
            text_config = self.config.text_config.to_dict()
            wrong += _differences(_sizes(section.llm), text_config, "mllm.llm")
        if wrong:
            described = (f"{key} is {shown(given)}, not {shown(has)}" for key, given, has in wrong)
            raise UserError(
                f"recipe: the model of init_from {self.source} is another one: {'; '.join(described)} (leave "
                "such keys out)"
            )

    def _is_fixed(self, key: str) -> bool:
        parts = key.split(".")
        if self.objective == "mllm":
            return not any(part.endswith(FREE) for part in parts)
        return any(part in FIXED for part in parts)


def _require_model(folder: Path, init_from: str) -> None:
    """Raise UserError for a folder, such as that of a run, that is not the folder of a saved model."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return
    if (folder / STATE).is_file():
        reason = "is a checkpoint: make a model of it with `dualtoken convert checkpoint`"
    elif (folder / "model" / "config.json").is_file():
        reason = f"is a run; its model is {Path(init_from) / 'model'}"
    elif (folder / "checkpoints").is_dir():
        reason = "is a run without a model yet: make one with `dualtoken convert checkpoint`"
    else:
        reason = "has no config.json; give the folder of a saved model"
    raise UserError(f"init_from {init_from} {reason}")


@contextmanager
def reading_model(init_from: str) -> Iterator[None]:
    """Turn the OSError of a saved model that cannot be read, here or on the hub, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"init_from: no model {shown(init_from)}: give 'nano', the folder of a saved model, or the id "
            f"'owner/name' of one on the hub ({first_line(error)})"
        ) from error


def _model_type(source: str) -> Any:
    """The model type that the configuration of a folder or hub id states; None where there is none."""
    if Path(source).is_dir():
        file = Path(source) / "config.json"
        return read_json_object(file).get("model_type") if file.is_file() else None
    return DualTokenConfig.get_config_dict(source)[0].get("model_type") if is_hub_id(source) else None


def _sizes(llm: Any) -> dict[str, Any]:
    """The known sizes of the architecture that a recipe's `mllm.llm` names."""
    if isinstance(llm, Mapping):
        return dict(llm)
    file = Path(llm or "", "config.json")
    known = KNOWN_LLMS.get(str(llm).removesuffix("-Instruct")) or (
        read_json_object(file) if llm and file.is_file() else {}
    )
    return {key: known[key] for key in LLM_SIZES if key in known}


def _differences(
    given: Mapping[str, Any], saved: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, given value, saved value) of what differs; a key that only one of them has does not."""
    for key in given:
        one, other = given[key], saved.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{path}.{key}")
        elif key in saved and one != other:
            yield f"{path}.{key}", one, other
