"""All converters by their kind: those of this package, of installed plug-ins, and of folders of modules.

A plug-in's module is found by an entry point of the group `dualtoken.converters`, or in the folder of
`dualtoken prepare --include-path FOLDER`, and registers its converter when it is imported::

    @register
    class CapitalsConverter(Converter):
        kind, summary = "capitals", "countries and their capitals"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ...common.errors import UserError, shown
from ...common.paths import is_plain_name
from ...common.plugins import load_plugins
from ..scenes.convert import SceneConverter
from ..small_sets.convert_sets import EasyVqaConverter, EmojiConverter, LabelsConverter, NlvrConverter
from ..text.replies import RepliesConverter
from .converter import Converter
from .folder import FolderConverter
from .hf import HuggingFaceConverter
from .llava import LlavaConverter
from .mmc4 import Mmc4Converter
from .obelics import ObelicsConverter
from .text import TextConverter
from .webdataset import WebDatasetConverter

PLUGINS = "dualtoken.converters"

Class = TypeVar("Class", bound=type[Converter])

CONVERTERS: dict[str, type[Converter]] = {
    one.kind: one
    for one in (
        SceneConverter,
        EasyVqaConverter,
        NlvrConverter,
        EmojiConverter,
        LabelsConverter,
        LlavaConverter,
        FolderConverter,
        WebDatasetConverter,
        HuggingFaceConverter,
        TextConverter,
        ObelicsConverter,
        Mmc4Converter,
        RepliesConverter,
    )
}


def register(converter: Class) -> Class:
    """Class decorator that adds a converter. UserError where its kind is not a plain name or is in use,
    and where it does not define `samples` and `records`.
    """
    if not is_plain_name(getattr(converter, "kind", None)):
        raise UserError(f"{shown(converter)} has no kind: give it a name of letters, digits, - and _")
    if CONVERTERS.get(converter.kind, converter) is not converter:
        raise UserError(f"there are two converters {converter.kind!r}: give {shown(converter)} another kind")
    for method in ("samples", "records"):
        if getattr(converter, method) is getattr(Converter, method):
            raise UserError(f"converter {converter.kind!r} does not define {method}")
    CONVERTERS[converter.kind] = converter
    return converter


def load_converters(folders: Sequence[Path] = ()) -> dict[str, type[Converter]]:
    """All converters by kind, including those of entry points and of the modules in `folders`."""
    load_plugins(PLUGINS, folders)
    return CONVERTERS
