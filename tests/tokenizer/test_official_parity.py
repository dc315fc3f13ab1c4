"""The tokenizer computes what the released code computes: in eval mode, in training, and its gradients."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualtoken.tokenizer import DecoderConfig, DualTokenizer, ResidualQuantizer, UserError
from dualtoken.tokenizer.official import rename
from dualtoken.tokenizer.pixel_decoder import PixelDecoder

from .conftest import GOLDEN, TOLERANCE


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0.0)


def test_evaluation(official, golden_io):
    with torch.no_grad():
        out = official(golden_io["images"], return_hidden_states=True)
    assert torch.equal(out.codes.pixel, golden_io["code_pix"])
    assert torch.equal(out.codes.semantic, golden_io["code_sem"])
    for index, state in enumerate(out.hidden_states):
        close(state, golden_io[f"hidden_states/{index}"])
    close(official.pixel_features(out.hidden_states), golden_io["hook/quantizer_pix_in"])
    close(official.semantic_features(out.hidden_states), golden_io["hook/quantizer_sem_in"])
    close(out.semantic_features, golden_io["z_q_sem"])
    close(out.reconstruction, golden_io["image_recon"])
    close(out.pooled, golden_io["pooler_output"])
    close(out.pixel_commitment_loss, golden_io["quant_loss_pix"])
    close(out.semantic_commitment_loss, golden_io["quant_loss_sem"])


def test_embeddings_of_codes_images_and_texts(official, golden_io):
    close(official.pixel_quantizer.embed(golden_io["code_pix"]), golden_io["embed_code_pix"])
    per_depth = official.semantic_quantizer.embed_per_depth(golden_io["code_sem"][:1])
    close(per_depth, golden_io["code_emb_depth_sem"])
    with torch.no_grad():
        close(official.decode(golden_io["code_pix"]), golden_io["image_recon"])
        features = official.get_image_features(golden_io["images"])
        close(features, golden_io["pooler_output"])
        close(torch.nn.functional.normalize(features, dim=-1), golden_io["image_features"])
        close(official.get_text_features(golden_io["text_ids"]), golden_io["text_embeds"])
        close(official.get_text_features(golden_io["text_ids_short"]), golden_io["text_embeds_short"])


def start_from(quantizer: ResidualQuantizer, before: dict[str, torch.Tensor]) -> None:
    quantizer.codebooks.vectors.copy_(before["weight"][:-1].unsqueeze(0))
    quantizer.codebooks.counts.copy_(before["cluster_size_ema"].unsqueeze(0))
    quantizer.codebooks.sums.copy_(before["embed_ema"].unsqueeze(0))


@pytest.mark.parametrize(
    ("branch", "given", "expected", "steps"),
    [
        ("pixel", "rq_pix", "rq_pix", 2),
        ("semantic", "rq_ema_sem", "rq_ema_sem_NOT_OFFICIAL_cache_cloned", 1),
    ],
)
def test_codebook_training(official, golden_train, branch, given, expected, steps):
    quantizer = getattr(official, f"{branch}_quantizer").train()
    names = ("weight", "cluster_size_ema", "embed_ema")
    start_from(quantizer, {name: golden_train[f"{given}/before/0.{name}"] for name in names})
    for step in range(1, steps + 1):
        step_in = {name: golden_train[f"{given}/step{step}/{name}"] for name in ("x", "cotangent")}
        features = step_in["x"].clone().requires_grad_()
        out = quantizer(features)
        ((out.quantized * step_in["cotangent"]).sum() + out.commitment_loss).backward()
        assert torch.equal(out.codes, golden_train[f"{given}/step{step}/code"])
        close(out.quantized, golden_train[f"{given}/step{step}/z_q"])
        close(out.commitment_loss, golden_train[f"{given}/step{step}/loss"])
        close(features.grad, golden_train[f"{given}/step{step}/grad_x"])
        after = f"{expected}/step{step}/after/0."
        close(quantizer.codebooks.vectors[0], golden_train[after + "weight"][:-1])
        close(quantizer.codebooks.counts[0], golden_train[after + "cluster_size_ema"])
        close(quantizer.codebooks.sums[0], golden_train[after + "embed_ema"])


def test_one_training_step_of_the_complete_model(official, golden_io, golden_train):
    out = official.train()(golden_io["images"])
    mse = (out.reconstruction - golden_io["images"]).square().mean()
    commitment = out.pixel_commitment_loss + out.semantic_commitment_loss
    loss = 5 * (mse + commitment) + out.pooled.square().mean() + out.semantic_features.square().mean()
    loss.backward()
    assert torch.equal(out.codes.pixel, golden_train["model_train/code_pix"])
    close(out.reconstruction, golden_train["model_train/image_recon"])
    close(loss, golden_train["model_train/total_loss"])
    gradients = {name: parameter.grad for name, parameter in official.named_parameters()}
    prefix = "model_train/grad/"
    compared = [name for name in golden_train if name.startswith(prefix)]
    assert len(compared) > 10
    for name in compared:
        close(gradients[rename(name.removeprefix(prefix), levels=3)], golden_train[name])
    norm = torch.nn.utils.get_total_norm([grad for grad in gradients.values() if grad is not None])
    torch.testing.assert_close(norm, golden_train["model_train/grad_norm_all"], rtol=1e-5, atol=0.0)


def test_decoder_that_changes_width():
    decoder = PixelDecoder(DecoderConfig(4, 64, 64, (1, 1), 0, (4,)), feature_dim=96)
    released = load_file(GOLDEN / "C_decoder" / "state_dict.safetensors")
    state = {rename(name, 2).removeprefix("pixel_decoder."): tensor for name, tensor in released.items()}
    decoder.load_state_dict(state)
    tensors = load_file(GOLDEN / "C_decoder" / "io.safetensors")
    with torch.no_grad():
        close(decoder(tensors["postquant_map"]), tensors["out"])


def test_reads_pt_with_prefix_and_long_branch_names(tmp_path, official, golden_io):
    released = load_file(GOLDEN / "A" / "state_dict.safetensors")
    long = {"_pix.": "_pixel.", "_sem.": "_semantic."}
    renamed = {}
    for name, tensor in released.items():
        for short, full in long.items():
            name = name.replace(short, full)
        renamed["module." + name] = tensor
    torch.save({"epoch": 20, "name": "x", "state_dict": renamed}, tmp_path / "epoch_20.pt")
    model = DualTokenizer.from_official(tmp_path / "epoch_20.pt", GOLDEN / "A" / "config.json")
    for name, tensor in official.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(model.encode(golden_io["images"]).pixel, golden_io["code_pix"])


def test_refuses_incomplete_and_wrong_files(tmp_path):
    released = load_file(GOLDEN / "A" / "state_dict.safetensors")
    released.pop("decoder.conv_in.bias")
    save_file(released, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"pixel_decoder\.conv_in\.bias"):
        DualTokenizer.from_official(tmp_path / "part.safetensors", GOLDEN / "A" / "config.json")
    with pytest.raises(UserError, match="does not exist"):
        DualTokenizer.from_official(tmp_path / "none.pt", GOLDEN / "A" / "config.json")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"junk\.pt"):
        DualTokenizer.from_official(tmp_path / "junk.pt", GOLDEN / "A" / "config.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="lacks"):
        DualTokenizer.from_official(tmp_path / "part.safetensors", tmp_path / "other.json")
