"""8- and 4-bit loading of the language model with bitsandbytes, for inference on CUDA.

Only the LLM's linear layers but its output layer are quantized: they are most of the weights.
Sources: LLM.int8(), arXiv 2208.07339; the 4-bit NormalFloat of QLoRA, arXiv 2305.14314.
"""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from ...common.errors import UserError, first_line, shown
from ..configuration import DualTokenConfig
from .llm import name_of

QUANTIZATIONS = ("none", "8bit", "4bit")
INT8_MATMUL_LOGGER = "bitsandbytes.autograd._functions"


def require_quantization(quantization: str, device: torch.device) -> None:
    """Raise UserError where a quantization is unknown or not available on this device."""
    if not isinstance(quantization, str) or quantization not in QUANTIZATIONS:
        raise UserError(f"quantization {shown(quantization)} is unknown; allowed: {', '.join(QUANTIZATIONS)}")
    if quantization == "none":
        return
    if device.type != "cuda":
        raise UserError(
            f"quantization {quantization!r} needs a CUDA device, and the device is {device}; use a CUDA "
            "device or quantization 'none'"
        )
    found = {"bitsandbytes": is_bitsandbytes_available(), "accelerate": is_accelerate_available()}
    if missing := [package for package, available in found.items() if not available]:
        raise UserError(
            f"quantization {quantization!r} needs {' and '.join(missing)}, which this installation lacks "
            f"or has in too old a version: pip install -U {' '.join(missing)}"
        )


def quantized_loading(
    quantization: str, source: str, device: torch.device, dtype: torch.dtype | str
) -> dict[str, Any]:
    """Further arguments of `DualTokenForConditionalGeneration.from_pretrained(source, dtype=dtype)`.

    The weights are quantized while they are loaded to `device`; the model must not be moved afterwards. Empty
    for "none". UserError when there is no model at `source`.
    """
    if quantization == "none":
        return {}
    try:
        config = DualTokenConfig.from_pretrained(source)
    except OSError as error:
        raise UserError(f"cannot load a model from {source}: {first_line(error)}") from error
    settings = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unquantized_modules(config),
    )
    logging.getLogger(INT8_MATMUL_LOGGER).addFilter(_is_no_cast_remark)
    return {"quantization_config": settings, "device_map": {"": device}}


def unquantized_modules(config: DualTokenConfig) -> list[str]:
    """Names of the modules with linear layers that keep their weights."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=False)
    return ["branches", f"language_model.{name_of(llm, llm.get_output_embeddings())}"]


def _is_no_cast_remark(record: logging.LogRecord) -> bool:
    # bitsandbytes repeats it at every product of a bf16 model.
    return "inputs will be cast from" not in str(record.msg)
