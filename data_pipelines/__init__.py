"""Data: records, procedural scenes, converters, shards and cached codes.

All tasks share one record type, a conversation with text and images (`records`). Converters and the scene
generator write records to tar shards with a manifest (`shards`); training reads them by index, with images
or, much faster, with codes that the visual tokenizer computed in advance (`codes`).
"""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports

if TYPE_CHECKING:
    from .records import EncodedImage, Record, RecordError
    from .scenes.scene import NUM_PATCH_CLASSES, Scene, SceneObject, patch_classes, random_scene, render
    from .shards.reader import ShardDataset
    from .shards.writer import ShardWriter
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "NUM_PATCH_CLASSES",
    "EncodedImage",
    "Record",
    "RecordError",
    "Scene",
    "SceneObject",
    "ShardDataset",
    "ShardWriter",
    "patch_classes",
    "random_scene",
    "render",
]
