"""Several nodes make the shards of a single one, in any order, and after any interruption."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines import node_job
from dualtoken.data_pipelines.convert import driver
from dualtoken.data_pipelines.convert.converter import Converter
from dualtoken.data_pipelines.convert.driver import write_shards, write_share
from dualtoken.data_pipelines.convert.samples import OutputOptions, Sample
from dualtoken.data_pipelines.job import Share
from dualtoken.data_pipelines.node_job import Node
from dualtoken.data_pipelines.partial_output import check_made_here, partial_folder
from dualtoken.data_pipelines.records import Record, RecordError, assistant


class Numbers(Converter):
    """Records of numbers in parts of ten; every seventh is rejected."""

    kind, summary = "numbers", "numbers"

    def __init__(self, count: int, seeks: bool, broken: int | None = None) -> None:
        self.name, self.count, self.seeks, self.broken = "numbers", count, seeks, broken
        self._listed: list[int] = []

    def samples(self) -> Iterator[Sample]:
        return self.samples_from(0)

    def samples_from(self, start: int) -> Iterator[Sample]:
        for number in range(start, self.count):
            self._listed.append(number)
            if number == self.broken:
                raise OSError("the disk is gone")
            yield Sample(str(number), number)

    def records(self, payload: int) -> Iterator[tuple[Record, str]]:
        if payload % 7 == 0:
            raise RecordError("a multiple of seven")
        yield Record(f"n{payload}", [assistant(str(payload))]), "test" if payload % 5 == 0 else "train"


def options(folder: Path) -> OutputOptions:
    return OutputOptions(folder, shard_size=10, progress=False)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The output of one node."""
    folder = tmp_path_factory.mktemp("single") / "out"
    write_shards(Numbers(95, False), options(folder))
    return content(folder)


@pytest.mark.parametrize("seeks", [False, True])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_nodes_make_the_shards_of_one(
    single: dict[str, bytes], tmp_path: Path, seeks: bool, order: list[int]
) -> None:
    output = tmp_path / "out"
    waiting: list[Any] = []
    for index in order:
        assert not output.exists()
        converter = Numbers(95, seeks)
        waiting.append(write_share(converter, options(output), Node(index, 3)))
        if seeks:
            assert len(converter._listed) < 60  # of its own parts, and where they end
    assert waiting[0] == sorted(order[1:])
    assert waiting[1] == order[2:]
    assert waiting[2]["counts"]["records"] == 81
    assert content(output) == single
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("count", [0, 1, 10, 20])
def test_nodes_without_samples_are_finished_too(tmp_path: Path, count: int) -> None:
    def last() -> Any:
        return [write_share(Numbers(count, True), options(tmp_path / "out"), Node(n, 4)) for n in range(4)][
            -1
        ]

    if count < 2:
        with pytest.raises(UserError, match="No sample of numbers could be used"):
            last()
    else:
        assert last()["counts"]["records"] == count - (count + 6) // 7


def test_a_stopped_node_resumes_and_the_number_of_nodes_may_change(
    single: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert write_share(Numbers(95, False), options(output), Node(1, 2)) == [0]
    with pytest.raises(UserError, match="the disk is gone"):
        write_share(Numbers(95, False, broken=70), options(output), Node(0, 2))
    parts = sorted(path.parent.name for path in partial_folder(output).glob("*/part.json"))
    assert parts == [f"{n:06d}" for n in (0, 1, 2, 3, 4, 5, 7, 9)]  # 6 ended at the 64th sample
    assert write_share(Numbers(95, False), options(output), Node(2, 3)) == [0, 1]
    assert write_share(Numbers(95, True), options(output), Node(0, 3)) == [1]
    assert isinstance(write_share(Numbers(95, False), options(output), Node(1, 3)), dict)
    assert content(output) == single


def test_a_damaged_part_is_named_with_its_node(single: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_share(Numbers(95, False), options(output), Node(0, 2))
    (partial_folder(output) / "000004" / "part.json").unlink()
    with pytest.raises(UserError, match=r"1 of 10 parts .* run node 0 of 2 again"):
        write_share(Numbers(95, False), options(output), Node(1, 2))
    assert isinstance(write_share(Numbers(95, False), options(output), Node(0, 2)), dict)
    assert content(output) == single


def test_an_interrupted_merge_is_finished_by_any_node(
    single: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write_share(Numbers(95, False), options(output), Node(0, 2))

    def fail(*given: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("dualtoken.data_pipelines.job.mark_shards", fail)
        with pytest.raises(UserError, match="killed"):
            write_share(Numbers(95, False), options(output), Node(1, 2))
    assert isinstance(write_share(Numbers(95, False), options(output), Node(0, 2)), dict)
    assert content(output) == single


def test_nodes_at_the_same_time_merge_once(single: dict[str, bytes], tmp_path: Path) -> None:
    output, made, errors = tmp_path / "out", [], []

    def run(index: int) -> None:
        try:
            made.append(write_share(Numbers(95, False), options(output), Node(index, 4)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(isinstance(one, dict) for one in made) == 1
    assert content(output) == single


def test_a_node_may_begin_in_any_moment_of_anothers_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is marked before it holds anything that another node would take for a stranger's."""
    write = node_job.write_plan

    def watched(folder: Path, plan: Any) -> None:
        write(folder, plan)
        check_made_here(folder)

    monkeypatch.setattr(node_job, "write_plan", watched)
    write_share(Numbers(95, False), options(tmp_path / "out"), Node(0, 2))


def test_one_node_and_several_do_not_share_unfinished_work(tmp_path: Path) -> None:
    write_share(Numbers(95, False), options(tmp_path / "out"), Node(0, 2))
    with pytest.raises(UserError, match="unfinished work that differs in by_nodes"):
        write_shards(Numbers(95, False), options(tmp_path / "out"))
    other = Numbers(95, False)
    other.fingerprint = lambda: "other"  # type: ignore[method-assign]
    with pytest.raises(UserError, match="unfinished work that differs in input"):
        write_share(other, options(tmp_path / "out"), Node(1, 2))


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/0", "0/1/2"])
def test_a_wrong_node_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--node is"):
        Node.parse(text)
    assert str(Node.parse(" 3/4 ")) == "3/4"


def test_launchers_name_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # also set in a batch script, which runs once
    assert Node.from_environment() == Node(0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert Node.from_environment() == Node(3, 4)
    assert Share.from_environment().run == "77"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Node.from_environment() == Node(1, 2)


def test_the_manifest_names_no_nodes(tmp_path: Path) -> None:
    for index in range(2):
        write_share(Numbers(30, False), options(tmp_path / "out"), Node(index, 2))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "by_nodes" not in json.dumps(manifest)
    assert driver.NAMED_IN_MANIFEST >= manifest["counts"]["rejected"] == 5
