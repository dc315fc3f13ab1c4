"""8- and 4-bit loading of the language model with bitsandbytes, for inference on CUDA.

Only the linear layers of the LLM are quantized: they are most of the weights. Its embeddings and output
layer, the code projectors, the depth transformers, the codebooks and the visual tokenizer stay as they are.
Sources: LLM.int8(), arXiv 2208.07339; the 4-bit NormalFloat of QLoRA, arXiv 2305.14314.
"""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from ...common.errors import UserError, first_line, shown
from ..configuration import DualTokenConfig

QUANTIZATIONS = ("none", "8bit", "4bit")
UNQUANTIZED_PARTS = ("branches",)
INT8_MATMUL_LOGGER = "bitsandbytes.autograd._functions"


def require_quantization(quantization: str, device: torch.device) -> None:
    """Raise UserError where a model cannot be loaded like this, before anything is loaded."""
    if not isinstance(quantization, str) or quantization not in QUANTIZATIONS:
        raise UserError(f"quantization {shown(quantization)} is unknown; allowed: {', '.join(QUANTIZATIONS)}")
    if quantization == "none":
        return
    if device.type != "cuda":
        raise UserError(
            f"quantization {quantization!r} needs a CUDA device, and the device is {device}; take a CUDA "
            "device or quantization 'none'"
        )
    there = {"bitsandbytes": is_bitsandbytes_available(), "accelerate": is_accelerate_available()}
    missing = [package for package, available in there.items() if not available]
    if missing:
        raise UserError(
            f"quantization {quantization!r} needs {' and '.join(missing)}, which this installation lacks "
            f"or has in too old a version: pip install -U {' '.join(missing)}"
        )


def quantized_loading(
    quantization: str, source: str, device: torch.device, dtype: torch.dtype | str
) -> dict[str, Any]:
    """Further arguments of `DualTokenForConditionalGeneration.from_pretrained(source, dtype=dtype)`.

    The weights are quantized on their way to `device`; the model must not be moved there afterwards.
    Nothing for "none". UserError when there is no model at `source`.
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
    output = llm.get_output_embeddings()
    name = next(name for name, module in llm.named_modules() if module is output)
    return [*UNQUANTIZED_PARTS, f"language_model.{name}"]


def _is_no_cast_remark(record: logging.LogRecord) -> bool:
    # bitsandbytes repeats it at every product of a bf16 model.
    return "inputs will be cast from" not in str(record.msg)
