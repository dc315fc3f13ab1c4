"""Image generation: our loop against the usual one and against transformers' Janus.

`plain` is what the loops of published models of this kind do, written here: the language model has a growing
cache, the depth transformers have none, so every depth runs all depths before it again, embeds their codes
again, and computes logits for all of them. `Janus` is transformers' generate(generation_mode="image") with
a language model of the same shape and as many positions; it predicts one code for a position, we predict two
branches of several depths. Random weights, guidance on (two rows for each image).

Examples:
  python benchmarks/generation.py
  python benchmarks/generation.py --size full   # 1.5 B parameters, 27 x 27 positions, 16 images: for a GPU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measure import argument_parser, compare, costs, default_device, report
from torch import Tensor

from dualtoken.mllm import DualTokenConfig, DualTokenForConditionalGeneration, ImageSamplingConfig
from dualtoken.mllm.branch import Branch
from dualtoken.mllm.generation.sampling import guide, sample_codes
from dualtoken.mllm.settings import CodebookConfig, DepthTransformerConfig

PROMPT_LENGTH, GUIDANCE = 16, 2.0
H100_BYTES_PER_SECOND = 3.35e12


@dataclass(frozen=True)
class Size:
    """Shapes of a model, and how many images are generated at once."""

    llm: dict[str, int]
    heads: DepthTransformerConfig
    codebook: CodebookConfig
    side: int
    images: int
    dtype: torch.dtype


SIZES = {
    "small": Size(  # the model that comes with the package
        llm={"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 512},
        heads=DepthTransformerConfig(hidden_size=128, num_layers=3, num_heads=4, intermediate_size=256),
        codebook=CodebookConfig(num_codes=512, code_dim=32, depth=4, shared_codebook=False),
        side=8,
        images=1,
        dtype=torch.float32,
    ),
    "full": Size(
        llm={
            "hidden_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
        },
        heads=DepthTransformerConfig(hidden_size=1024, num_layers=3, num_heads=16, intermediate_size=4096),
        codebook=CodebookConfig(num_codes=16384, code_dim=32, depth=8, shared_codebook=True),
        side=27,
        images=16,
        dtype=torch.bfloat16,
    ),
}


def llm_fields(size: Size) -> dict[str, Any]:
    return {**size.llm, "vocab_size": 2048, "max_position_embeddings": 2048}


def dualtoken_model(size: Size, device: str) -> DualTokenForConditionalGeneration:
    torch.manual_seed(0)
    tokens = ("bos", "pad", "eos", "user", "assistant", "image_start", "image", "image_end", "unconditional")
    token_ids: dict[str, Any] = {f"{name}_token_id": index for index, name in enumerate(tokens)}
    config = DualTokenConfig(
        text_config={"model_type": "llama", **llm_fields(size)},
        pixel_codebook=size.codebook,
        semantic_codebook=size.codebook,
        grid_size=(size.side, size.side),
        depth_transformer=size.heads,
        shared_classifier=size.codebook.shared_codebook,
        semantic_condition="pixel",
        **token_ids,
    )
    with torch.device(device):
        model = DualTokenForConditionalGeneration(config)
    for _, branch in model.branches.items():
        branch.codebook.assign(torch.randn_like(branch.codebook.vectors))
    return model.eval().to(size.dtype)


class PlainLoop:
    """The usual loop: depths without a cache, codes embedded again, logits of all depths."""

    def __init__(self, model: DualTokenForConditionalGeneration, images: int) -> None:
        self.model, self.images = model, images
        self.options = ImageSamplingConfig(guidance_scale=GUIDANCE)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor) -> Tensor:
        model = self.model
        prompt = input_ids.repeat_interleave(self.images, dim=0)
        rows = torch.cat([prompt, torch.full_like(prompt, model.config.unconditional_token_id)])
        embeds, cache, codes = model.get_input_embeddings()(rows), None, []
        for position in range(model.config.num_positions):
            output = model.language_model.base_model(
                inputs_embeds=embeds, past_key_values=cache, use_cache=True
            )
            cache, state = output.past_key_values, output.last_hidden_state[:, -1]
            both: dict[str, Tensor] = {}
            for name in model.config.sampling_order:
                sampled = self._sample(model.branches[name], state, model.branches.condition(name, both))
                both[name] = torch.cat([sampled, sampled])
            codes.append(torch.cat([both[name][: self.images] for name in model.config.branches], dim=-1))
            index = torch.full((2 * self.images,), position, device=state.device)
            embeds = model.embed_codes(both, index).unsqueeze(1).to(model.dtype)
        return torch.stack(codes, dim=1)

    def _sample(self, branch: Branch, state: Tensor, condition: Tensor | None) -> Tensor:
        head, codebook = branch.depth_transformer, branch.codebook
        codes = torch.zeros(state.shape[0], 0, dtype=torch.long, device=state.device)
        for level in range(head.depth):
            x = head._first_input(state, condition).unsqueeze(1)
            if level:
                sums = codebook.embed_per_depth(codes).cumsum(dim=1)
                x = torch.cat([x, head.from_code(sums.to(x.dtype))], dim=1)
            x = x + head.position.weight[: level + 1]
            for layer in head.layers:
                x = layer(x)
            outputs = head.norm(x)
            logits = torch.stack(
                [head.classify(outputs[:, depth], depth) for depth in range(level + 1)], dim=1
            )
            guided = guide(logits[:, -1].float(), GUIDANCE)
            uniforms = torch.rand(self.images, device=state.device)
            new = sample_codes(guided, uniforms, self.options, level)
            codes = torch.cat([codes, torch.cat([new, new]).unsqueeze(1)], dim=1)
        return codes[: self.images]


def janus_step(size: Size, device: str) -> Callable[[], Any]:
    """transformers' Janus with this language model; its vision parts are as small as they can be."""
    from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration
    from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

    hidden, codes = size.llm["hidden_size"], size.codebook.num_codes
    torch.manual_seed(0)
    config = JanusConfig(
        text_config={"model_type": "llama", **llm_fields(size)},
        vision_config=JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            projection_dim=hidden,
            num_image_tokens=size.side**2,
        ),
        vq_config=JanusVQVAEConfig(
            num_embeddings=codes,
            base_channels=32,
            latent_channels=32,
            projection_dim=hidden,
            image_token_embed_dim=hidden,
            num_patches=size.side,
        ),
        image_token_id=5,
    )
    with torch.device(device):
        model = JanusForConditionalGeneration(config).eval().to(size.dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, guidance_scale=GUIDANCE, do_sample=True
    )
    model.generation_config.generation_kwargs = {"boi_token_id": 4}
    inputs = torch.full((1, PROMPT_LENGTH), 7, device=device)

    def step() -> Any:
        return model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_mode="image",
            num_return_sequences=size.images,
            guidance_scale=GUIDANCE,
            do_sample=True,
        )

    return step


def build(kind: str, name: str) -> Callable[[], Any]:
    """One generation by "dualtoken", "dualtoken, compiled", "plain" or "Janus"."""
    size, device = SIZES[name], default_device()
    if kind == "Janus":
        return janus_step(size, device)
    model = dualtoken_model(size, device)
    ids = torch.full((1, PROMPT_LENGTH), 7, device=device)
    ids[:, -1] = model.config.image_start_token_id
    if kind == "plain":
        return partial(PlainLoop(model, size.images), ids)
    return partial(
        model.generate,
        input_ids=ids,
        generation_mode="image",
        num_return_sequences=size.images,
        guidance_scale=GUIDANCE,
        seed=0,
        compile=kind.endswith("compiled"),
    )


def weight_reading(name: str) -> dict[str, float]:
    """The bytes that one image must read at least, and the seconds an H100 takes to read them.

    A position reads the language model once, and every branch's depth transformer once per depth.
    """
    size = SIZES[name]
    with torch.device("meta"):
        model = dualtoken_model(size, "meta")
    llm: Any = model.language_model.base_model
    numbers = float(sum(p.numel() for p in llm.layers.parameters()))
    for head in (branch.depth_transformer for _, branch in model.branches.items()):
        layers = sum(p.numel() for p in head.layers.parameters())
        classifier = sum(p.numel() for p in head.classifiers.parameters()) / len(head.classifiers)
        numbers += head.depth * (layers + classifier)
    total = numbers * size.side**2 * size.dtype.itemsize
    return {"gigabytes": round(total / 1e9, 3), "seconds on an H100": round(total / H100_BYTES_PER_SECOND, 4)}


def main() -> None:
    args = argument_parser(__doc__, SIZES, "generations", repeats=3).parse_args()
    own = ("dualtoken, compiled", "dualtoken")
    measured = costs(
        {kind: partial(build, kind, args.size) for kind in (*own, "plain", "Janus")}, args.repeats
    )
    size, cases = SIZES[args.size], []
    for kind in own:
        others = {other: cost for other, cost in measured.items() if other == kind or other not in own}
        cases += compare(f"generate {size.images} images of {size.side**2} positions, {kind}", kind, others)
    report("generation", cases, weights=weight_reading(args.size))


if __name__ == "__main__":
    main()
