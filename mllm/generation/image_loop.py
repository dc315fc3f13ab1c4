"""The image loop: codes of whole images, position by position and depth by depth.

Shapes: B prompts, R = B x images per prompt, P positions, D depths, N codes, C code dimension, H hidden size.
With guidance every tensor of the model has 2R rows: the R conditional ones, then the unconditional ones.

A position takes two steps: `sample` turns the LLM's states into codes, `advance` turns the codes into the
next states. Both work on tensors in place and return nothing, so that nothing waits for the host and each can
be compiled as one graph.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tokenizer import VisualCodes
from ..protocol import UnifiedModel
from .progress import Progress
from .sampling import ImageSamplingConfig, guidance_scales, guide, image_uniforms, sample_codes
from .step_decoder import StepDecoder

# A step of a position: `ImageLoop.sample` or `advance`, compiled or not.
Step = Callable[["ImageLoop", UnifiedModel], None]


class GenerationCancelled(Exception):
    """A `progress` callback returned False; unfinished images are dropped."""


@dataclass
class ImagePrompt:
    """Left-padded sequences (B, L) that end with `<|image_start|>`, their mask, and their images' codes."""

    input_ids: Tensor
    attention_mask: Tensor
    codes: VisualCodes | None = None

    def with_unconditional(self, unconditional: Tensor) -> "ImagePrompt":
        """The prompts with the unconditional one (L,) as last row, all left-padded to one length."""
        count, own = self.input_ids.shape
        length = max(own, len(unconditional))
        ids, mask = (given.new_zeros(count + 1, length) for given in (self.input_ids, self.attention_mask))
        ids[:count, length - own :], mask[:count, length - own :] = self.input_ids, self.attention_mask
        ids[count, length - len(unconditional) :] = unconditional.to(ids.device)
        mask[count, length - len(unconditional) :] = 1
        return ImagePrompt(ids, mask, self.codes)


class ImageLoop:
    """Generates `rows` images in one batch; a prompt and its image have at most `capacity` positions.

    `compile`: True compiles both steps (with CUDA graphs on CUDA), a string names a backend of
    `torch.compile`. An object is reusable for consecutive calls.
    """

    def __init__(
        self,
        model: UnifiedModel,
        options: ImageSamplingConfig,
        rows: int,
        capacity: int,
        compile: bool | str = False,
    ) -> None:
        # A loop is kept as long as its model and must not refer to it: every call gets the model.
        self.options, self.rows, self.config, self.compile = options, rows, model.config, compile
        self.all_rows = 2 * rows if options.guided else rows
        self.decoder = StepDecoder(model, self.all_rows, capacity, fixed_shape=bool(compile))
        self.caches = {
            name: branch.depth_transformer.new_cache(self.all_rows) for name, branch in model.branches.items()
        }
        self._allocate(model.dtype, model.device)
        self._sample_step, self._advance_step = self._steps()

    @torch.no_grad()
    def generate(
        self,
        model: UnifiedModel,
        prompt: ImagePrompt,
        images_per_prompt: int,
        seeds: Sequence[int],
        first_image_index: int = 0,
        progress: Progress | None = None,
    ) -> VisualCodes:
        """Codes (R, P, D) of both branches, in order of prompts.

        Image j of prompt b is sampled from the stream (seeds[b], first_image_index + j). With guidance the
        last prompt is the unconditional one.

        Raises:
            GenerationCancelled: `progress` returned False.
        """
        indices = range(first_image_index, first_image_index + images_per_prompt)
        self._set_noise([(seed, index) for seed in seeds for index in indices])
        self._prefill(model, prompt, images_per_prompt)
        self.position.zero_()
        positions = self.config.num_positions
        with ExitStack() as stack:
            if self.compile:
                # Numbers of the language model's settings become constants, not inputs on the CPU, which
                # would split a CUDA graph.
                stack.enter_context(torch._dynamo.config.patch(specialize_float=True))
            for position in range(1, positions + 1):
                self._sample_step(self, model)
                if progress is not None and progress(position, positions) is False:
                    raise GenerationCancelled(f"cancelled after {position} of {positions} positions")
                if position < positions:
                    self._advance_step(self, model)
                if position == 1 and self.compile:
                    # The tensors stay the same until the end: guards were checked once.
                    stack.enter_context(torch.compiler.set_stance("default", skip_guard_eval_unsafe=True))
        return VisualCodes(**{name: codes.clone() for name, codes in self.codes.items()})

    # ---- state

    def _allocate(self, dtype: torch.dtype, device: torch.device) -> None:
        """The tensors that the steps work on."""
        config, positions = self.config, self.config.num_positions
        self.depths = {name: codebook.depth for name, codebook in config.codebooks.items()}
        self.states = torch.zeros(self.all_rows, config.text_config.hidden_size, dtype=dtype, device=device)
        noise = positions, self.rows, sum(self.depths.values())
        self.uniforms = torch.zeros(noise, dtype=torch.float32, device=device)
        self.scales = guidance_scales(self.options, positions).to(device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.codes = {
            name: torch.zeros(self.rows, positions, depth, dtype=torch.long, device=device)
            for name, depth in self.depths.items()
        }

    def _set_noise(self, streams: Sequence[tuple[int, int]]) -> None:
        """The random numbers of all images, each from its seed and index."""
        positions, _, codes = self.uniforms.shape
        uniforms = [image_uniforms(seed, index, positions, codes) for seed, index in streams]
        self.uniforms.copy_(torch.stack(uniforms, dim=1))

    def _prefill(self, model: UnifiedModel, prompt: ImagePrompt, images_per_prompt: int) -> None:
        """Run every prompt once; each of its images continues from there."""
        count = prompt.input_ids.shape[0] - self.options.guided
        rows = torch.arange(count, device=self.states.device).repeat_interleave(images_per_prompt)
        if self.options.guided:
            rows = torch.cat([rows, torch.full_like(rows, count)])
        embeds = model.embed_sequence(prompt.input_ids, prompt.codes)
        self.states.copy_(self.decoder.prefill(embeds, prompt.attention_mask, rows))

    # ---- the two steps of a position

    def _steps(self) -> tuple[Step, Step]:
        """`sample` and `advance` as plain functions: bound methods would make a reference cycle."""
        steps = ImageLoop.sample, ImageLoop.advance
        if not self.compile:
            return steps
        caches = [one for cache in self.caches.values() for one in cache.tensors()]
        for tensor in (*vars(self).values(), *self.codes.values(), *caches):
            if isinstance(tensor, Tensor):
                torch._dynamo.mark_static_address(tensor)  # CUDA graphs may then write to it
        if isinstance(self.compile, str):
            sample, advance = (torch.compile(step, backend=self.compile) for step in steps)
        else:
            mode = "reduce-overhead" if self.states.device.type == "cuda" else None
            sample, advance = (torch.compile(step, dynamic=False, mode=mode) for step in steps)
        return sample, advance

    def sample(self, model: UnifiedModel) -> None:
        """Sample the codes of the current position from the states."""
        # Each branch has its own random numbers, in any order of sampling.
        noise = self.uniforms.index_select(0, self.position)[0].split(list(self.depths.values()), dim=-1)
        uniforms = dict(zip(self.depths, noise, strict=True))
        found: dict[str, Tensor] = {}
        for name in self.config.sampling_order:
            condition = model.branches.condition(name, found)
            found[name] = self._sample_branch(model, name, condition, uniforms[name])
            self.codes[name].index_copy_(1, self.position, found[name].unsqueeze(1))

    def advance(self, model: UnifiedModel) -> None:
        """Feed the current position's codes to the LLM, which gives the states of the next one."""
        codes = {name: known.index_select(1, self.position)[:, 0] for name, known in self.codes.items()}
        embeds = model.embed_codes(codes, self.position.expand(self.rows))
        self.states.copy_(self.decoder.advance(self._for_all_rows(embeds)))
        self.position.add_(1)

    def _sample_branch(
        self, model: UnifiedModel, name: str, condition: Tensor | None, uniforms: Tensor
    ) -> Tensor:
        """The codes (R, D) of a branch, from uniforms (R, D) and features (R, C) of the condition, if any."""
        branch, cache = model.branches[name], self.caches[name]
        head, codebook = branch.depth_transformer, branch.codebook
        condition = None if condition is None else self._for_all_rows(condition)
        scale = self.scales.index_select(0, self.position)
        logits = head.first_step(self.states, condition, cache)
        codes: list[Tensor] = []
        code_sum: Tensor | float = 0.0
        for level in range(head.depth):
            if self.options.guided:
                logits = guide(logits.float(), scale)
            codes.append(sample_codes(logits, uniforms[:, level], self.options, level))
            if level + 1 < head.depth:
                code_sum = code_sum + codebook.embed_depth(codes[-1], level)
                logits = head.next_step(self._for_all_rows(code_sum), level + 1, cache)
        return torch.stack(codes, dim=1)

    def _for_all_rows(self, x: Tensor) -> Tensor:
        """Repeat `x` for the unconditional rows, which continue with the same sampled codes."""
        return torch.cat([x, x]) if self.options.guided else x
