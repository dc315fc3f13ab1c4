"""Language models in llama.cpp's format: one GGUF file with weights, text tokenizer and chat template.

transformers and the package gguf read them. Quantized weights are unpacked, and the result is a plain model
that can be trained and saved.
"""

import copy
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as TextTokenizer

from ...common.errors import UserError, first_line, shown
from ...common.loading.quiet import quiet, size_of
from ...common.packages import missing_package
from ...common.paths import regular_file, user_path

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
#: llama.cpp's names of pre-tokenizers that split numbers into digits, which transformers leaves out.
_SINGLE_DIGITS = ("smollm", "refact", "command-r", "starcoder", "codeshell", "exaone", "minerva-7b")


def is_gguf(source: object) -> TypeGuard[str | Path]:
    """Whether `source` is the path of a GGUF file, by its name."""
    return isinstance(source, (str, Path)) and str(source).lower().endswith(SUFFIX)


def load_gguf(source: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The language model of a GGUF file, dequantized, without any trace of its quantization.

    Raises:
        UserError: a package is missing, the file cannot be read, or its architecture is not supported.
    """
    path = _checked(source)
    options: dict[str, Any] = {"dtype": dtype}
    if hasattr(transformers, "GgufConfig"):  # newer versions may otherwise keep the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _reading(path, "language model"), quiet(4 * size_of([path])):
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False, **options
        )
        return _plain(loaded, dtype)


def gguf_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of the language model in a GGUF file; errors as of `load_gguf`."""
    path = _checked(source)
    with _reading(path, "language model"):
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)


def gguf_text_tokenizer(source: str | Path) -> TextTokenizer:
    """The text tokenizer of a GGUF file, with its chat template; errors as of `load_gguf`."""
    path = _checked(source)
    with _reading(path, "text tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        _split_digits(tokenizer, path)
    tokenizer.init_kwargs.pop("gguf_file", None)
    return tokenizer


def _checked(source: str | Path) -> Path:
    """The path of a GGUF file that can be opened."""
    path = regular_file(user_path(source, "GGUF file"), "GGUF file")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(
                f"{shown(str(path))} is not a GGUF file (it does not begin with 'GGUF'); give a complete "
                "one, or the folder or hub id of a language model"
            )
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"to read {path.name} {missing_package('gguf')}")
    return path


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever the readers of an untrusted file raise into one line."""
    remarks = logging.getLogger("transformers.quantizers.quantizer_gguf")
    level = remarks.level
    remarks.setLevel(logging.ERROR)  # it would advise to install kernels, to keep the weights packed
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"no usable {what} in {path}: {_reason(path, error)}") from error
    finally:
        remarks.setLevel(level)


def _reason(path: Path, error: Exception) -> str:
    """Why reading failed; for an architecture that transformers does not read, its name."""
    kind = _metadata(path, "general.architecture")
    if "not supported" in str(error) or (isinstance(error, KeyError) and kind in map(str, error.args)):
        return (
            f"transformers {transformers.__version__} does not read GGUF files of the architecture "
            f"{shown(kind)}; give the model's folder or hub id instead"
        )
    return first_line(error)


def _plain(loaded: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model with the same weights that knows nothing of GGUF: `loaded` refuses to be saved."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    with init_empty_weights():  # the parameters only: buffers are computed
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    return plain.eval()


def _split_digits(tokenizer: Any, path: Path) -> None:
    """Split digits where the file demands it, and the tokenizer's reader did not."""
    backend = tokenizer.backend_tokenizer
    if _metadata(path, "tokenizer.ggml.pre") in _SINGLE_DIGITS and isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _metadata(path: Path, key: str) -> Any:
    """A value of the file's header, or None."""
    from gguf import GGUFReader

    read: Callable[[Path], Any] = GGUFReader
    try:
        field = read(path).get_field(key)
        return None if field is None else field.contents()
    except Exception:  # a damaged file; what needs it names the reason
        return None
