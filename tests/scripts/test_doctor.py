"""`dualtoken doctor`: what it finds, what it advises, and that no check ends the others."""

import importlib
import json
import shutil
import subprocess
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch

from dualtoken.scripts import cli, doctor
from dualtoken.scripts.diagnosis import computing, hardware, packages, processes, proof
from dualtoken.scripts.diagnosis.finding import Finding, findings, in_lines
from dualtoken.scripts.diagnosis.proofs import evidence

Usage = namedtuple("Usage", "total used free")


def broken():
    raise OSError("no such device\nand more")


def fine():
    yield Finding("a topic", "ok", "works")


def test_an_error_in_a_check_is_a_failure_and_the_others_still_run(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "checks", lambda: {"first": broken, "second": fine})
    assert cli.main(["doctor"]) == 1
    first, second, _, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["failure", "first", "OSError:", "no", "such", "device"]
    assert second.split() == ["ok", "a", "topic", "works"]
    assert last == "1 failure"


def test_json_holds_every_finding(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "checks", lambda: {"second": fine})
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"topic": "a topic", "level": "ok", "text": "works", "remedy": ""}
    ]


def test_a_remedy_stands_below_its_finding():
    lines = in_lines(Finding("disk", "warning", "1 GiB " * 30, "a larger disk")).splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 110 for line in lines)
    assert lines[-1].split(":") == [" " * 28 + "remedy", " a larger disk"]


@pytest.mark.parametrize(
    ("version", "level"), [("1.0", "failure"), (None, "failure"), ("5.24.0", "ok"), ("5.24.0rc1", "ok")]
)
def test_versions_are_held_against_the_requirements(monkeypatch, version, level):
    monkeypatch.setattr(metadata, "requires", lambda name: ["transformers<5.25,>=5"])
    monkeypatch.setattr(packages, "version_of", lambda name: version)
    (found,) = [finding for finding in packages.check_versions() if finding.topic == "core packages"]
    assert found.level == level
    assert ("pip install" in found.remedy) == (level == "failure")


def test_a_missing_extra_is_a_note(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["flash-attn; extra == 'gpu'"])
    monkeypatch.setattr(packages, "version_of", lambda name: None)
    (found,) = [finding for finding in packages.check_versions() if finding.topic == "extra gpu"]
    assert found.level == "note"
    assert "flash attention" in found.text
    assert "[gpu]" in found.remedy


def test_little_room_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 2**26))
    for check in (lambda: hardware.check_shared_memory(tmp_path), hardware.check_disk):
        for finding in check():
            assert finding.level == "warning"
            assert finding.remedy


def test_a_driver_that_torch_does_not_see_is_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (found,) = hardware.check_gpus()
    assert found.level == "failure"
    assert "CUDA_VISIBLE_DEVICES" in found.remedy


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    (found,) = hardware.check_processor()
    assert found.level == "warning"
    assert "OMP_NUM_THREADS=" in found.remedy


def test_wrong_products_in_bf16_are_a_failure(monkeypatch):
    assert next(computing.check_bf16()).level in ("ok", "note")
    monkeypatch.setattr(computing, "BF16_ERROR", 0.0)
    (found,) = computing.check_bf16()
    assert found.level == "failure"
    assert found.remedy == "run.precision: fp32"


def test_the_small_model_answers_and_generates():
    (found,) = computing.check_small_model()
    assert found.level == "ok", found.text
    assert "'green'" in found.text


def test_processes_that_hang_are_reported(monkeypatch):
    monkeypatch.setattr(processes, "launch", lambda *args, **kwargs: None)
    (found,) = processes.check_processes()
    assert found.level == "failure"
    assert "NCCL_DEBUG" in found.remedy


@pytest.mark.slow
def test_two_processes_train():
    (found,) = processes.check_processes()
    assert found.level == "ok", found.text


def test_every_topic_has_a_check():
    assert all(map(callable, doctor.checks().values()))
    topics = {
        finding.topic for finding in findings({"x": hardware.check_memory, "y": hardware.check_open_files})
    }
    assert {"memory", "open files"} <= topics


# --- the proof ----------------------------------------


def test_without_a_gpu_the_proof_is_refused(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cli.main(["doctor", "--gpu-proof", "--output", str(tmp_path / "proof")]) == 2
    assert "--gpu-proof needs 1 GPU, and torch sees 0" in capsys.readouterr().err
    assert not (tmp_path / "proof").exists()


def test_every_proof_is_a_module():
    for name in proof.PROOFS:
        module = importlib.import_module(f"dualtoken.scripts.diagnosis.proofs.{name}")
        assert callable(module.prove)


def test_a_proof_that_crashes_fails_alone_and_is_run_again(monkeypatch, tmp_path, capsys):
    ended = iter([("x" * 9 + "\nsegmentation fault", None), ("", {"holds": True, "rows": [ROW]})])

    def run(command, stdout, stderr, timeout):
        log, found = next(ended)
        stdout.write(log.encode())
        if found is not None:
            output = command[command.index("--output") + 1]
            Path(output).write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0 if found else 139)

    monkeypatch.setattr(proof.subprocess, "run", run)
    (failed,) = proof.prove(["codes"], "cpu", 2, tmp_path)
    assert not failed["holds"]
    assert failed["error"] == "segmentation fault"
    assert "segmentation fault" in (tmp_path / "report.md").read_text()
    for _ in range(2):  # the second time the finished proof is taken as it is
        (passed,) = proof.prove(["codes"], "cpu", 2, tmp_path)
        assert passed["holds"]
    assert "| difference | 0.25 | <= 1 | yes |" in (tmp_path / "report.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert "FAILS  codes" in capsys.readouterr().out


ROW = {"name": "difference", "value": 0.25, "allowed": "<= 1", "holds": True}


def test_a_row_that_does_not_hold_fails_its_proof():
    assert evidence.at_most("a", 1.0, 1.0).holds
    assert not evidence.at_most("a", float("nan"), 1.0).holds
    assert not evidence.Evidence([evidence.at_most("a", 2.0, 1.0), evidence.left_out("b", "no")]).holds
    assert not evidence.Evidence([]).holds
    assert evidence.Evidence([evidence.left_out("b", "no")]).holds


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_proof_can_be_rehearsed_on_a_cpu(tmp_path):
    assert cli.main(["doctor", "--rehearse", "--output", str(tmp_path / "proof")]) == 0


@pytest.mark.gpu
@pytest.mark.timeout(7200)
def test_the_proof_on_gpus(tmp_path):
    assert cli.main(["doctor", "--gpu-proof", "--output", str(tmp_path / "proof")]) == 0
