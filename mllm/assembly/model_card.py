"""The README.md of a saved model: description, sizes, and usage."""

from huggingface_hub import ModelCard, ModelCardData

from ..protocol import UnifiedModel

TAGS = ["dualtoken", "image-text-to-text", "text-to-image"]
TEXT = """
# DualToken model

A unified multimodal language model: it reads and writes text and images, each image as pixel codes (how it
looks) and semantic codes (what it means). It is used with the package `dualtoken`; no code is loaded from
this folder.

```python
import dualtoken.mllm
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained("path/to/this/folder")
processor = AutoProcessor.from_pretrained("path/to/this/folder")

# Or in few lines:
pipe = dualtoken.mllm.DualTokenPipeline.from_pretrained("path/to/this/folder")
pipe.answer("image.png", "What is in the image?")
pipe.generate_images("a red circle", num_images=4, seed=0)
```

| part | size |
|---|---|
{rows}
"""


def model_card(model: UnifiedModel) -> ModelCard:
    """The card of a model, with metadata for the hub but for the licence, which the publisher adds."""
    data = ModelCardData(library_name="transformers", pipeline_tag="any-to-any", tags=TAGS)
    rows = "\n".join(f"| {name} | {size} |" for name, size in _sizes(model).items())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{TEXT.format(rows=rows)}")


def _sizes(model: UnifiedModel) -> dict[str, str]:
    config, llm = model.config, model.config.text_config
    rows, columns = config.grid_size
    names, branches = config.branches, [branch for _, branch in model.branches.items()]
    heads = "two depth transformers" if len(names) == 2 else f"depth transformer ({names[0]} codes)"
    grid_position = [] if model.grid_position is None else [model.grid_position]
    sizes = {
        f"language model ({llm.model_type}, {llm.num_hidden_layers} layers of {llm.hidden_size})": _count(
            model.language_model
        ),
        "visual embedding": _count(*(branch.projector for branch in branches), *grid_position),
        heads: _count(*(branch.depth_transformer for branch in branches)),
    }
    if model.visual_tokenizer is not None:
        side = model.visual_tokenizer.config.image_size
        sizes[f"visual tokenizer ({side} x {side} pixels)"] = _count(model.visual_tokenizer)
    for name in names:
        codebook = config.codebooks[name]
        sizes[f"{name} codes of an image"] = (
            f"{rows} x {columns} positions x {codebook.depth}, of {codebook.num_codes:,}"
        )
    return sizes


def _count(*modules: object) -> str:
    """Parameters in millions; shared ones count once."""
    parameters = {p for module in modules for p in module.parameters()}  # type: ignore[attr-defined]
    return f"{sum(p.numel() for p in parameters) / 1e6:,.1f} M parameters"
