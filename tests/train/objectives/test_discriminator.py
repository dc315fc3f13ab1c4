"""The discriminator: what the tokenizer feels of it, how it trains, and how it resumes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dualtoken.common.errors import UserError
from dualtoken.train.config.tokenizer import AdversarialConfig
from dualtoken.train.objectives.tokenizer.discriminator import (
    Adversary,
    PatchDiscriminator,
)

from ..conftest import Chain, kill_training, run_training
from ..test_training import assert_same_losses, losses

SMALL = AdversarialConfig(layers=1, channels=8, lr=2e-3)


def images(seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_one_logit_for_each_patch() -> None:
    assert PatchDiscriminator(layers=3, channels=8)(torch.rand(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert not list(PatchDiscriminator().buffers())  # nothing that could differ between processes


def test_the_generator_loss_reaches_the_image_and_not_the_discriminator() -> None:
    adversary = Adversary(SMALL)
    image = images(0).requires_grad_()
    loss = adversary.generator_loss(image)
    assert loss.shape == (8,)
    loss.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversary.model.parameters())
    assert all(parameter.requires_grad for parameter in adversary.model.parameters())


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 2.0), (1e-3, 0.3), (1e3, 10.0)])
def test_adaptive_weight_is_the_ratio_of_the_gradients_within_bounds(scale: float, expected: float) -> None:
    last = nn.Parameter(torch.ones(4))
    adversary = Adversary(SMALL)
    weight = adversary.adaptive_weight(scale * 6.0 * last.sum(), 3.0 * last.sum(), last)
    assert float(weight) == pytest.approx(expected, rel=1e-3)
    assert float(adversary.metrics["adaptive_weight"]) == float(weight)


def test_it_learns_to_tell_reconstructions_from_images_and_resumes_exactly() -> None:
    torch.manual_seed(0)
    whole = Adversary(SMALL)
    resumed = Adversary(SMALL)
    first = 0.0
    for step in range(30):
        whole.step([(images(step), images(step + 100, shift=0.3))])
        first = first or float(whole.metrics["discriminator_loss"])
        if step == 14:
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        if step > 14:
            resumed.step([(images(step), images(step + 100, shift=0.3))])
    assert float(whole.metrics["discriminator_loss"]) < 0.7 * first
    assert float(whole.metrics["logits_real"]) > float(whole.metrics["logits_fake"])
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_accumulated_batches_count_equally() -> None:
    together = Adversary(SMALL)
    start = copy.deepcopy(together.model.state_dict())
    batches = [(images(0), images(1)), (images(2), images(3))]
    together.step(batches)
    halves = []
    for batch in batches:
        single = Adversary(SMALL)
        single.model.load_state_dict(start)
        single.step([batch])
        halves.append([parameter.grad for parameter in single.model.parameters()])
    for parameter, one, other in zip(together.model.parameters(), *halves, strict=True):
        torch.testing.assert_close(parameter.grad, (one + other) / 2)


ADVERSARIAL = (
    *("--tokenizer.adversarial.layers", "1", "--tokenizer.adversarial.channels", "8"),
    *("--tokenizer.adversarial.start_step", "1", "--tokenizer.adversarial.warmup_steps", "1"),
)


@pytest.mark.slow
def test_training_with_a_discriminator_resumes_exactly(chain: Chain, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_training([*chain.recipe("tokenizer", whole), *ADVERSARIAL])
    run_training([*chain.recipe("tokenizer", resumed), *ADVERSARIAL, "--run.stop_after", "4"])
    run_training([*chain.recipe("tokenizer", resumed), *ADVERSARIAL])
    assert_same_losses(losses(whole), losses(resumed))
    active = [line["loss/adversarial"] != 0.0 for line in losses(whole)]
    assert active == [False, False, True, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_processes_train_and_resume_with_a_discriminator(
    stage: int, chain: Chain, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*ADVERSARIAL, "--run.zero_stage", str(stage), "--run.gradient_accumulation_steps", "2"]
    run_training([*chain.recipe("tokenizer", whole), *options], processes=2)
    run_training([*chain.recipe("tokenizer", resumed), *options, "--run.stop_after", "4"], processes=2)
    run_training([*chain.recipe("tokenizer", resumed), *options], processes=2)
    assert_same_losses(losses(whole), losses(resumed))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_the_middle_goes_on_as_if_nothing_had_happened(chain: Chain, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [*ADVERSARIAL, "--run.zero_stage", "2", "--run.steps", "200", "--run.save_every", "20"]
    run_training([*chain.recipe("tokenizer", whole), *options], processes=2)
    kill_training([*chain.recipe("tokenizer", killed), *options], log=killed / "log.jsonl", step=110)
    assert not (killed / "model").exists()
    run_training([*chain.recipe("tokenizer", killed), *options], processes=2)
    assert len(losses(killed)) == 200
    assert_same_losses(losses(whole), losses(killed))
    lines = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    for branch in ("pixel", "semantic"):
        # The first steps are not quantized yet.
        differences = [line.get(f"{branch}_rank_difference") for line in lines]
        assert set(differences[2:]) == {0.0}


def test_perceptual_weights_come_from_a_local_file(tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips")
    from dualtoken.tokenizer.perceptual import PerceptualLoss

    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    torch.save(reference.state_dict(), tmp_path / "lpips.pt")
    loss = PerceptualLoss(str(tmp_path / "lpips.pt"))
    a, b = images(0, -0.5), images(1, -0.5)
    a.requires_grad_()
    distance = loss(a, b)
    torch.testing.assert_close(distance, reference(a, b).flatten())
    distance.sum().backward()
    assert a.grad is not None
    assert loss(b, b).abs().max() < 1e-6
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken\.pt"):
        PerceptualLoss(str(tmp_path / "broken.pt"))
