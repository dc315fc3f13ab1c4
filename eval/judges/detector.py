"""An object detector of transformers in a local folder, with GenEval's names of the COCO classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...common.errors import UserError, first_line
from ..scorers.geneval import THRESHOLD, Detection

# Names of COCO classes in checkpoints of transformers -> names in GenEval.
_OTHER_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "television": "tv",
    "tvmonitor": "tv",
}
_SEGMENTERS = ("mask2former", "maskformer")


class LocalDetector:
    """An object detector or an instance segmenter (Mask2Former, MaskFormer) as a `Detector`.

    `folder` holds the saved model with its image processor. UserError without a detector in it.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        import transformers

        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder; give a saved object detector of transformers")
        self.name = folder.name
        self._device = torch.device(device)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            self._segments = config.model_type in _SEGMENTERS
            head = "UniversalSegmentation" if self._segments else "ObjectDetection"
            kind = getattr(transformers, f"AutoModelFor{head}")
            self._model = kind.from_pretrained(folder, trust_remote_code=False).to(self._device).eval()
            processors: Any = transformers.AutoImageProcessor
            self._processor = processors.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{str(folder)!r} holds no object detector: {first_line(error)}") from error
        names = {number: str(name).lower().replace("_", " ") for number, name in config.id2label.items()}
        self._names = {number: _OTHER_NAMES.get(name, name) for number, name in names.items()}

    def require(self, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(self._names.values()))
        if unknown:
            raise UserError(
                f"the detector {self.name} does not know {', '.join(unknown[:5])} "
                f"({len(unknown)} classes in all); give one trained on COCO"
            )

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[Detection]:
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        size = [(image.height, image.width)]
        if self._segments:
            return self._from_masks(output, size)
        (found,) = self._processor.post_process_object_detection(
            output, threshold=THRESHOLD, target_sizes=torch.tensor(size)
        )
        rows = zip(*(found[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
        return [Detection(self._names[label], score, tuple(box)) for label, score, box in rows]

    def _from_masks(self, output: Any, size: list[tuple[int, int]]) -> list[Detection]:
        (found,) = self._processor.post_process_instance_segmentation(
            output, threshold=THRESHOLD, target_sizes=size, return_binary_maps=True
        )
        detections = []
        for segment, mask in zip(found["segments_info"], found["segmentation"], strict=True):
            pixels = np.asarray(mask.cpu()) > 0
            if pixels.any():
                rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
                box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
                name = self._names[segment["label_id"]]
                detections.append(Detection(name, segment["score"], box, pixels))
        return detections
