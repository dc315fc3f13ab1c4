"""Cached codes are the codes of the tokenizer, record for record, and are bound to it."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dualtoken.common.errors import UserError
from dualtoken.common.files import replace_folder
from dualtoken.data_pipelines import job as job_module
from dualtoken.data_pipelines import partial_output
from dualtoken.data_pipelines.codes import code_cache
from dualtoken.data_pipelines.codes.checksums import (
    check_codes_belong,
    codes_checksum,
    preprocessing_checksum,
)
from dualtoken.data_pipelines.codes.code_cache import tokenize_shards
from dualtoken.data_pipelines.codes.views import ViewOptions, views
from dualtoken.data_pipelines.job import Job, Share
from dualtoken.data_pipelines.records import EncodedImage, Record, assistant, image_part, user
from dualtoken.data_pipelines.scenes.scene import random_scene, render
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.scripts import cli
from dualtoken.tokenizer import DualTokenizer, DualTokenizerImageProcessor, StoredTokenizer

COMMAND = "dualtoken tokenize"


def job_of(folder: Path, share: Share, **options) -> Job:
    return Job(folder / "out", {"a": 1}, command=COMMAND, share=share, **options)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer) -> DualTokenizer:
    """4 × 4 positions, 3 codes of 24 per branch."""
    return tiny_tokenizer()


def picture(seed: int):
    return image_part(render(random_scene(np.random.default_rng(seed)), 24))


@pytest.fixture
def images(tmp_path):
    broken = image_part(EncodedImage(b"\x89PNG\r\n\x1a\n broken", "png"))
    with ShardWriter(tmp_path / "images", source="s", licence="l", shard_size=4) as writer:
        for number in range(7):
            writer.write(Record(f"t{number}", [user("draw"), assistant(picture(number))], {"n": number}))
        writer.write(Record("two", [user(picture(20), picture(21), "both"), assistant("yes")]), "heldout")
        writer.write(Record("text", [user("hi"), assistant("ho")]), "heldout")
        writer.write(Record("broken", [user(broken, "?"), assistant("!")]), "heldout")
    return tmp_path / "images"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_codes_replace_images_and_nothing_else_changes(tokenizer, images, tmp_path, batch_size):
    output = tmp_path / "codes"
    manifest = tokenize_shards(tokenizer, images, output, batch_size=batch_size, progress=False)
    assert manifest["counts"]["splits"] == {"train": 7, "heldout": 2}
    assert manifest["counts"]["rejected"] == 1
    processor = DualTokenizerImageProcessor(size=16)
    for split in ("train", "heldout"):
        before, after = ShardDataset(images, split), ShardDataset(output, split)
        for index in range(len(after)):
            old, new = before[index], after[index]
            assert (old.id, old.texts(), old.metadata) == (new.id, new.texts(), new.metadata)
            for image, part in zip(old.image_parts(), new.image_parts(), strict=True):
                codes = tokenizer.encode(processor(image["image"])["pixel_values"])
                assert part["pixel_codes"].dtype == np.uint16
                # Batches of other sizes may round differently, which seldom moves a code.
                assert (part["pixel_codes"] == codes.pixel[0].numpy()).mean() > 0.95
                assert (part["semantic_codes"] == codes.semantic[0].numpy()).mean() > 0.95


def test_codes_belong_to_their_tokenizer(tokenizer, images, tmp_path):
    manifest = tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False)
    check_codes_belong(manifest, codes_checksum(tokenizer))
    check_codes_belong(ShardDataset(images).manifest, codes_checksum(tokenizer))
    state = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    try:
        with torch.no_grad():
            next(tokenizer.pixel_decoder.parameters()).add_(1.0)
        check_codes_belong(manifest, codes_checksum(tokenizer))  # the decoder does not touch the codes
        with torch.no_grad():
            next(tokenizer.backbone.parameters()).add_(1.0)
        with pytest.raises(UserError, match="another tokenizer"):
            check_codes_belong(manifest, codes_checksum(tokenizer))
    finally:
        tokenizer.load_state_dict(state)


def test_the_checksum_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert codes_checksum(DualTokenizer.from_pretrained(tmp_path)) == codes_checksum(tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_have_the_checksum_of_the_tokenizer(tiny_tokenizer, tmp_path, dtype):
    """Whatever the number format and the number of files."""
    tiny_tokenizer().to(dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, stored = DualTokenizer.from_pretrained(tmp_path), StoredTokenizer.from_pretrained(tmp_path)
    assert codes_checksum(stored) == codes_checksum(loaded)
    state = loaded.state_dict()
    assert set(stored.state_dict()) == set(state)
    assert all(torch.equal(stored.state_dict()[name], state[name]) for name in state)
    assert torch.equal(
        stored.load().state_dict()["pixel_quantizer.codebooks.vectors"],
        loaded.pixel_quantizer.codebook_tensor(),
    )


def test_codes_are_not_tokenized_again(tokenizer, images, tmp_path):
    tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False)
    with pytest.raises(UserError, match="codes already"):
        tokenize_shards(tokenizer, tmp_path / "codes", tmp_path / "again", progress=False)


def test_a_record_with_codes_among_images_is_rejected(tokenizer, tmp_path):
    codes = np.zeros((4, 4, 3), np.uint16)
    part = {"type": "image", "pixel_codes": codes, "semantic_codes": codes}
    with ShardWriter(tmp_path / "mixed", source="s", licence="l") as writer:
        writer.write(Record("codes", [user(part, "?"), assistant("!")]))
        writer.write(Record("text", [user("?"), assistant("!")]))
    manifest = tokenize_shards(tokenizer, tmp_path / "mixed", tmp_path / "out", progress=False)
    assert manifest["counts"]["records"] == 1
    assert "holds codes already" in manifest["rejected"]["samples"][0]["reason"]


def test_the_command(tokenizer, images, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    DualTokenizerImageProcessor(size=16).save_pretrained(tmp_path / "tokenizer")
    arguments = ["tokenize", "--input", str(images), "--output", str(tmp_path / "out"), "--no-progress"]
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "tokenizer"), "--device", "cpu"]) == 0
    assert "9 records" in capsys.readouterr().out
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "nothing")]) == 2
    assert "--tokenizer" in capsys.readouterr().err
    arguments[4] = str(tmp_path / "codes-of-nano")
    faster = ["--encode-precision", "bf16"]
    assert cli.main([*arguments, "--tokenizer", "nano", "--device", "cpu", *faster]) == 0
    assert "9 records" in capsys.readouterr().out
    manifest = ShardDataset(tmp_path / "codes-of-nano").manifest
    assert manifest["tokenizer"]["encode_precision"] == "bf16"


# --- several processes, several attempts ----------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


KILLED = """
import os, signal, sys
from dualtoken.data_pipelines.codes import code_cache
from dualtoken.tokenizer import DualTokenizer

encode, calls = code_cache._Encoder._encode_images, []

def encode_or_die(self, images):
    calls.append(1)
    if len(calls) > int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, images)

code_cache._Encoder._encode_images = encode_or_die
tokenizer = DualTokenizer.from_pretrained(sys.argv[1])
code_cache.tokenize_shards(tokenizer, sys.argv[2], sys.argv[3], batch_size=2, progress=False)
"""


def test_a_killed_run_resumes_and_writes_the_same_bytes(tokenizer, images, tmp_path):
    """Killed in the third shard: the first two are kept, nothing half-written counts as complete."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenize_shards(tokenizer, images, tmp_path / "whole", batch_size=2, progress=False)
    arguments = [str(tmp_path / "tokenizer"), str(images), str(tmp_path / "killed"), "3"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    died = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, timeout=300)
    assert died.returncode == -signal.SIGKILL
    partial = tmp_path / "killed.partial"
    assert [path.name for path in sorted(partial.glob("0*"))] == ["000000", "000001"]
    assert not (tmp_path / "killed").exists()
    kept = (partial / "000001" / "train-00000.tar").stat()
    tokenize_shards(tokenizer, images, tmp_path / "killed", batch_size=2, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (tmp_path / "killed" / "train-00000.tar").stat().st_ino == kept.st_ino  # not made again
    assert not partial.exists()


def test_ranks_make_together_what_one_makes_alone(tokenizer, images, tmp_path):
    options = {"batch_size": 2, "progress": False}
    alone = tokenize_shards(tokenizer, images, tmp_path / "alone", **options)
    # One after the other: the last one, the main process, puts the shards together.
    with Job(tmp_path / "together", alone["plan"], command=COMMAND, share=Share(0, 3)):
        pass
    for rank in (2, 1):
        assert (
            tokenize_shards(tokenizer, images, tmp_path / "together", share=Share(rank, 3), **options) is None
        )
    tokenize_shards(tokenizer, images, tmp_path / "together", share=Share(0, 3), **options)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_the_main_process_names_whom_it_waited_for(tmp_path):
    with (
        job_of(tmp_path, Share(0, 2), patience=0.3) as work,
        pytest.raises(UserError, match=r"rank 0 waited for the shards of rank 0, 1.*nothing was written"),
    ):
        work.wait_for_all(3, lambda finished: None)


def test_unfinished_work_of_another_kind_is_refused(tokenizer, images, tmp_path):
    with Job(tmp_path / "out", {"tokenizer": "another"}, command=COMMAND):
        pass
    with pytest.raises(UserError, match=r"unfinished work that differs in .*tokenizer"):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    tokenize_shards(tokenizer, images, tmp_path / "out", progress=False, overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)


# --- outputs that last ---


def test_an_output_is_never_an_input(tokenizer, images, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "model" / "visual_tokenizer")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for output in (images, tmp_path, tmp_path / "images" / ".." / "images"):
        with pytest.raises(UserError, match="it would be lost"):
            tokenize_shards(tokenizer, images, output, progress=False, overwrite=True)
    command = ["tokenize", "--tokenizer", str(tmp_path / "model"), "--input", str(images), "--overwrite"]
    for output in (tmp_path / "model", images, tmp_path):
        assert cli.main([*command, "--output", str(output), "--no-progress"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("folder", ["out", "out.partial"])
def test_what_others_made_stays(tokenizer, images, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"{folder}.* dualtoken"):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False, overwrite=True)
    assert contents(tmp_path / folder) == {"thesis.txt": b"mine"}


def test_two_jobs_never_share_an_output(tokenizer, images, tmp_path):
    first = job_of(tmp_path, Share(0, 2, "first"))
    with first:
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
            tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
        with (
            pytest.raises(UserError, match="waited for the plan of rank 0"),
            job_of(tmp_path, Share(1, 2, "second"), patience=0.3),
        ):
            pass
        with job_of(tmp_path, Share(1, 2, "first"), patience=0.3) as other:
            assert other.assigned(4) == [1, 3]


def test_codes_outlive_a_failed_renaming(tokenizer, images, tmp_path, monkeypatch):
    tokenize_shards(tokenizer, images, tmp_path / "whole", progress=False)

    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(partial_output, "replace_folder", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match=r"cross-device.*kept in .*out\.partial/merged"):
            tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
        monkeypatch.setattr(code_cache._Encoder, "_encode_images", None)  # nothing is encoded again
    assert contents(tmp_path / "out.partial" / "merged") == contents(tmp_path / "whole")
    monkeypatch.setattr(partial_output, "replace_folder", replace_folder)
    tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("moves", [0, 1, 2, 5, 8])
def test_merging_may_be_stopped_anywhere(tokenizer, images, tmp_path, monkeypatch, moves):
    tokenize_shards(tokenizer, images, tmp_path / "whole", progress=False)
    move, left = os.replace, [moves]

    def stopped(old, new):
        left[0] -= Path(new).parent.name == "merged" and Path(old).parent != Path(new).parent
        if left[0] < 0:
            raise KeyboardInterrupt
        move(old, new)

    monkeypatch.setattr(os, "replace", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    monkeypatch.undo()
    if not (tmp_path / "out").exists():
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_a_killed_merge_left_does_not_count_as_codes(tokenizer, images, tmp_path, monkeypatch):
    """Killed after the renaming: the parts of the unfinished folder are empty, but look finished."""
    monkeypatch.setattr(job_module.shutil, "rmtree", lambda *_, **__: None)
    tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    monkeypatch.undo()
    before = contents(tmp_path / "out")
    assert list((tmp_path / "out.partial").glob("0*"))
    tokenize_shards(tokenizer, images, tmp_path / "out", progress=False, overwrite=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("garbage", ["", "null", "[]", '{"shards": 3}', "[" * 100_000])
def test_damaged_parts_are_made_again(tokenizer, images, tmp_path, monkeypatch, garbage):
    tokenize_shards(tokenizer, images, tmp_path / "whole", progress=False)
    monkeypatch.setattr(Job, "finish", None)
    with pytest.raises(TypeError):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    monkeypatch.undo()
    (tmp_path / "out.partial" / "000001" / "part.json").write_text(garbage)
    (tmp_path / "out.partial" / "000000" / "train-00000.tar").write_bytes(b"cut")
    (tmp_path / "out.partial" / "run.json").write_text(garbage)
    tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"split": "../../../x"}, {"file": "../x.tar"}, {"file": "/x.tar"}, {"split": 3}]
)
def test_names_in_a_manifest_lead_nowhere(tokenizer, images, tmp_path, change):
    path = images / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= change
    path.write_text(json.dumps(manifest))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"file|split"):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("rank", "size"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0"), ("0", "9" * 5000), ("", "")]
)
def test_ranks_are_numbers(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match="WORLD_SIZE"):
        Share.from_environment()


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": 10**9}, {"shard_size": -1}, {"shard_size": 1.5}, {"decoders": 10**6}],
)
def test_sizes_are_checked_before_any_work(tokenizer, images, tmp_path, wrong):
    with pytest.raises(UserError, match="give an integer"):
        tokenize_shards(tokenizer, images, tmp_path / "out", progress=False, **wrong)
    for views_ in ({"crops": -1}, {"crops": 10**6}, {"crop_scale": float("nan")}, {"seed": -1}, {"flips": 1}):
        with pytest.raises(UserError):
            ViewOptions(**views_)
    assert not list(tmp_path.glob("out*"))


def test_codes_of_images_prepared_otherwise_are_refused(tokenizer, images, tmp_path):
    processor = DualTokenizerImageProcessor(size=16)
    manifest = tokenize_shards(tokenizer, images, tmp_path / "a", image_processor=processor, progress=False)
    check_codes_belong(manifest, codes_checksum(tokenizer), preprocessing=preprocessing_checksum(processor))
    other = preprocessing_checksum(DualTokenizerImageProcessor(size=16, image_mean=(0.4, 0.4, 0.4)))
    with pytest.raises(UserError, match="another size, resizing or normalisation"):
        check_codes_belong(manifest, codes_checksum(tokenizer), preprocessing=other)


def test_codes_of_another_precision_are_refused(tokenizer, images, tmp_path):
    def tokenized(precision):
        tokenizer.config.encode_precision = precision
        try:
            return tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False, overwrite=True)
        finally:
            tokenizer.config.encode_precision = "fp32"

    checksum = codes_checksum(tokenizer)
    for precision in ("fp32", "bf16"):
        manifest = tokenized(precision)
        assert manifest["tokenizer"]["encode_precision"] == precision
        check_codes_belong(manifest, checksum, precision=precision)
    with pytest.raises(UserError, match=r"made in bf16.*images in fp32.*mllm.encode_precision"):
        check_codes_belong(manifest, checksum, precision="fp32")
    del manifest["tokenizer"]["encode_precision"]  # of an earlier version, which did not record it
    check_codes_belong(manifest, checksum, precision="fp32")


def test_crops_and_mirror_images_are_records_of_their_own(tokenizer, images, tmp_path):
    options = ViewOptions(crops=1, flips=True, seed=3)
    manifest = tokenize_shards(tokenizer, images, tmp_path / "views", views=options, progress=False)
    plain = tokenize_shards(tokenizer, images, tmp_path / "plain", progress=False)
    # Four views of the eight records with images that can be read, and one record of text alone.
    assert manifest["counts"]["records"] == 8 * 4 + 1
    assert manifest["counts"]["rejected"] == plain["counts"]["rejected"]
    names = [record.id for record in ShardDataset(tmp_path / "views")][:4]
    assert names == ["t0", "t0-crop1", "t0-flip", "t0-crop1-flip"]
    record = ShardDataset(images)[0]
    first, again = ([np.asarray(v.image_parts()[0]["image"]) for v in views(record, options)] for _ in "ab")
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(first[2], first[0][:, ::-1])
    assert first[1].size < first[0].size
    other = [v.image_parts()[0]["image"] for v in views(record, ViewOptions(crops=1, flips=True, seed=4))]
    assert not np.array_equal(first[1], np.asarray(other[1]))


def test_two_processes_of_torchrun(tokenizer, images, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    DualTokenizerImageProcessor(size=16).save_pretrained(tmp_path / "tokenizer")
    tokenize_shards(tokenizer, images, tmp_path / "alone", batch_size=2, progress=False)
    arguments = [
        "--input",
        str(images),
        "--output",
        str(tmp_path / "out"),
        "--no-progress",
        "--device",
        "cpu",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "dualtoken.scripts.tokenize", "--tokenizer", str(tmp_path / "tokenizer"), *arguments]
    done = subprocess.run(
        [*launcher, *command, "--batch-size", "2"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("9 records") == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * len(data)])
def test_a_damaged_shard_costs_its_own_records_only(tokenizer, images, tmp_path, damage):
    shard = images / "train-00000.tar"
    shard.with_suffix(".index.json").unlink(missing_ok=True)
    shard.write_bytes(damage(shard.read_bytes()))
    manifest = tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False)
    left = manifest["counts"]["splits"]
    assert 3 <= left["train"] < 7
    assert left["heldout"] == 2
    lost = [one["sample"] for one in manifest["rejected"]["samples"] if "train-00000" in one["sample"]]
    assert len(lost) == 7 - left["train"]


def test_a_missing_shard_is_an_error(tokenizer, images, tmp_path):
    (images / "train-00000.tar").unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar is missing"):
        tokenize_shards(tokenizer, images, tmp_path / "codes", progress=False)
