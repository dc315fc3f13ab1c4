"""Section `optimizer`: how fast which parameters learn."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...common.limits import in_range, limited


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and Muon for the matrices inside the transformer layers where ``muon_lr`` is given.

    Args:
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon (0.02 is usual), for the two-dimensional weights of transformer
            layers; embeddings, classifiers, vectors and adapters stay with AdamW. None trains all with AdamW.
            With ZeRO it needs ``gradient_clipping`` 0, as DeepSpeed would clip Muon's updates.
        muon_momentum: of Muon.
        lr_scale: factor on the rate of parameters whose name contains the key (the longest match wins).
        group_lr: peak learning rate of AdamW for a named group instead of ``lr``. The unified model has the
            groups projectors, heads (the depth transformers), embeddings (of text, and the output layer)
            and llm (all else, adapters too).
        weight_decay: for matrices; vectors (biases, norms) never decay.
        gradient_clipping: largest global gradient norm; 0 switches clipping off.
    """

    lr: float = limited(1e-3, least=0.0, most=10.0)
    muon_lr: float | None = limited(None, least=0.0, most=10.0)
    muon_momentum: float = limited(0.95, least=0.0, below=1.0)
    lr_scale: dict[str, float] = field(default_factory=dict, metadata=in_range(least=0.0, most=1e6))
    group_lr: dict[str, float] = field(default_factory=dict, metadata=in_range(least=0.0, most=10.0))
    betas: tuple[float, float] = limited((0.9, 0.95), least=0.0, below=1.0)
    eps: float = limited(1e-8, least=0.0, most=1.0)
    weight_decay: float = limited(0.05, least=0.0, most=10.0)
    gradient_clipping: float = limited(1.0, least=0.0, most=1e9)
