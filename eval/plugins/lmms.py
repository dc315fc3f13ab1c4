"""Plug-in for lmms-eval: its tasks run on our models as `--model dualtoken --model_args pretrained=FOLDER`.

The entry point `lmms_eval.models` (setup.py) calls `manifest` whenever lmms-eval starts; `lmms_model.py` is
imported only when the model is used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# The generation settings of a task that our models take; the others are for other kinds of models.
GENERATION_SETTINGS = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample")


def manifest() -> Any:
    """The name and the class of our model for lmms-eval's registry."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="dualtoken", chat_class_path="dualtoken.eval.plugins.lmms_model.DualTokenLmms"
    )


def generation_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's settings as arguments of our `generate`, and its stop strings."""
    settings = {name: given[name] for name in GENERATION_SETTINGS if given.get(name) is not None}
    sampled = settings.pop("do_sample", True) and settings.get("temperature", 0) > 0
    if not sampled:
        for name in ("temperature", "top_p", "top_k"):
            settings.pop(name, None)
    until = given.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    return {"max_new_tokens": 1024, **settings, "do_sample": sampled}, [stop for stop in stops if stop]


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
