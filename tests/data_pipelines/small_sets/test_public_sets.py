"""The public data sets from git repositories: small ones of the same layout, without a network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.common.locks import only_process
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.small_sets import convert_sets, source_sets
from dualtoken.data_pipelines.small_sets.git_files import GitFiles, downloaded_files, local_files
from dualtoken.data_pipelines.small_sets.public_sets import SETS, PublicSet
from dualtoken.data_pipelines.small_sets.source_sets import SourceOptions, make_sets
from dualtoken.scripts import cli


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, files: dict[str, bytes]) -> str:
    """Add files to the repository in `folder`, which is made if need be; the commit's full name."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet")
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "files")
    return git(folder, "rev-parse", "HEAD")


def picture(colour: str, size: tuple[int, int] = (128, 128), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format=kind)
    return buffer.getvalue()


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Image.Image]]:
    """Rows and images of a set; the list names exactly the images that are there."""
    with zipfile.ZipFile(path) as archive:
        rows = [json.loads(line) for line in archive.read("meta.jsonl").decode().splitlines()]
        images: dict[str, Image.Image] = {
            row["file"]: Image.open(io.BytesIO(archive.read(row["file"]))) for row in rows
        }
        assert archive.namelist() == [*images, "meta.jsonl"]
    return rows, images


SMILE, KEYCAP, SWISS, FAMILY = "\U0001f600", "#\ufe0f\u20e3", "\U0001f1e8\U0001f1ed", "\U0001f46a"


@pytest.fixture
def public(tmp_path: Path, layouts: Path) -> Path:
    """A copy of `layouts`, free to be changed."""
    return shutil.copytree(layouts, tmp_path / "public")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories by owner and name, of the layout of the public ones."""
    root = tmp_path_factory.mktemp("layouts")
    noto = root / "googlefonts" / "noto-emoji"
    commit(
        noto,
        {
            "png/128/emoji_u1f600.png": picture("yellow", (136, 128)),
            "png/128/emoji_u1f46a.png": picture("orange"),
            "third_party/region-flags/png/CH.png": picture("red", (64, 32)),
            "third_party/region-flags/png/XX.png": picture("black"),
        },
    )
    replaced = {
        "png/128/emoji_u1f600.png": picture("gold"),
        "png/128/emoji_u0023_20e3.png": picture("blue", mode="RGBA"),
    }
    (noto / "png/128/emoji_u1f46a.png").unlink()
    commit(noto, replaced)
    names = {SMILE: "grinning face", KEYCAP: "keycap #", SWISS: "flag Switzerland", FAMILY: None}
    facts = {emoji: {"name": name, "slug": "s", "group": "Group"} for emoji, name in names.items()}
    commit(root / "muan" / "unicode-emoji-json", {"data-by-emoji.json": json.dumps(facts).encode()})
    words = {SMILE: ["grinning_face", "smile"], KEYCAP: ["keycap_"]}
    commit(root / "muan" / "emojilib", {"dist/emoji-en-US.json": json.dumps(words).encode()})
    commit(root / "lil-lab" / "nlvr", nlvr_files())
    questions = [["what shape?", "circle", 1], ["is it red?", "yes", 0], ["is it blue?", "no", 1]]
    easy = {f"easy_vqa/data/train/images/{n}.png": picture("red", (64, 64)) for n in (0, 1)}
    easy["easy_vqa/data/train/questions.json"] = json.dumps(questions).encode()
    commit(root / "vzhou842" / "easy-VQA", easy)
    clothing = {
        f"{split}/{label}/{n}.jpg": picture("green", (200, 300), "JPEG")
        for split in ("train", "test")
        for label in ("dress", "t-shirt")
        for n in "ab"
    }
    commit(root / "alexeygrigorev" / "clothing-dataset-small", {**clothing, "README.md": b"photos"})
    kinds = ("Faces", "Faces_easy", "BACKGROUND_Google", "yin_yang")
    caltech = {
        f"101_ObjectCategories/{kind}/image_000{n}.jpg": picture("gray", (90, 60), "JPEG", "L")
        for kind in kinds
        for n in (1, 2)
    }
    caltech["test.txt"] = b"Faces/image_0002.jpg\nyin_yang/image_0001.jpg\n"
    commit(root / "MachineLearning2020" / "Homework2-Caltech101", caltech)
    return root


def nlvr_files() -> dict[str, bytes]:
    drawing = picture("white", (400, 100))
    files = {"nlvr/train/images/7/train-12-3-4.png": drawing, "nlvr/train/images/7/train-99-0-0.png": drawing}
    files["nlvr/train/examples.html"] = (
        b'<html><body><center>\n<img src="https://host/nlvr/master/train/images/7/train-12-3-4.png"/><br />'
        b"There is 1 tower &amp; a box<br />true<br /><br />\n</center></body></html>"
    )
    for split, number in (("dev", "1572-0"), ("hidden", "8-1")):
        example = {"sentence": "A box.", "label": "false", "identifier": number, "structured_rep": [[]]}
        name = "hidden_final" if split == "hidden" else split
        files[f"nlvr/{split}/{name}.json"] = json.dumps(example).encode() + b"\n"
        for order in range(6):
            files[f"nlvr/{split}/images/2/{split}-{number}-{order}.png"] = drawing
    return files


def with_blob_commit(public: Path) -> PublicSet:
    """The emoji set, with the parent of a commit of this repository as the older style's revision."""
    newest = git(public / "googlefonts" / "noto-emoji", "rev-parse", "--short=9", "HEAD")
    sources = [
        replace(source, revision=f"{newest}^") if source.part == "blob" else source
        for source in SETS["emoji"].sources
    ]
    return replace(SETS["emoji"], sources=tuple(sources))


@pytest.fixture
def make(public: Path, tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Image.Image]]]:
    """Makes one set by clones or by download, and reads it."""

    def made(name: str, download: bool = False) -> tuple[list[dict[str, Any]], dict[str, Image.Image]]:
        one = with_blob_commit(public) if name == "emoji" else SETS[name]
        clones = {} if download else {part.name: public / part.repository for part in one.sources}
        options = SourceOptions(tmp_path / "data", clones, progress=False, host=f"file://{public}")
        [(_, count, new)] = make_sets([one], options)
        rows, images = read(tmp_path / "data" / one.file)
        assert new
        assert count == len(rows)
        return rows, images

    return made


@pytest.mark.parametrize("download", [False, True])
def test_emoji_of_both_commits_and_flags(make, download):
    rows, images = make("emoji", download)
    assert [row["file"] for row in rows] == [
        "noto/0023_20e3.png",
        "noto/1f600.png",
        "blob/1f600.png",
        "flag/1f1e8_1f1ed.png",
    ]
    assert rows[0] == {
        "file": "noto/0023_20e3.png",
        "style": "noto",
        "emoji": KEYCAP,
        "name": "keycap #",
        "group": "Group",
        "keywords": ["keycap "],
    }
    assert all(image.size == (128, 128) and image.mode == "RGB" for image in images.values())
    assert images["noto/1f600.png"].getpixel((0, 0)) == (255, 215, 0)  # as the newer commit has it
    older = images["blob/1f600.png"]
    assert older.getpixel((64, 64)) == (255, 255, 0)
    assert older.getpixel((64, 0)) == (255, 255, 255)  # 136 wide, reduced and put on white
    flag = images["flag/1f1e8_1f1ed.png"]
    assert flag.getpixel((0, 31)) == (255, 255, 255)
    assert flag.getpixel((0, 32)) == (255, 0, 0)


@pytest.mark.parametrize("download", [False, True])
def test_nlvr_takes_the_examples_that_are_shown_and_every_order_of_the_others(make, download):
    rows, images = make("nlvr", download)
    assert [row["split"] for row in rows] == ["train1000"] + ["hidden"] * 6 + ["dev"] * 6
    assert rows[0] == {
        "file": "train/12-3-4.png",
        "split": "train1000",
        "id": "12-3",
        "perm": 4,
        "sentence": "There is 1 tower & a box",
        "label": "true",
    }
    assert [row["perm"] for row in rows[1:7]] == list(range(6))
    assert rows[1]["file"] == "hidden/8-1-0.png"
    assert rows[-1]["structured_rep"] == [[]]
    assert {image.mode for image in images.values()} == {"P"}


def test_easyvqa_keeps_bytes_and_gathers_questions(make, public, tmp_path):
    rows, _ = make("easyvqa")
    assert rows == [
        {"file": "train/0.png", "split": "train", "qa": [["is it red?", "yes"]]},
        {"file": "train/1.png", "split": "train", "qa": [["what shape?", "circle"], ["is it blue?", "no"]]},
    ]
    original = public / "vzhou842" / "easy-VQA" / "easy_vqa" / "data" / "train" / "images" / "1.png"
    with zipfile.ZipFile(tmp_path / "data" / "easyvqa_64.zip") as archive:
        assert archive.read("train/1.png") == original.read_bytes()


def test_photos_become_centre_squares_with_label_and_split(make):
    rows, images = make("clothing")
    assert [row["file"] for row in rows[:2]] == ["test__dress__a.jpg", "test__dress__b.jpg"]
    assert rows[-1] == {"file": "train__t-shirt__b.jpg", "label": "t-shirt", "split": "train"}
    rows, more = make("caltech")
    assert [(row["label"], row["split"]) for row in rows] == [
        ("faces", "train"),
        ("faces", "test"),
        ("yin yang", "test"),
        ("yin yang", "train"),
    ]
    assert rows[0]["file"] == "101_ObjectCategories__Faces__image_0001.jpg"
    for image in (*images.values(), *more.values()):
        assert (image.size, image.mode, image.format) == ((128, 128), "RGB", "JPEG")


def test_the_zips_are_what_the_converters_read(make, tmp_path):
    for name, converter in (
        ("emoji", convert_sets.EmojiConverter),
        ("nlvr", convert_sets.NlvrConverter),
        ("clothing", convert_sets.LabelsConverter),
    ):
        make(name)
        output = OutputOptions(tmp_path / name, progress=False)
        manifest = write_shards(converter(tmp_path / "data" / SETS[name].file), output)
        assert manifest["counts"]["rejected"] == 0
        assert manifest["counts"]["records"] > 2


def test_sources_name_commits_and_the_same_files_make_the_same_zip(make, public, tmp_path):
    make("emoji")
    noted = json.loads((tmp_path / "data" / "sources.json").read_text())["emoji"]
    target = tmp_path / "data" / "emoji_128.zip"
    first = hashlib.sha256(target.read_bytes()).hexdigest()
    assert (noted["sha256"], noted["images"]) == (first, 4)
    noto = public / "googlefonts" / "noto-emoji"
    commits = {part["part"]: part["commit"] for part in noted["taken"]}
    assert commits["noto"] == git(noto, "rev-parse", "HEAD")
    assert commits["blob"] == git(noto, "rev-parse", "HEAD^")
    assert all(part["licence"] for part in noted["taken"])
    target.unlink()
    make("emoji", download=True)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == first
    assert {path.name for path in target.parent.iterdir()} == {"emoji_128.zip", "sources.json"}


def test_what_is_there_is_kept_and_other_sets_stay_noted(make, public, tmp_path):
    make("clothing")
    options = SourceOptions(tmp_path / "data", progress=False, host="file:///nowhere")
    assert [(count, new) for _, count, new in make_sets([SETS["clothing"]], options)] == [(8, False)]
    make("caltech")
    assert set(json.loads((tmp_path / "data" / "sources.json").read_text())) == {"clothing", "caltech"}


def test_only_zips_that_were_made_here_are_replaced(make, public, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    clothing = public / "alexeygrigorev" / "clothing-dataset-small"
    options = SourceOptions(folder, {clothing.name: clothing}, overwrite=True, progress=False)
    own = folder / SETS["clothing"].file
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"not named in sources\.json"):
        list(make_sets([SETS["clothing"]], options))
    assert own.read_bytes() == b"mine"
    own.unlink()
    for content in ("[]", "[" * 100_000, '{"name": "mine"}', "{"):
        (folder / "sources.json").write_text(content)
        with pytest.raises(UserError, match=r"sources\.json"):
            list(make_sets([SETS["clothing"]], options))
    (folder / "sources.json").unlink()
    for _ in range(2):
        assert [count for _, count, _ in make_sets([SETS["clothing"]], options)] == [8]
    with only_process(folder / "sources.partial", "x"), pytest.raises(UserError, match="in use by process"):
        list(make_sets([SETS["clothing"]], options))
    (folder / "sources.partial").mkdir(exist_ok=True)
    (folder / "sources.partial" / "mine").touch()
    with pytest.raises(UserError, match="did not make"):
        list(make_sets([SETS["clothing"]], options))


def test_a_clone_runs_no_program_of_its_own(public, tmp_path):
    """A partial clone from elsewhere may say how to fetch what it lacks."""
    clone, proof, source = tmp_path / "clone", tmp_path / "proof", public / "lil-lab" / "nlvr"
    git(source, "config", "uploadpack.allowFilter", "true")
    git(public, "clone", "-q", "--bare", "--filter=blob:none", f"file://{source}", str(clone))
    git(clone, "config", "remote.origin.url", "ssh://host/x")
    git(clone, "config", "core.sshCommand", f"touch {proof};")
    files = local_files(clone, "HEAD")
    with contextlib.suppress(UserError):
        files.read_one("nlvr/train/examples.html")
    assert not proof.exists()


def test_a_run_that_fails_leaves_no_zip(public, tmp_path):
    clothing = public / "alexeygrigorev" / "clothing-dataset-small"
    commit(clothing, {"train/dress/broken.jpg": b"no image"})
    options = SourceOptions(tmp_path / "data", {clothing.name: clothing}, progress=False)
    with pytest.raises(UserError, match=r"train/dress/broken\.jpg"):
        list(make_sets([SETS["clothing"]], options))
    assert not list((tmp_path / "data").iterdir())
    older = replace(options, revisions={clothing.name: "HEAD^"})
    assert [count for _, count, _ in make_sets([SETS["clothing"]], older)] == [8]


def test_only_the_files_that_are_read_are_downloaded(public, tmp_path):
    repository = public / "lil-lab" / "nlvr"
    git(repository, "config", "uploadpack.allowFilter", "true")
    files = downloaded_files(f"file://{repository}", "HEAD", tmp_path / "download")
    wanted = "nlvr/train/examples.html"
    assert dict(files.read([wanted])) == {wanted: (repository / wanted).read_bytes()}
    missing = git(tmp_path / "download", "rev-list", "--objects", "--missing=print", files.commit)
    assert sum(line.startswith("?") for line in missing.splitlines()) > 0


def test_the_layout_and_the_commit_are_checked(public, tmp_path):
    noto = public / "googlefonts" / "noto-emoji"
    files: GitFiles = local_files(noto, "HEAD")
    assert files.first_folder("elsewhere", "png/128") == "png/128"
    with pytest.raises(UserError, match=r"no folder elsewhere.*--revision"):
        files.first_folder("elsewhere")
    with pytest.raises(UserError, match=r"no file png/1\.png"):
        list(files.read(["png/1.png"]))
    with pytest.raises(UserError, match=r"no commit 123456789\^"):
        local_files(noto, "123456789^")
    with pytest.raises(UserError, match="not a clone"):
        local_files(noto / "png", "HEAD")
    with pytest.raises(UserError, match=r"has no commit 123456789\^"):
        downloaded_files(f"file://{noto}", "123456789^", tmp_path / "download")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--only", "emoji,dogs"], "dogs"),
        (["--clone", "nlvr"], "NAME=PATH"),
        (["--clone", "nlvr2=somewhere"], "noto-emoji"),
        (["--only", "nlvr", "--clone", "nlvr=missing"], "missing"),
        (["--only", "nlvr", "--revision", "emojilib=main"], "repositories are nlvr"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, word):
    assert cli.main(["prepare", "sources", "--output", str(tmp_path / "d"), "--no-progress", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert word in error
    assert len(error.splitlines()) == 1


def test_the_command_makes_the_sets_that_are_missing(public, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(source_sets, "_HOST", "file:///nowhere")
    clone = f"nlvr={public / 'lil-lab' / 'nlvr'}"
    arguments = ["prepare", "sources", "--output", str(tmp_path / "d"), "--no-progress", "--only", "nlvr"]
    assert cli.main([*arguments, "--clone", clone]) == 0
    assert "nlvr: 13 images" in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert "was there" in capsys.readouterr().out


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(["prepare", "sources", "--help"])
    assert status.value.code == 0
    printed = capsys.readouterr().out
    assert "dualtoken prepare sources --output data" in printed
    assert all(part.name in printed.replace("\n", "") for part in SETS["emoji"].sources)
