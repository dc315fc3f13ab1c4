"""Accuracy of the nearest class prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...common.errors import UserError
from ..metrics.zero_shot import ZeroShotAccuracy, imagenet_classes, imagenet_templates, zero_shot_classifier
from .batch import Batch
from .family import Family, Subject, Unavailable, Values
from .text_tower import TextIds, TextTower


class ZeroShotFamily(Family):
    """Zero-shot accuracy over the images that have a class."""

    needs_features = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        tokenizer, options = subject.tokenizer, subject.options
        if options.text_tokenizer is None:
            raise Unavailable("zero_shot", "needs the text tokenizer of the visual tokenizer's folder")
        labels, names = class_names(list(subject.images.classes or []), options.classes)
        if not labels:
            raise Unavailable(
                "zero_shot",
                "no image has a named class (with numbers for labels, name the classes with --classes)",
            )
        templates, ids = (
            options.templates or imagenet_templates(),
            TextIds.of(tokenizer, options.text_tokenizer),
        )
        with torch.inference_mode():
            classifier = zero_shot_classifier(TextTower(tokenizer), ids, names, templates)
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
    """The labels that images may have, and the names for the prompts, in one order.

    found: labels of the images. given: names that the user chose; None takes ImageNet's for its folders.
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
    """Whether these are the 1000 folder names of ImageNet, which sorted are in the order of its labels."""
    return len(names) == 1000 and all(n[:1] == "n" and n[1:].isdecimal() and len(n) == 9 for n in names)
