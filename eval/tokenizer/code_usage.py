"""Codebook usage and perplexity of a tokenizer."""

from __future__ import annotations

from typing import Any

from ...tokenizer import DualTokenizer
from ..metrics.codebook import CodebookUsage
from .batch import Batch
from .family import Family, Subject, Values


def codebook_usages(tokenizer: DualTokenizer) -> dict[str, CodebookUsage]:
    """A metric for each branch."""
    quantizers = tokenizer.config.quantizers
    return {name: CodebookUsage(one.num_codes, one.depth) for name, one in quantizers.items()}


class CodebookFamily(Family):
    """Usage and perplexity of both codebooks at every depth."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._config = subject.tokenizer.config
        self._usages = codebook_usages(subject.tokenizer)

    def update(self, batch: Batch) -> None:
        for branch, usage in self._usages.items():
            usage.update(getattr(batch.codes, branch))

    def compute(self) -> Values:
        found: dict[str, Any] = {}
        for branch, usage in self._usages.items():
            values = usage.compute()
            found |= {f"{branch}_{name}": values[name] for name in ("usage", "perplexity")}
            if self._config.quantizers[branch].shared_codebook:
                found[f"{branch}_usage_all_depths"] = values["usage_all_depths"]
        return found
