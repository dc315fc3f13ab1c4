"""Checks that need a device to mean anything: for the tests marked `gpu`, and for `dualtoken doctor`.

Each raises RuntimeError where the device computes something else than it should, and returns what it found.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from .configuration import DualTokenConfig
from .conversation.collation import (
    IGNORE,
    CachedCodes,
    EncodedRecord,
    collate_images,
    flash_attention_bounds,
    pack,
)
from .depth_transformer import DepthTransformer
from .modeling import DualTokenForConditionalGeneration
from .settings import CodebookConfig, DepthTransformerConfig
from .visual_embedding import FrozenCodebook

#: More positions than a launch dimension of a GPU holds: 96 images of 27 x 27.
MANY_POSITIONS = 70_000
SIZES = DepthTransformerConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=64)
#: Largest relative error of a tensor, by dtype; in fp32 that of TF32 products.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2}


def prove_depth_transformer(
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    positions: int = MANY_POSITIONS,
    sizes: DepthTransformerConfig = SIZES,
    depth: int = 8,
) -> str:
    """A depth transformer and its loss over many positions equal those over parts of them, with gradients.

    Not in bf16 on a CPU, where torch sums a norm's gradients in bf16.
    """
    generator = torch.Generator().manual_seed(0)
    book = CodebookConfig(num_codes=16, code_dim=16, depth=depth)
    head = DepthTransformer(sizes, book, state_dim=32, shared_classifier=True)
    codebook = FrozenCodebook(book)
    for tensor in (*head.parameters(), *codebook.buffers()):
        tensor.data.copy_(
            torch.randn(tensor.shape, generator=generator) / max(tensor.shape[-1:], default=1) ** 0.5
        )
    head, codebook = head.to(device, dtype), codebook.to(device)
    states = torch.randn(positions, 32, generator=generator).to(device, dtype)
    codes = torch.randint(book.num_codes, (positions, book.depth), generator=generator).to(device)
    found = _loss_and_gradients(head, codebook, states, codes, positions)
    expected = _loss_and_gradients(head, codebook, states, codes, positions // 7)
    errors = {name: _relative_error(found[name], expected[name]) for name in found}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"depth transformer over {positions} positions in {dtype}: {worst} differs by {errors[worst]:.1e}"
        )
    return (
        f"{positions} positions at once equal {positions // 7} (largest relative error {errors[worst]:.0e})"
    )


def _loss_and_gradients(
    head: DepthTransformer, codebook: FrozenCodebook, states: Tensor, codes: Tensor, together: int
) -> dict[str, Tensor]:
    """Losses and gradients, in fp32, of all positions, `together` of them at a time."""
    head.zero_grad()
    states = states.clone().requires_grad_()
    losses = []
    for part, targets in zip(states.split(together), codes.split(together), strict=True):
        outputs = head(part, targets, codebook).flatten(0, 1)
        total, each = head.classifiers[0](outputs, targets.flatten())
        total.backward()
        losses.append(each)
    inputs = {"states": states, **dict(head.named_parameters())}
    return {"losses": torch.cat(losses), **_gradients(inputs)}


def _gradients(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, the gradients of those that have one."""
    return {name: one.grad for name, one in tensors.items() if one.grad is not None}


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def prove_cuda_graphs(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> str:
    """Compiled image generation replays a CUDA graph for every step, and its codes are the plain loop's.

    In bf16 fused kernels round elsewhere, so that codes of later positions differ.
    """
    model = small_model(device, dtype)
    options: dict[str, Any] = {"generation_mode": "image", "num_return_sequences": 2, "guidance_scale": 2.0}
    options["input_ids"] = torch.full((1, 9), 7, device=device)
    plain = [model.generate(**options, seed=seed) for seed in range(4)]
    skipped = _skips()
    compiled, replays = [], 0
    for seed in range(4):  # compiled and warmed up, recorded, replayed
        with _counted_replays() as count:
            compiled.append(model.generate(**options, seed=seed, compile=True))
        replays = count[0]
    if _skips() > skipped:
        raise RuntimeError(f"torch skipped {_skips() - skipped} CUDA graphs of image generation")
    steps = 2 * model.config.num_positions - 1
    if replays < steps:
        raise RuntimeError(f"{replays} CUDA graphs ran for the {steps} steps of an image")
    equal = float((torch.stack(compiled) == torch.stack(plain)).float().mean())
    if equal < (1.0 if dtype == torch.float32 else 0.5):
        raise RuntimeError(
            f"compiled and plain image generation agree in {equal:.1%} of the codes, in {dtype}"
        )
    return f"{replays} CUDA graphs for {steps} steps; {equal:.1%} of the codes equal the plain loop's"


def prove_batch_invariance(
    device: torch.device | str, dtype: torch.dtype = torch.bfloat16, size: int = 4, compile: bool = False
) -> str:
    """With `batch_invariant` image i of a seed is the same alone, among others and beside other prompts."""
    model = small_model(device, dtype)
    ids = torch.full((2, 9), 7, device=device)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # another prompt, shorter than the one that is looked at

    def images(count: int, first: int = 0, prompts: slice = slice(1, 2), fixed: int = size) -> Tensor:
        options: dict[str, Any] = {"num_return_sequences": count, "first_image_index": first, "seed": 5}
        options |= {"guidance_scale": 2.0, "batch_invariant": fixed, "compile": compile}
        inputs = {"input_ids": ids[prompts], "attention_mask": mask[prompts]}
        return model.generate(**inputs, **options, generation_mode="image")

    together = images(2 * size)
    requests = {
        "alone": images(1),
        "in part": images(size, 1),
        "beside another prompt": images(2, 0, slice(2))[2:],
    }
    for name, found in requests.items():
        first = 1 if name == "in part" else 0
        if not torch.equal(found, together[first : first + len(found)]):
            raise RuntimeError(f"batch_invariant {size} in {dtype}: images {name} are others than together")
    as_they_come = float((images(1, fixed=0) == images(2 * size, fixed=0)[:1]).float().mean())
    return f"images are equal in every request; without batch_invariant {as_they_come:.1%} of the codes are"


def prove_packed_attention(
    implementation: str, device: torch.device | str, dtype: torch.dtype, training: bool = True
) -> str:
    """Rows of packed documents have the loss, and if `training` the gradients, of the documents one by one.

    The implementation must be installed. flash attention needs bf16, flex attention a GPU for training.
    """
    rows = [[_text(5), _picture(0), _text(9)], [_picture(1), _text(3)]]
    packed = _collated(pack(rows, pad_id=1, length=70), [one for row in rows for one in row])
    if "flash" in implementation:
        packed |= flash_attention_bounds(packed["position_ids"])
    separate = [_collated(pack([[one]], pad_id=1, length=len(one)), [one]) for row in rows for one in row]
    separate = [{name: one for name, one in each.items() if name != "position_ids"} for each in separate]
    model = small_model(device, dtype).train()
    model.set_attn_implementation("sdpa")
    by_torch = _summed_loss(model, separate, training=False)["loss"]
    model.set_attn_implementation(implementation)
    expected = _summed_loss(model, separate, training)
    found = _summed_loss(model, [packed], training)
    errors = {name: _relative_error(found[name], expected[name]) for name in found}
    errors["loss against sdpa"] = _relative_error(found["loss"], by_torch)
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"packed rows with {implementation} in {dtype}: {worst} differs by {errors[worst]:.1e}"
        )
    return f"packed rows equal separate documents (largest relative error {errors[worst]:.0e})"


def _text(length: int) -> EncodedRecord:
    ids = np.arange(10, 10 + length)
    return EncodedRecord(ids, ids)


def _picture(seed: int) -> EncodedRecord:
    """A prompt and its image, of the small model."""
    ids = np.array([0, 3, 20 + seed, 2, 4, 5, *[6] * 36, 7, 2])
    codes = np.random.default_rng(seed).integers(0, 256, (2, 36, 4))
    return EncodedRecord(ids, np.where(np.arange(len(ids)) < 6, IGNORE, ids), [CachedCodes(*codes)])


def _collated(batch: dict[str, Any], records: list[EncodedRecord]) -> dict[str, Any]:
    return batch | collate_images([one for record in records for one in record.images], None)


def _summed_loss(
    model: DualTokenForConditionalGeneration, batches: list[dict[str, Any]], training: bool
) -> dict[str, Tensor]:
    """The loss and, if `training`, gradients of the language model, summed over batches."""
    model.zero_grad()
    total = torch.zeros((), device=model.device)
    with torch.set_grad_enabled(training):
        for batch in batches:
            given = {
                name: one.to(model.device) if isinstance(one, Tensor) else one for name, one in batch.items()
            }
            loss = model(**given, reduction="sum").loss
            total += loss.detach()
            if training:
                loss.backward()
    return {"loss": total, **_gradients(dict(model.language_model.named_parameters()))}


def small_model(device: torch.device | str, dtype: torch.dtype) -> DualTokenForConditionalGeneration:
    """A unified model of 6 x 6 positions with random weights, the same at every call."""
    tokens = ("bos", "pad", "eos", "user", "assistant", "image_start", "image", "image_end", "unconditional")
    ids: dict[str, Any] = {f"{name}_token_id": index for index, name in enumerate(tokens)}
    book = CodebookConfig(num_codes=256, code_dim=16, depth=4)
    llm = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = DualTokenConfig(
        text_config={"model_type": "llama", **llm, "intermediate_size": 256, "vocab_size": 512},
        grid_size=(6, 6),
        pixel_codebook=book,
        semantic_codebook=book,
        depth_transformer=SIZES,
        semantic_condition="pixel",
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = DualTokenForConditionalGeneration(config)
        for _, branch in model.branches.items():
            branch.codebook.assign(torch.randn(branch.codebook.vectors.shape))
    with torch.no_grad():  # larger, so that codes differ clearly from position to position
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model.to(device, dtype).eval()


def _skips() -> int:
    """CUDA graphs that torch has skipped in this process."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


@contextmanager
def _counted_replays() -> Iterator[list[int]]:
    """The number of CUDA graphs that run in this context, as the list's only item."""
    count, replay = [0], torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        count[0] += 1
        replay(graph)

    with patch.object(torch.cuda.CUDAGraph, "replay", counted):
        yield count
