"""The small public data sets, each made from files of public git repositories.

A set becomes a zip of images and a `meta.jsonl`, as the converters of `convert_sets` read it (see
`image_list`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, ImageOps

from ...common.errors import ImageError, UserError
from ...common.images.reading import load_image, open_image, pillow_errors
from ...common.json_files import enumerate_lines, parse_json
from .git_files import GitFiles

#: Side of emoji and photos, in pixels.
SIDE = 128
_JPEG_QUALITY = 90
_CALTECH_FOLDER = "101_ObjectCategories"
_CALTECH_LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
# Three colours on two greys, and their blends at edges.
_NLVR_COLOURS = 32
_NLVR_IMAGE = re.compile(r"(?:train|dev|hidden)-(\d+-\d+)-(\d)\.png")

Entry = tuple[dict[str, Any], bytes]


@dataclass(frozen=True)
class Source:
    """One commit of a public repository from which a set is made.

    part: the source's name in the set. repository: "owner/name". revision: any name of a commit in git.
    """

    part: str
    repository: str
    licence: str
    revision: str = "HEAD"

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.split("/")[-1]


@dataclass(frozen=True)
class PublicSet:
    """A set: the file name of its zip, its sources, and a function that makes rows and images of these.

    images: their number when nano was trained.
    """

    name: str
    file: str
    sources: tuple[Source, ...]
    entries: Callable[[Mapping[str, GitFiles]], Iterator[Entry]]
    images: int


# --- emoji ----------------------------------------


def _emoji(files: Mapping[str, GitFiles]) -> Iterator[Entry]:
    """Every emoji that has a name: {file, style, emoji, name, group, keywords}, 128 × 128 on white."""
    facts_of = parse_json(files["names"].read_one("data-by-emoji.json"))
    keywords = parse_json(files["keywords"].read_one("dist/emoji-en-US.json"))
    named = {_code_points(emoji): emoji for emoji, facts in facts_of.items() if facts.get("name")}
    for style in ("noto", "blob", "flag"):
        commit = files["noto" if style == "flag" else style]
        images = dict(sorted(_emoji_images(commit, style, named).items()))
        for code, (path, data) in zip(images, commit.read(images.values()), strict=True):
            emoji = named[code]
            row = {
                "file": f"{style}/{code}.png",
                "style": style,
                "emoji": emoji,
                "name": facts_of[emoji]["name"],
                "group": facts_of[emoji].get("group"),
                "keywords": [word.replace("_", " ") for word in keywords.get(emoji, [])],
            }
            yield row, _on_white(data, path)


def _code_points(emoji: str) -> str:
    """An emoji as file names spell it: its code points without the variation selector."""
    return "_".join(f"{ord(character):04x}" for character in emoji if character != "\ufe0f")


def _emoji_images(commit: GitFiles, style: str, named: Mapping[str, str]) -> dict[str, str]:
    """The path of the image of every emoji in `named` that has one, by code points."""
    if style == "flag":
        folder = commit.first_folder("third_party/region-flags/png", "2D/third_party/region-flags/png")
        paths = {path.stem: str(path) for path in map(PurePosixPath, commit.paths(folder))}
        return {code: paths[region] for code, emoji in named.items() if (region := _region(emoji)) in paths}
    folder = commit.first_folder("png/128", "2D/png/128")
    images = {}
    for path in commit.paths(folder):
        match = re.fullmatch(r"emoji_u([0-9a-f_]+)\.png", path.rsplit("/", 1)[1])
        if match and match.group(1) in named:
            images[match.group(1)] = path
    return images


def _region(emoji: str) -> str:
    """'CH' for the flag of Switzerland; empty for emoji that are not the flag of a region."""
    letters = [ord(character) - 0x1F1E6 for character in emoji]
    is_flag = len(letters) == 2 and all(0 <= letter < 26 for letter in letters)
    return "".join(chr(ord("A") + letter) for letter in letters) if is_flag else ""


def _on_white(data: bytes, name: str) -> bytes:
    image = _opened(data, name).convert("RGBA")
    if max(image.size) != SIDE:
        image = ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    background = Image.new("RGB", (SIDE, SIDE), "white")
    background.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2), image)
    return _encoded(background, format="PNG", optimize=True)


# --- NLVR ----------------------------------------


def _nlvr(files: Mapping[str, GitFiles]) -> Iterator[Entry]:
    """Images as palette PNGs: {file, split, id, perm, sentence, label, structured_rep (not in train1000)}.

    train1000 are the examples on the repository's page about the training set; dev and hidden have all six
    orders of an example's boxes.
    """
    commit = files["nlvr"]
    rows = [*_nlvr_examples(commit), *_nlvr_split(commit, "hidden"), *_nlvr_split(commit, "dev")]
    for (path, row), (_, data) in zip(rows, commit.read(path for path, _ in rows), strict=True):
        image = _opened(data, path).convert("RGB").quantize(_NLVR_COLOURS)
        yield row, _encoded(image, format="PNG", optimize=True)


def _nlvr_examples(commit: GitFiles) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = _Examples()
    reader.feed(commit.read_one("nlvr/train/examples.html").decode())
    for source, texts in reader.examples:
        name = PurePosixPath(source)
        match = _NLVR_IMAGE.fullmatch(name.name)
        if match is None or len(texts) < 2:
            raise UserError(f"nlvr/train/examples.html: the example with the image '{source}' is malformed.")
        identifier, permutation = match.groups()
        row = {
            "file": f"train/{identifier}-{permutation}.png",
            "split": "train1000",
            "id": identifier,
            "perm": int(permutation),
            "sentence": texts[0],
            "label": texts[1],
        }
        yield f"nlvr/train/images/{name.parent.name}/{name.name}", row


class _Examples(HTMLParser):
    """Images of a page, each with the texts up to the next image."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.examples.append((dict(attrs).get("src") or "", []))

    def handle_data(self, data: str) -> None:
        if self.examples and data.strip():
            self.examples[-1][1].append(data.strip())


def _nlvr_split(commit: GitFiles, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = f"nlvr/{split}"
    images = {path.rsplit("/", 1)[1]: path for path in commit.paths(f"{folder}/images")}
    lists = [path for path in commit.paths(folder) if path.endswith(".json") and "/images/" not in path]
    # The hidden set has had several lists; the final one was released.
    preferred = [f"{folder}/{split}.json", f"{folder}/{split}_final.json", *lists]
    chosen = next((path for path in preferred if path in lists), None)
    if chosen is None:
        raise UserError(f"{commit.folder} at {commit.commit[:9]} has no list {preferred[0]}.")
    for _, line in enumerate_lines(commit.read_one(chosen).decode()):
        example = parse_json(line)
        for permutation in range(6):
            file = f"{example['identifier']}-{permutation}.png"
            facts = {name: example[name] for name in ("sentence", "label", "structured_rep")}
            row = {"split": split, "id": example["identifier"], "perm": permutation, **facts}
            path = images.get(f"{split}-{file}", f"{folder}/images/{split}-{file}")
            yield path, {"file": f"{split}/{file}", **row}


# --- easy-VQA ----------------------------------------


def _easyvqa(files: Mapping[str, GitFiles]) -> Iterator[Entry]:
    """The training images, unchanged: {file, split, qa}; qa: pairs of question and answer."""
    commit = files["easy-VQA"]
    folder = "easy_vqa/data/train"
    pairs: dict[int, list[list[str]]] = {}
    for question, answer, number in parse_json(commit.read_one(f"{folder}/questions.json")):
        pairs.setdefault(int(number), []).append([question, answer])
    paths = {number: f"{folder}/images/{number}.png" for number in sorted(pairs)}
    for number, (_, data) in zip(paths, commit.read(paths.values()), strict=True):
        yield {"file": f"train/{number}.png", "split": "train", "qa": pairs[number]}, data


# --- photos ----------------------------------------


def _clothing(files: Mapping[str, GitFiles]) -> Iterator[Entry]:
    """Photos of clothing as centre squares: {file, label, split}."""
    commit = files["clothing"]
    photos = [path for path in commit.paths() if path.endswith(".jpg") and path.count("/") == 2]
    for path, data in commit.read(sorted(photos, key=_flat_name)):
        split, label, _ = path.split("/")
        yield {"file": _flat_name(path), "label": label, "split": split}, _centre_square(data, path)


def _caltech(files: Mapping[str, GitFiles]) -> Iterator[Entry]:
    """Photos of 100 classes as centre squares: {file, label, split}, split by `test.txt`."""
    commit = files["caltech"]
    lists = [path for path in commit.paths() if PurePosixPath(path).name == "test.txt"]
    if not lists:
        raise UserError(f"{commit.folder} at {commit.commit[:9]} has no test.txt, which gives the split.")
    test = set(commit.read_one(lists[0]).decode().split())
    names = {}  # "folder/class/file" by path
    for path in commit.paths():
        parts = path.split("/")[-3:]
        is_photo = len(parts) == 3 and parts[0] == _CALTECH_FOLDER and parts[2].endswith(".jpg")
        if is_photo and parts[1] not in _CALTECH_LEFT_OUT:
            names[path] = "/".join(parts)
    for path, data in commit.read(sorted(names, key=lambda path: _flat_name(names[path]))):
        _, label, file = names[path].split("/")
        split = "test" if f"{label}/{file}" in test else "train"
        row = {"file": _flat_name(names[path]), "label": label.replace("_", " ").lower(), "split": split}
        yield row, _centre_square(data, path)


def _flat_name(path: str) -> str:
    return path.replace("/", "__")


def _centre_square(data: bytes, name: str) -> bytes:
    square = ImageOps.fit(load_image(_opened(data, name)), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return _encoded(square, format="JPEG", quality=_JPEG_QUALITY)


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        with pillow_errors():
            image = open_image(data)
            image.load()
    except ImageError as error:
        raise UserError(f"{name} is not an intact image: it {error}") from error
    return image


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


# --- the sets ----------------------------------------

_NOTO = "googlefonts/noto-emoji"
_NOTO_LICENCE = "Apache-2.0 (images), public domain (region flags); newer images OFL-1.1"
_EMOJI = (
    Source("noto", _NOTO, _NOTO_LICENCE),
    # The commit before the one that replaced the blob-shaped faces.
    Source("blob", _NOTO, "Apache-2.0", "69b0092a7^"),
    Source("names", "muan/unicode-emoji-json", "MIT"),
    Source("keywords", "muan/emojilib", "MIT"),
)
_NLVR = Source("nlvr", "lil-lab/nlvr", "CC-BY-4.0")
_EASYVQA = Source("easy-VQA", "vzhou842/easy-VQA", "MIT")
_CLOTHING = Source("clothing", "alexeygrigorev/clothing-dataset-small", "may be freely used for any purpose")
_CALTECH_LICENCE = "CC-BY-4.0 (Caltech-101, Li, Andreeto, Ranzato and Perona)"
_CALTECH = Source("caltech", "MachineLearning2020/Homework2-Caltech101", _CALTECH_LICENCE)

SETS: dict[str, PublicSet] = {
    one.name: one
    for one in (
        PublicSet("emoji", "emoji_128.zip", _EMOJI, _emoji, 3129),
        PublicSet("nlvr", "nlvr.zip", (_NLVR,), _nlvr, 12_844),
        PublicSet("easyvqa", "easyvqa_64.zip", (_EASYVQA,), _easyvqa, 4000),
        PublicSet("clothing", "clothing_128.zip", (_CLOTHING,), _clothing, 3781),
        PublicSet("caltech", "caltech101_128.zip", (_CALTECH,), _caltech, 8242),
    )
}
