"""Low-rank adapters (LoRA, DoRA) on the language model's linear layers, and merging them.

The adapted model is the same object: peft puts its layers into `language_model` only, whose other weights are
frozen. New parts are trained in full: the code projectors, the depth transformers, and the embeddings of the
special tokens. Sources: LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...common.errors import UserError, first_line
from ...common.limits import limited, validate
from ...common.packages import missing_package
from ..protocol import UnifiedModel
from .llm import name_of

ALL_LINEAR = "all-linear"
Model = TypeVar("Model", bound=UnifiedModel)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters of the language model.

    Args:
        rank: of the update of each matrix.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' inputs.
        dora: learn magnitude and direction of each matrix separately (DoRA); slower, often better at low
            ranks.
        target_modules: "all-linear" for every linear layer of the LLM but its output layer, or a list of
            names or ends of names ([q_proj, v_proj]).

    Raises:
        UserError: a value outside its range.
    """

    rank: int = limited(16, least=1, most=65_536)
    alpha: int = limited(32, least=1, most=2**31)
    dropout: float = limited(0.0, least=0.0, below=1.0)
    dora: bool = False
    target_modules: str | list[str] = ALL_LINEAR

    def __post_init__(self) -> None:
        validate(self)
        is_list = self.target_modules and not isinstance(self.target_modules, str)
        if self.target_modules != ALL_LINEAR and not is_list:
            raise UserError(
                f"target_modules is {self.target_modules!r}; give {ALL_LINEAR!r} or a list of layer "
                "names, such as [q_proj, v_proj]"
            )


def add_lora(model: UnifiedModel, settings: LoraSettings | None = None) -> None:
    """Put new adapters into `model`, in place, and freeze its language model's other weights.

    Outputs do not change until the adapters are trained. Of the embeddings (and of the output layer) only the
    special tokens' rows are trained. `merge_adapters` makes a plain model of it again.

    Raises:
        UserError: peft is missing, a setting fits no linear layer, the model has adapters already or is
            quantized.
    """
    settings = settings or LoraSettings()
    try:
        from peft import LoraConfig, LoraModel
    except ModuleNotFoundError as error:
        raise UserError(f"for LoRA {missing_package('peft')}") from error
    if model.adapters:
        raise UserError("the model has adapters already; call merge_adapters(model) before adding new ones")
    if getattr(model, "is_quantized", False):
        raise UserError(
            "adapters on a quantized language model could not be merged without loss; load the model with "
            "quantization 'none'"
        )
    llm = model.language_model
    _refuse_unknown_targets(llm, settings.target_modules)
    rows = _special_token_rows(model)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=settings.target_modules,
        trainable_token_indices=rows or None,
    )
    try:
        lora = LoraModel(llm, config, "default")
    except ValueError as error:  # unsupported layers, such as DoRA on mixtures of experts
        raise UserError(
            f"peft refuses these lora settings for this language model: {first_line(error)}"
        ) from error
    model.adapters.append(lora)
    llm.train(llm.training)  # new layers are in training mode, where dropout acts
    if not rows:
        for embedding in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            embedding.requires_grad_(True)


def merge_adapters(model: Model) -> Model:
    """Add the adapters to the weights that they adapt and remove them, in place; returns `model`.

    Outputs stay the same up to rounding in the weights' dtype, and all weights become trainable. A model
    without adapters is not changed.
    """
    while model.adapters:
        model.adapters.pop().merge_and_unload(safe_merge=True)
        model.language_model.requires_grad_(True)
    return model


def _special_token_rows(model: UnifiedModel) -> dict[str, list[int]]:
    """The rows to train, by the name of their layer; empty where peft cannot train single rows."""
    llm = model.language_model
    embedding, output = llm.get_input_embeddings(), llm.get_output_embeddings()
    if getattr(output, "bias", None) is not None:
        return {}  # peft omits an output layer's bias, which would silently change the logits
    rows = sorted(set(model.config.token_ids.values()))
    # Tied weights are one layer to peft, named by the embedding.
    layers = [embedding] if output.weight is embedding.weight else [embedding, output]
    return {name_of(llm, layer): rows for layer in layers}


def _refuse_unknown_targets(llm: PreTrainedModel, targets: str | list[str]) -> None:
    if isinstance(targets, str):
        return
    output = llm.get_output_embeddings()
    linear = {name: one for name, one in llm.named_modules() if isinstance(one, nn.Linear | Conv1D)}
    names = [name for name, module in linear.items() if module is not output]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        allowed = sorted({name.rpartition(".")[2] for name in names})
        raise UserError(
            f"lora.target_modules {unknown} fit no linear layer of the language model; "
            f"it has {', '.join(allowed)}"
        )
