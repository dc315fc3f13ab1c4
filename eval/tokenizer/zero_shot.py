"""Zero-shot accuracy of a tokenizer's embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...common.errors import UserError
from ..metrics.zero_shot import ZeroShotAccuracy, imagenet_classes, imagenet_templates, zero_shot_classifier
from .batch import Batch
from .family import Subject, Unavailable, Values
from .text_tower import TextFamily


class ZeroShotFamily(TextFamily):
    """Zero-shot accuracy over the images that have a class."""

    name = "zero_shot"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        options = subject.options
        labels, names = class_names(list(subject.images.classes or []), options.classes)
        if not labels:
            raise Unavailable(
                "zero_shot",
                "no image has a named class (with numbers for labels, name the classes with --classes)",
            )
        templates = options.templates or imagenet_templates()
        with torch.inference_mode():
            classifier = zero_shot_classifier(self._tower, self._ids, names, templates)
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._accuracy = ZeroShotAccuracy(classifier)

    def update(self, batch: Batch) -> None:
        assert batch.features is not None
        numbers = [self._number(sample.label) for sample in batch.samples]
        known = [row for row, number in enumerate(numbers) if number is not None]
        self._accuracy.update(batch.features[known], [number for number in numbers if number is not None])

    def compute(self) -> Values:
        found = self._accuracy.compute()
        if not found["zero_shot_n"]:
            self.notes.append("zero_shot is null: no image has a class label")
        return found

    def _number(self, label: str | int | None) -> int | None:
        if isinstance(label, str):
            if label not in self._numbers:
                raise UserError(f"an image has the class {label!r}, which is not among the classes given")
            return self._numbers[label]
        if label is not None and not 0 <= label < len(self._numbers):
            raise UserError(f"an image has the class number {label}; there are {len(self._numbers)} classes")
        return label


def class_names(found: list[str], given: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The labels of images, and their names for the prompts, in the same order.

    found: labels of the images. given: names by the user; None takes ImageNet's for its folders.
    """
    if given is None:
        return found, imagenet_classes() if _are_imagenet_folders(found) else found
    names = list(given)
    if set(found) <= set(names):
        return names, names
    if len(found) != len(names):
        raise UserError(
            f"{len(names)} class names were given and the images are of {len(found)} classes with other "
            "names; give the same names, or one for each class in their sorted order"
        )
    return found, names


def _are_imagenet_folders(names: Sequence[str]) -> bool:
    """Whether these are the 1000 folder names of ImageNet, whose sorted order is that of its labels."""
    return len(names) == 1000 and all(n[:1] == "n" and n[1:].isdecimal() and len(n) == 9 for n in names)
