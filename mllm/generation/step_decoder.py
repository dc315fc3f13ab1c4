"""Step-by-step decoding of any causal LLM for the image loop.

Shapes: B prompts, R rows (sequences that are continued in one batch), L prompt length, H hidden size.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ...common.errors import UserError
from ..language_model import run_language_model, visible_positions
from ..protocol import UnifiedModel
from .few_rows import few_rows
from .kv_cache import PreallocatedCache

MASKED_ATTENTION = ("sdpa", "eager")
FULL, SLIDING = "full_attention", "sliding_attention"
CAPACITY_STEP = 64  # capacities are multiples, so that prompts of like length share one compiled step


def rounded_capacity(capacity: int) -> int:
    """The capacity of a decoder with `fixed_shape`: a multiple of `CAPACITY_STEP`."""
    return -(-capacity // CAPACITY_STEP) * CAPACITY_STEP


class StepDecoder:
    """Runs the prompts once, then takes one embedding per row and returns the row's next state.

    With `fixed_shape` every step works on the same tensors, as `torch.compile` needs: the attention sees all
    positions of the cache under a mask. Without it a step sees the filled positions only, which is less work
    and suits every attention kernel.

    Raises:
        UserError: `fixed_shape` with an attention that accepts no mask (flash attention), or with a language
            model that has neither full nor sliding-window attention.
    """

    def __init__(self, model: UnifiedModel, rows: int, capacity: int, fixed_shape: bool) -> None:
        self.language_model, self.dtype, self.fixed_shape = model.language_model, model.dtype, fixed_shape
        self.text_config = model.config.text_config
        self.kinds = _attention_kinds(self.text_config)
        if fixed_shape:
            self._refuse_other_attention()
            capacity = rounded_capacity(capacity)
        self.capacity = capacity
        device = model.device
        self.position_ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.visible = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
        self.next_index = torch.zeros(1, dtype=torch.long, device=device)
        if fixed_shape:
            for tensor in (self.position_ids, self.visible, self.next_index):
                torch._dynamo.mark_static_address(tensor)
        self.cache = PreallocatedCache(
            self.text_config.num_hidden_layers, capacity, self.next_index if fixed_shape else None
        )

    def prefill(self, embeds: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """Run left-padded prompts (B, L, H) under their mask (B, L); row i continues prompt `rows[i]`.

        Returns the states (R, H) at the prompts' ends.
        """
        # Plain layers: sliding-window ones would drop keys that shorter prompts still see.
        cache = DynamicCache()
        cache.layers = [DynamicLayer() for _ in range(self.text_config.num_hidden_layers)]
        states = self._run(embeds, mask, visible_positions(mask), cache)[:, -1]
        length = mask.shape[1]
        self.cache.start_from(cache, rows)
        self.visible.fill_(True)
        self.visible[:, :length] = mask[rows].bool()
        self.next_index.fill_(length)
        self.position_ids.copy_(mask.sum(dim=-1)[rows].unsqueeze(1))
        # Read once for an image: reading it at a step would wait for the device.
        self.has_padding = not bool(mask.all())
        self.filled = length
        return states[rows]

    def advance(self, embeds: Tensor) -> Tensor:
        """The next states (R, H) after one more embedding (R, H) per row."""
        mask = self._fixed_mask() if self.fixed_shape else self._growing_mask()
        states = self._run(embeds.unsqueeze(1), mask, self.position_ids, self.cache)[:, -1]
        self.position_ids.add_(1)
        self.next_index.add_(1)
        if not self.fixed_shape:  # a compiled step would depend on this number
            self.filled += 1
        return states

    def _run(self, embeds: Tensor, mask: object, position_ids: Tensor, cache: Cache) -> Tensor:
        with few_rows(embeds.device):
            return run_language_model(
                self.language_model, embeds.to(self.dtype), mask, position_ids, cache, use_cache=True
            ).last_hidden_state

    def _growing_mask(self) -> Tensor | None:
        """The mask of a step: None without padding, an additive one, or (sliding windows) a 2-D one."""
        if not self.has_padding:
            return None
        visible = self.visible[:, : self.filled + 1]
        if self._attention in MASKED_ATTENTION and self.kinds == {FULL}:
            return self._additive(visible)  # transformers, given a 2-D mask, would wait for the device
        return visible.long()

    def _fixed_mask(self) -> Tensor | dict[str, Tensor]:
        index = torch.arange(self.visible.shape[1], device=self.visible.device)
        full = self.visible & (index <= self.next_index)
        if self.kinds == {FULL}:
            return self._additive(full)
        sliding = self._additive(full & (index > self.next_index - self.text_config.sliding_window))
        return sliding if self.kinds == {SLIDING} else {FULL: self._additive(full), SLIDING: sliding}

    def _additive(self, visible: Tensor) -> Tensor:
        """Booleans (R, K) as a mask (R, 1, 1, K) that is added to attention scores."""
        dtype = self.dtype
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return bias.masked_fill(~visible, torch.finfo(dtype).min)[:, None, None, :]

    @property
    def _attention(self) -> str:
        return self.language_model.config._attn_implementation

    def _refuse_other_attention(self) -> None:
        if self._attention not in MASKED_ATTENTION:
            raise UserError(
                f"compiled image generation needs attention {' or '.join(MASKED_ATTENTION)}, the model has "
                f"{self._attention}: load it with attn_implementation='sdpa', or leave compile out"
            )
        if not self.kinds <= {FULL, SLIDING}:
            raise UserError(
                f"compiled image generation does not support this language model's attention "
                f"({', '.join(sorted(self.kinds))}); leave compile out"
            )


def _attention_kinds(text_config: object) -> set[str]:
    """The attention of the language model's layers: `layer_types`, or one kind for all."""
    one_kind = FULL if getattr(text_config, "sliding_window", None) is None else SLIDING
    return set(getattr(text_config, "layer_types", None) or [one_kind])
