"""One thread for little work, and nobody else's number of threads touched."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from dualtoken.common.machine import LARGE_BATCH, has_fast_bf16, suitable_threads, worth_threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small() -> torch.nn.Module:
    return torch.nn.Linear(8, 8)


def test_threads_follow_the_work(small, monkeypatch):
    large = torch.nn.Linear(2**13, 2**13, device="meta")
    assert worth_threads(2**26, rows=1)
    assert not worth_threads(2**20, rows=LARGE_BATCH)
    with suitable_threads(small, 1), suitable_threads(large, 1):
        assert torch.get_num_threads() == 1
    with suitable_threads(large, 1):
        assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert worth_threads(2**20, rows=2**8)
    assert not worth_threads(2**20, rows=2**7)


def test_the_number_of_threads_is_restored_after_errors(small):
    with pytest.raises(ZeroDivisionError), suitable_threads(small, 1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with suitable_threads(small, 1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_threads_that_begin_within_others_go_back_to_the_programs_number(small):
    inside, leave = threading.Event(), threading.Event()
    found: list[int] = []

    def first():
        with suitable_threads(small, 1):
            inside.set()
            leave.wait(10)

    def second():
        with suitable_threads(small, 1):
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    outer = threading.Thread(target=first)
    outer.start()
    inside.wait(10)
    inner = threading.Thread(target=second)
    inner.start()
    inner.join()
    leave.set()
    outer.join()
    late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert found == [1, 2, 2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "passive 0"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "9"}, "None None"),
    ],
)
def test_waiting_is_set_before_torch_unless_the_user_did(given, expected):
    script = (
        "import os, sys; from dualtoken.common.machine import wait_passively; wait_passively();"
        "assert 'torch' not in sys.modules;"
        "print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('KMP_BLOCKTIME'))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **given}, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("found", [set(), {"_is_avx512_bf16_supported"}, {"_is_amx_tile_supported"}])
def test_bf16_is_fast_where_the_processor_multiplies_matrices_in_it(monkeypatch, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in found, raising=False)
    assert has_fast_bf16() == bool(found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not has_fast_bf16()
