"""A run that is killed, full or wrong: what is finished stays, and resuming makes the same bytes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

import dualtoken
from dualtoken.common.errors import UserError
from dualtoken.common.locks import only_process
from dualtoken.data_pipelines import partial_output
from dualtoken.data_pipelines.convert.captions import CaptionOptions
from dualtoken.data_pipelines.convert.converter import Converter
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.folder import FolderConverter
from dualtoken.data_pipelines.convert.samples import OutputOptions, Rejected, Sample
from dualtoken.data_pipelines.job import REJECTED
from dualtoken.data_pipelines.records import Record, assistant, user
from dualtoken.data_pipelines.shards.format import read_manifest
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import OpenShard, ShardWriter
from dualtoken.scripts import cli


class Numbers(Converter):
    """Sample n is a text; every seventh is rejected, every fifth held out; `stop` raises at a sample."""

    name = "numbers"

    def __init__(self, count=50, stop=None):
        self.count, self.stop = count, stop

    def settings(self):
        return {"count": self.count}

    def samples(self):
        for number in range(self.count):
            if number == self.stop:
                raise KeyboardInterrupt
            yield Rejected(f"n{number}", "seventh") if number % 7 == 6 else Sample(f"n{number}", number)

    def records(self, payload):
        split = "heldout" if payload % 5 == 4 else "train"
        yield Record(f"n{payload}", [user("which?"), assistant(str(payload))]), split


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def options(folder, **settings):
    return OutputOptions(folder, **{"shard_size": 8, "progress": False, **settings})


@pytest.mark.parametrize("stop", [0, 3, 8, 31, 49])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, stop):
    write_shards(Numbers(), options(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        write_shards(Numbers(stop=stop), options(tmp_path / "cut"))
    assert not (tmp_path / "cut").exists()
    finished = tmp_path / "cut.partial" / "000000" / "train-00000.tar"
    before = finished.stat().st_mtime_ns if stop > 8 else None
    write_shards(Numbers(), options(tmp_path / "cut"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    if before is not None:
        assert (tmp_path / "cut" / "train-00000.tar").stat().st_mtime_ns == before, "not made again"
    assert not (tmp_path / "cut.partial").exists()


def test_a_finished_shard_that_is_lost_is_made_again(tmp_path):
    write_shards(Numbers(), options(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        write_shards(Numbers(stop=40), options(tmp_path / "cut"))
    (tmp_path / "cut.partial" / "000001" / "train-00001.tar").unlink()
    write_shards(Numbers(), options(tmp_path / "cut"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_other_settings_do_not_continue_a_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_shards(Numbers(stop=40), options(tmp_path / "cut"))
    with pytest.raises(UserError, match=r"unfinished work that differs in settings: .*--overwrite"):
        write_shards(Numbers(count=60), options(tmp_path / "cut"))
    with pytest.raises(UserError, match="unfinished work that differs in shard_size"):
        write_shards(Numbers(), options(tmp_path / "cut", shard_size=9))
    write_shards(Numbers(count=60), options(tmp_path / "cut", overwrite=True))
    assert read_manifest(tmp_path / "cut")["settings"] == {"count": 60}


def test_two_runs_do_not_share_an_output(tmp_path):
    with (
        only_process(tmp_path / "x.partial", "--output x"),
        pytest.raises(UserError, match=rf"--output .*/x is in use by process {os.getpid()} on \S+ since"),
    ):
        write_shards(Numbers(), options(tmp_path / "x"))
    write_shards(Numbers(), options(tmp_path / "x"))
    assert not (tmp_path / "x.partial").exists()


def test_finished_work_outlives_a_failed_renaming(tmp_path, monkeypatch):
    write_shards(Numbers(), options(tmp_path / "whole"))

    def refuse(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(partial_output, "replace_folder", refuse)
    with pytest.raises(UserError, match=r"busy.*kept in .*x\.partial/merged.*same command"):
        write_shards(Numbers(), options(tmp_path / "x"))
    assert contents(tmp_path / "x.partial" / "merged") == contents(tmp_path / "whole")
    monkeypatch.undo()
    monkeypatch.setattr(Numbers, "records", None)  # nothing is converted again
    write_shards(Numbers(), options(tmp_path / "x"))
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


@pytest.mark.parametrize("folder", ["x", "x.partial"])
def test_what_others_made_is_never_replaced(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError) as caught:
            write_shards(Numbers(), options(tmp_path / "x", overwrite=overwrite))
        assert "pass --overwrite" not in str(caught.value)
        assert contents(tmp_path / folder) == {"thesis.txt": b"mine"}


def test_only_a_whole_folder_of_ours_is_replaced(tmp_path):
    write_shards(Numbers(), options(tmp_path / "x"))
    with pytest.raises(UserError, match="pass --overwrite"):
        write_shards(Numbers(), options(tmp_path / "x"))
    index = tmp_path / "x" / "train-00000.index.json"
    index.unlink()
    ShardDataset(tmp_path / "x")
    assert index.is_file(), "readers keep an index; it is ours"
    write_shards(Numbers(20), options(tmp_path / "x", overwrite=True))
    assert read_manifest(tmp_path / "x")["settings"] == {"count": 20}
    (tmp_path / "x" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt"):
        write_shards(Numbers(20), options(tmp_path / "x", overwrite=True))


class Split(Numbers):
    """Sample n is in the split that `names` gives it."""

    def __init__(self, names):
        super().__init__(len(names))
        self.names = names

    def records(self, payload):
        yield Record(f"n{payload}", [user("which?"), assistant("this")]), self.names[payload]


@pytest.mark.parametrize(
    "name", ["../../../x", "/tmp/x", "a/b", "..", "", "x\0", "x" * 200, None, 3, ["train"]]
)
def test_a_split_never_leads_out_of_the_output(tmp_path, name):
    (tmp_path / "deep").mkdir()
    manifest = write_shards(Split(["train", name]), options(tmp_path / "deep" / "x"))
    assert manifest["counts"]["splits"] == {"train": 1}
    assert "split" in manifest["rejected"]["samples"][0]["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    with ShardWriter(tmp_path / "w", source="s", licence="l") as writer:
        assert not writer.write(Record("a", [user("b"), assistant("c")]), name)
    with pytest.raises(UserError, match="split"):
        OpenShard(tmp_path, name, 0)


def test_more_splits_than_open_files_are_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="more than 64 splits"):
        write_shards(Split([f"s{number}" for number in range(100)]), options(tmp_path / "x", shard_size=100))


GARBAGE = ["", "null", "[]", "{}", "[" * 100_000, '{"samples": 8, "shards": null, "rejected": []}', "\ud800"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_damaged_parts_and_plans_are_made_again(tmp_path, garbage):
    write_shards(Numbers(), options(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        write_shards(Numbers(stop=40), options(tmp_path / "x"))
    partial = tmp_path / "x.partial"
    (partial / "000001" / "part.json").write_text(garbage, encoding="utf-8", errors="surrogatepass")
    (partial / "folder").mkdir()
    (partial / "000000" / "stray").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_shards(Numbers(stop=20), options(tmp_path / "x"))
    if not garbage.startswith("{"):  # an object is a plan, another one
        (partial / "plan.json").write_text(garbage, encoding="utf-8", errors="surrogatepass")
    write_shards(Numbers(), options(tmp_path / "x"))
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "file", ["../../../etc/passwd", "/etc/passwd", "../plan.json", 3, None], ids=lambda file: str(file)
)
def test_a_part_names_no_file_elsewhere(tmp_path, file):
    write_shards(Numbers(), options(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        write_shards(Numbers(stop=40), options(tmp_path / "x"))
    path = tmp_path / "x.partial" / "000000" / "part.json"
    part = json.loads(path.read_text())
    part["shards"][0]["file"] = file
    path.write_text(json.dumps(part))
    write_shards(Numbers(), options(tmp_path / "x"))
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_names_and_reasons_are_bounded_and_utf_8(tmp_path):
    class Odd(Numbers):
        def samples(self):
            yield Sample("good", 0)
            yield Rejected("caf\udce9" + "x" * 10**6, "half a pair \ud800" + "y" * 10**6)

    write_shards(Odd(), options(tmp_path / "x"))
    (line,) = (tmp_path / "x" / REJECTED).read_text(encoding="utf-8").splitlines()
    assert len(line) < 1000


def test_a_disk_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Numbers, "fingerprint", fail)
    with pytest.raises(UserError, match=r"Input/output error: give the same command again; 0 finished parts"):
        write_shards(Numbers(), options(tmp_path / "x"))


def test_a_full_disk_is_named_and_the_run_resumes_later(tmp_path, monkeypatch):
    write_shards(Numbers(), options(tmp_path / "whole"))
    add = OpenShard.add

    def full(self, key, sample):
        if key.startswith("00003"):
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, key, sample)

    monkeypatch.setattr(OpenShard, "add", full)
    with pytest.raises(UserError, match="3 finished parts are kept"):
        write_shards(Numbers(), options(tmp_path / "cut"))
    monkeypatch.undo()
    write_shards(Numbers(), options(tmp_path / "cut"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_every_sample_is_counted_once(tmp_path):
    manifest = write_shards(Numbers(), options(tmp_path / "n"))
    counts = manifest["counts"]
    assert counts["records"] + counts["rejected"] == 50
    assert counts["rejected"] == 7
    assert manifest["rejected"]["reasons"] == {"seventh": 7}
    assert [item["sample"] for item in manifest["rejected"]["samples"]][:2] == ["n6", "n13"]


def test_killed_in_the_middle_then_resumed_with_other_processes(tmp_path):
    """SIGKILL while two workers run: none of them stays, and one process finishes to the same bytes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(160):
        Image.effect_noise((320, 240), number + 1).save(photos / f"{number:04d}.png")
        (photos / f"{number:04d}.txt").write_text(f"noise {number}")
    (photos / "0100.png").write_bytes(b"broken")
    arguments = ["folder", "--input", str(photos), "--max-image-size", "200", "--shard-size", "8"]
    command = ["prepare", *arguments, "--task", "all", "--no-progress", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(Path(dualtoken.__file__).parents[1])}
    run = subprocess.Popen(
        [sys.executable, "-m", "dualtoken.scripts.cli", *command, str(tmp_path / "cut"), "--workers", "2"],
        env=environment,
    )
    partial = tmp_path / "cut.partial"
    while run.poll() is None and len(list(partial.glob("0*"))) < 2:
        time.sleep(0.005)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut").exists()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert cli.main([*command, str(tmp_path / "cut")]) == 0
    output = options(tmp_path / "whole", shard_size=8)
    limited = replace(CaptionOptions("all").images, max_size=200)
    write_shards(FolderConverter(photos, options=CaptionOptions("all", images=limited)), output)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert read_manifest(tmp_path / "cut")["counts"]["rejected"] == 1
