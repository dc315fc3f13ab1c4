"""The image loop: codes of whole images, position by position and depth by depth.

Shapes: B prompts, R = B x images per prompt, P positions, D depths, N codes, C code dimension, H hidden size.
    With guidance every tensor of the model has 2R rows: the R conditional ones, then the unconditional ones.

A position is two steps: `draw` turns the LLM's states into codes, `advance` turns the codes into the next
states. Both read and write tensors in place and return nothing, so nothing waits for the host, and each can
be compiled as one graph.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...common.errors import UserError, shown
from ...tokenizer import VisualCodes
from ..depth_transformer import DepthCache, DepthTransformer
from ..visual_embedding import FrozenCodebook
from . import sampling
from .progress import Progress
from .sampling import ImageSamplingOptions
from .step_decoder import StepDecoder

if TYPE_CHECKING:
    from ..modeling import DualTokenForConditionalGeneration


# A step of a position: `ImageGenerator.draw` or `advance`, compiled or not.
Step = Callable[["ImageGenerator", "DualTokenForConditionalGeneration"], None]


class GenerationCancelled(Exception):
    """A `progress` callback returned False; what was drawn so far is dropped."""


@dataclass
class ImagePrompt:
    """Left-padded sequences (B, L) that end with `<|image_start|>`, their mask, and images inside them."""

    input_ids: Tensor
    attention_mask: Tensor
    codes: VisualCodes | None = None


class Branch(NamedTuple):
    """What draws the codes of one branch; the cache serves one position after the other."""

    head: DepthTransformer
    codebook: FrozenCodebook
    cache: DepthCache

    @classmethod
    def of(cls, head: DepthTransformer | None, codebook: FrozenCodebook, rows: int) -> "Branch | None":
        """The branch, or None for one that the model does not have."""
        return None if head is None else cls(head, codebook, head.new_cache(rows))


def check_compile(choice: Any) -> None:
    """Raise UserError unless `choice` is True, False, or the name of a backend that `torch.compile` knows."""
    if isinstance(choice, bool):
        return
    backends = torch.compiler.list_backends(exclude_tags=()) if isinstance(choice, str) else []
    if choice not in backends:
        raise UserError(f"compile is {shown(choice)}; give True, False, or a backend of torch.compile")


class ImageGenerator:
    """Draws `rows` images side by side; a prompt and its image take at most `capacity` places.

    `compile`: True compiles both steps (with CUDA graphs on CUDA), a string names a backend of
    `torch.compile`, False runs them as they are. One object serves any number of calls one after the other.
    """

    def __init__(
        self,
        model: "DualTokenForConditionalGeneration",
        options: ImageSamplingOptions,
        rows: int,
        capacity: int,
        compile: bool | str = False,
    ) -> None:
        # The model keeps a compiled generator, so it is handed to every call: holding each other, neither
        # would be freed when the last user lets go.
        self.options, self.rows, self.config = options, rows, model.config
        all_rows = 2 * rows if options.guided else rows
        self.decoder = StepDecoder(model, all_rows, capacity, fixed_shape=bool(compile))
        self.pixels = Branch.of(model.pixel_head, model.pixel_codebook, all_rows)
        self.semantics = Branch.of(model.semantic_head, model.semantic_codebook, all_rows)
        self._allocate(all_rows, model.dtype, model.device)
        self.compile = compile
        self._draw_step, self._advance_step = self._steps(compile)

    def fits(
        self,
        model: "DualTokenForConditionalGeneration",
        options: ImageSamplingOptions,
        rows: int,
        capacity: int,
        compile: bool | str,
    ) -> bool:
        """Whether this object serves such a call as it is."""
        return (options, rows, compile, model.dtype, model.device) == (
            self.options,
            self.rows,
            self.compile,
            self.states.dtype,
            self.states.device,
        ) and capacity <= self.decoder.capacity

    @torch.no_grad()
    def generate(
        self,
        model: "DualTokenForConditionalGeneration",
        prompt: ImagePrompt,
        images_per_prompt: int,
        seeds: Sequence[int],
        first_image_index: int = 0,
        progress: Progress | None = None,
    ) -> VisualCodes:
        """Codes (R, P, D) of both branches, the images of each prompt in a row.

        Image j of prompt b is drawn from the stream (seeds[b], first_image_index + j).

        Raises:
            GenerationCancelled: `progress` returned False.
        """
        self._set_noise(seeds, images_per_prompt, first_image_index)
        self._prefill(model, prompt, images_per_prompt)
        self.position.zero_()
        positions = self.config.num_positions
        with ExitStack() as stack:
            for position in range(1, positions + 1):
                self._draw_step(self, model)
                if progress is not None and progress(position, positions) is False:
                    raise GenerationCancelled(f"cancelled after {position} of {positions} positions")
                if position < positions:
                    self._advance_step(self, model)
                if position == 1 and self.compile:
                    # The tensors stay the same until the end: they were checked once, and need not be again.
                    stack.enter_context(torch.compiler.set_stance("default", skip_guard_eval_unsafe=True))
        return VisualCodes(pixel=self.pixel_codes.clone(), semantic=self.semantic_codes.clone())

    # ---- state

    def _allocate(self, all_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        """The tensors that the steps work on."""
        positions = self.config.num_positions
        self.depths = [codebook.depth for codebook in self.config.codebooks.values()]
        self.states = torch.zeros(all_rows, self.config.text_config.hidden_size, dtype=dtype, device=device)
        self.uniforms = torch.zeros(
            positions, self.rows, sum(self.depths), dtype=torch.float32, device=device
        )
        self.scales = sampling.guidance_scales(self.options, positions).to(device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.pixel_codes, self.semantic_codes = (
            torch.zeros(self.rows, positions, depth, dtype=torch.long, device=device) for depth in self.depths
        )

    def _set_noise(self, seeds: Sequence[int], images_per_prompt: int, first: int) -> None:
        """The random numbers of all images, drawn before the loop."""
        positions, _, codes = self.uniforms.shape
        streams = [
            sampling.image_uniforms(seed, first + index, positions, codes)
            for seed in seeds
            for index in range(images_per_prompt)
        ]
        self.uniforms.copy_(torch.stack(streams, dim=1))

    def _prefill(
        self, model: "DualTokenForConditionalGeneration", prompt: ImagePrompt, images_per_prompt: int
    ) -> None:
        """Run every prompt once; each of its images goes on from there."""
        count = prompt.input_ids.shape[0]
        if self.options.guided:
            prompt = _with_unconditional(prompt, model.unconditional_ids())
        rows = torch.arange(count, device=self.states.device).repeat_interleave(images_per_prompt)
        if self.options.guided:
            rows = torch.cat([rows, torch.full_like(rows, count)])
        embeds = model.embed_sequence(prompt.input_ids, prompt.codes)
        self.states.copy_(self.decoder.prefill(embeds, prompt.attention_mask, rows))

    # ---- the two steps of a position

    def _steps(self, compile: bool | str) -> tuple[Step, Step]:
        """`draw` and `advance` as functions of this object: its own methods would hold it."""
        draw, advance = ImageGenerator.draw, ImageGenerator.advance
        if not compile:
            return draw, advance
        caches = [branch.cache.states for branch in (self.pixels, self.semantics) if branch is not None]
        for tensor in (*vars(self).values(), *caches):
            if isinstance(tensor, Tensor):
                torch._dynamo.mark_static_address(tensor)  # CUDA graphs may then write to it
        if isinstance(compile, str):
            return torch.compile(draw, backend=compile), torch.compile(advance, backend=compile)
        mode = "reduce-overhead" if self.states.device.type == "cuda" else None
        return (
            torch.compile(draw, dynamic=False, mode=mode),
            torch.compile(advance, dynamic=False, mode=mode),
        )

    def draw(self, model: "DualTokenForConditionalGeneration") -> None:
        """The codes of the present position, from the states."""
        noise = self.uniforms.index_select(0, self.position)[0]
        # The numbers of each branch are its own, whichever is drawn first.
        pixel_noise, semantic_noise = noise.split(self.depths, dim=-1)
        if self.config.semantic_condition == "pixel":
            pixel = self._draw_branch(self.pixels, None, pixel_noise)
            semantic = self._draw_branch(self.semantics, model.semantic_condition(pixel), semantic_noise)
        else:
            semantic = self._draw_branch(self.semantics, None, semantic_noise)
            pixel = self._draw_branch(self.pixels, model.pixel_condition(semantic), pixel_noise)
        self.pixel_codes.index_copy_(1, self.position, pixel.unsqueeze(1))
        self.semantic_codes.index_copy_(1, self.position, semantic.unsqueeze(1))

    def advance(self, model: "DualTokenForConditionalGeneration") -> None:
        """Feed the present position's codes to the LLM: the states of the next one."""
        pixel, semantic = (
            codes.index_select(1, self.position)[:, 0] for codes in (self.pixel_codes, self.semantic_codes)
        )
        embeds = model.embed_codes(pixel, semantic, self.position.expand(self.rows))
        self.states.copy_(self.decoder.advance(self._for_all_rows(embeds)))
        self.position.add_(1)

    def _draw_branch(self, branch: Branch | None, condition: Tensor | None, uniforms: Tensor) -> Tensor:
        """The codes (R, D) of one branch, from uniforms (R, D) and the other branch's features (R, C), where
        the head sees them. Zeros for a branch that the model does not have.
        """
        if branch is None:
            return torch.zeros_like(uniforms, dtype=torch.long)
        head, codebook, cache = branch
        condition = None if condition is None else self._for_all_rows(condition)
        scale = self.scales.index_select(0, self.position)
        logits = head.first_step(self.states, condition, cache)
        codes: list[Tensor] = []
        code_sum: Tensor | float = 0.0
        for level in range(head.depth):
            if self.options.guided:
                logits = sampling.guide(logits.float(), scale)
            codes.append(sampling.draw_codes(logits, uniforms[:, level], self.options, level))
            if level + 1 < head.depth:
                code_sum = code_sum + codebook.embed_depth(codes[-1], level)
                logits = head.next_step(self._for_all_rows(code_sum), level + 1, cache)
        return torch.stack(codes, dim=1)

    def _for_all_rows(self, x: Tensor) -> Tensor:
        """Both branches continue with the same sampled code."""
        return torch.cat([x, x]) if self.options.guided else x


def _with_unconditional(prompt: ImagePrompt, unconditional: Tensor) -> ImagePrompt:
    """The prompts with the unconditional one (L,) as last row, all left-padded to one length."""
    row = unconditional.to(prompt.input_ids.device)
    length = max(prompt.input_ids.shape[1], row.shape[0])
    count = prompt.input_ids.shape[0]
    ids = prompt.input_ids.new_zeros(count + 1, length)
    mask = prompt.attention_mask.new_zeros(count + 1, length)
    ids[:count, length - prompt.input_ids.shape[1] :] = prompt.input_ids
    mask[:count, length - prompt.input_ids.shape[1] :] = prompt.attention_mask
    ids[count, length - row.shape[0] :] = row
    mask[count, length - row.shape[0] :] = 1
    return ImagePrompt(ids, mask, prompt.codes)
