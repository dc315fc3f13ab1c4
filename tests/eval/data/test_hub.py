"""Tables of the hub hold the questions of the official files; a failed download is one clear line."""

import base64
import json
from io import BytesIO

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.eval import get_task, task_names
from dualtoken.eval.data.hub import HubData, fetch, is_hub
from dualtoken.eval.harness.runner import predict, score
from dualtoken.eval.harness.task_data import Settings, load_data
from dualtoken.eval.scorers.yes_no import MME_COGNITION, MME_PERCEPTION

from ..tasks.test_understanding_tasks import UNDERSTANDING

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def encoded(colour):
    file = BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return file.getvalue()


PNG = encoded("red")


def cell(content=PNG):
    return {"bytes": content, "path": None}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_parquet(path, rows):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, and no network: a function from a repository to the folder of its only snapshot."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def snapshot(repo, commit=COMMIT):
        folder = tmp_path / "cache" / f"datasets--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        return snapshot

    return snapshot


def pope(official, hub):
    rows = [(1, "Is there a dog in the image?", "yes"), (2, "Is there a cat in the image?", "no")]
    lines = [
        json.dumps({"question_id": n, "image": "a.jpg", "text": text, "label": label})
        for n, text, label in rows
    ]
    (official / "coco_pope_popular.json").write_text("\n".join(lines))
    write_parquet(
        hub / "Full/popular-00000-of-00001.parquet",
        [{"question_id": str(n), "question": text, "answer": a, "image": cell()} for n, text, a in rows],
    )
    return "popular"


def mme(official, hub):
    rows = []
    for name in (*MME_PERCEPTION, *MME_COGNITION):
        asked = [
            ("Is it red? Please answer yes or no.", "Yes"),
            ("Is it blue? Please answer yes or no.", "No"),
        ]
        (official / f"{name}.txt").write_text("".join(f"1.png\t{q}\t{a}\n" for q, a in asked))
        rows += [
            {"question_id": f"{name}/1.png", "image": cell(), "question": q, "answer": a, "category": name}
            for q, a in asked
        ]
    write_parquet(hub / "data/test-00000-of-00001.parquet", rows)
    return "test"


def gqa(official, hub):
    types = {"structural": "query", "semantic": "cat", "detailed": "what"}
    row = {"question": "What is it?", "answer": "dog", "imageId": "n1", "types": types}
    write_json(official / "testdev_balanced_questions.json", {"07": row})
    write_parquet(hub / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", [{"id": "07", **row}])
    write_parquet(
        hub / "testdev_balanced_images/testdev-00000-of-00001.parquet", [{"id": "n1", "image": cell()}]
    )
    return "testdev"


def vqav2(official, hub):
    asked = {"question_id": 42001, "image_id": 42, "question": "How many?"}
    answers = [{"answer": "2", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    known = {"question_id": 42001, "answers": answers, "answer_type": "number"}
    write_json(official / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [asked]})
    write_json(official / "v2_mscoco_val2014_annotations.json", {"annotations": [known]})
    write_parquet(hub / "data/validation-00000-of-00001.parquet", [{**asked, **known, "image": cell()}])
    return "val"


def textvqa(official, hub):
    row = {"question_id": 7, "image_id": "ab", "question": "what does it say?", "answers": ["STOP"] * 10}
    write_json(official / "TextVQA_0.5.1_val.json", {"data": [row]})
    write_parquet(hub / "data/validation-00000-of-00001.parquet", [{**row, "image": cell()}])
    return "val"


def mmbench(official, hub):
    row = {"index": 5, "question": "What?", "hint": "nan", "A": "dog", "B": "None", "C": "nan", "D": "nan"}
    row |= {"answer": "A", "category": "ocr", "l2-category": "perception"}
    lines = ["\t".join(map(str, [*row, "image"])), "\t".join(map(str, [*row.values(), ""]))]
    image = base64.b64encode(PNG).decode()
    (official / "MMBench_DEV_EN.tsv").write_text("\n".join(lines) + image + "\n")
    del row["l2-category"]
    write_parquet(
        hub / "en/dev-00000-of-00001.parquet", [{**row, "L2-category": "perception", "image": cell()}]
    )
    return "dev-en"


def seedbench(official, hub):
    row = {f"choice_{letter}": letter.upper() * 2 for letter in "abcd"}
    row |= {"question_id": "1", "question": "Which?", "answer": "B", "question_type_id": 3, "data_id": "x"}
    row["data_type"] = "image"
    write_json(official / "SEED-Bench.json", {"questions": [row]})
    video = {**row, "question_id": "2", "data_type": "video", "image": [cell()] * 2}
    write_parquet(hub / "data/test-00000-of-00001.parquet", [{**row, "image": [cell()]}, video])
    return "image"


def mmvet(official, hub):
    row = {"question": "What is x?", "answer": "-1<AND>-5"}
    official_row = {**row, "imagename": "v1_0.png", "capability": ["ocr", "math"]}
    write_json(official / "mm-vet.json", {"v1_0": official_row})
    hub_row = {"question_id": "v1_0", **row, "capability": "ocr,math", "image": cell()}
    write_parquet(hub / "data/test-00000-of-00001.parquet", [hub_row])
    return "test"


SAME = {
    "pope": pope,
    "mme": mme,
    "gqa": gqa,
    "vqav2": vqav2,
    "textvqa": textvqa,
    "mmbench": mmbench,
    "seedbench": seedbench,
    "seedbench-letter": seedbench,
    "mmvet": mmvet,
}


@pytest.mark.parametrize("name", SAME)
def test_the_hub_gives_the_questions_of_the_official_files(name, cache, tmp_path):
    task = get_task(name)
    official = tmp_path / "official"
    official.mkdir()
    split = SAME[name](official, cache(task.hub.repo))
    ours = load_data(task, Settings(data=official, split=split))
    loaded = load_data(task, Settings(data="hub", split=split))
    assert (ours.source, loaded.source) == ("files", f"hub:{task.hub.repo}@{COMMIT}")
    assert len(loaded.items) == len(ours.items) > 0
    for one, other in zip(loaded.items, ours.items, strict=True):
        facts = [(item.id, item.prompt, dict(item.target), item.choices) for item in (one, other)]
        assert facts[0] == facts[1]
        assert [image.size for image in one.images] == [(16, 16)]


def test_scienceqa_from_the_hub(cache, tmp_path):
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "grade": "grade8"}
    problem["subject"] = "natural science"
    rows = [{**problem, "image": None}, {**problem, "image": cell()}]
    repo = get_task("scienceqa").hub.repo
    write_parquet(cache(repo) / "ScienceQA-FULL/validation-00000-of-00001.parquet", rows)
    every = load_data(get_task("scienceqa"), Settings(data="hub", split="val")).items
    (shown,) = load_data(get_task("scienceqa"), Settings(data="hub", split="val-image")).items
    assert [len(item.images) for item in every] == [0, 1]
    assert shown.id == every[1].id
    assert shown.target["answer"] == "B"
    assert every[1].target["context"] == ["IMG"]
    assert "Context: N/A\nOptions: (A) a (B) b" in shown.prompt


def test_hidden_answers_stay_hidden(cache):
    row = {"question_id": 1, "image_id": 42, "question": "How many?", "answers": None, "answer_type": None}
    folder = cache(get_task("vqav2").hub.repo)
    write_parquet(folder / "data/test-00000-of-00001.parquet", [{**row, "image": cell()}])
    write_parquet(folder / "data/testdev-00000-of-00001.parquet", [{**row, "image": cell()}] * 1)
    (item,) = load_data(get_task("vqav2"), Settings(data="hub", split="test")).items
    assert item.target == {}
    row = {"question_id": 1, "question": "what?", "answers": [""] * 10, "image": cell()}
    write_parquet(cache(get_task("textvqa").hub.repo) / "data/test-00000-of-00001.parquet", [row])
    (item,) = load_data(get_task("textvqa"), Settings(data="hub", split="test")).items
    assert item.target == {}


def test_equal_images_are_kept_once(cache):
    rows = [
        {"question_id": str(n), "question": "?", "answer": "yes", "image": cell(encoded(colour))}
        for n, colour in enumerate(("red", "red", "blue", "blue"))
    ]
    folder = cache(get_task("pope").hub.repo)
    write_parquet(folder / "Full/random-00000-of-00001.parquet", rows)
    images = [item.images[0] for item in get_task("pope").load(folder, "random")]
    assert images[0] is images[1]
    assert images[2] is images[3]
    assert images[0] is not images[2]


def test_every_understanding_task_is_on_the_hub():
    on_hub = {name for name in task_names() if get_task(name).hub}
    assert on_hub == UNDERSTANDING
    for name in on_hub:
        task = get_task(name)
        assert set(task.hub.files) <= set(task.splits)
        assert next(iter(task.splits)) in task.hub.files  # the default split is there


@pytest.mark.parametrize(
    ("data", "repo", "commit"),
    [
        ("hub", "org/name", COMMIT),
        (f"hub@{COMMIT[::-1]}", "org/name", COMMIT[::-1]),
        ("hub:other/copy", "other/copy", COMMIT),
        ("hub:other/copy@main", "other/copy", COMMIT),
    ],
)
def test_repository_and_commit_of_a_download(data, repo, commit, cache):
    (cache(repo, commit) / "a.parquet").touch()
    fetched = fetch(data, "mine", HubData("org/name", {"test": ("*.parquet",)}), "test")
    assert fetched.source == f"hub:{repo}@{commit}"
    assert (fetched.root / "a.parquet").exists()


def test_only_the_files_of_the_split_are_downloaded(monkeypatch, tmp_path):
    asked = {}

    def download(repo, **settings):
        asked.update(settings, repo=repo)
        (tmp_path / "test-0.parquet").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub = HubData("org/name", {"test": ("test-*.parquet",), "val": ("val-*.parquet",)})
    fetch("hub@v1", "mine", hub, "test")
    assert asked == {
        "repo": "org/name",
        "repo_type": "dataset",
        "revision": "v1",
        "allow_patterns": ["test-*.parquet"],
    }


def test_values_of_data_that_name_the_hub():
    assert all(is_hub(data) for data in ("hub", "hub@v1", "hub:a/b", "hub:a/b@v1"))
    assert not any(is_hub(data) for data in (None, "./hub", "hubs", "data/hub"))


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        (
            "hub",
            "test",
            "lmms-lab-encoder/MME is not in the cache and cannot be fetched .* mme also takes --data DIR",
        ),
        ("hub:name", "test", "names no dataset"),
        ("hub:a/b@", "test", "names no dataset"),
        ("hub:a/", "test", "names no dataset"),
        ("hub:lmms lab/MME", "test", "cannot be fetched"),
    ],
)
def test_mistakes_are_one_line(data, split, message, cache):
    with pytest.raises(UserError, match=message) as caught:
        load_data(get_task("mme"), Settings(data=data, split=split))
    assert "\n" not in str(caught.value)


def test_tasks_and_splits_that_are_not_on_the_hub(cache):
    with pytest.raises(UserError, match="geneval is not taken from the hub"):
        load_data(get_task("geneval"), Settings(data="hub"))
    with pytest.raises(UserError, match="the split dev-20230712 is not on the hub"):
        load_data(get_task("mmbench"), Settings(data="hub", split="dev-20230712"))
    (cache("other/thing") / "README.md").touch()
    with pytest.raises(UserError, match="other/thing holds no data/test"):
        load_data(get_task("mme"), Settings(data="hub:other/thing"))
    assert load_data(get_task("nlvr"), Settings(data="hub")).source == "package"


def test_the_commit_is_in_the_manifest_and_the_result(cache, calculator, tmp_path):
    task = get_task("gqa")
    gqa(tmp_path, cache(task.hub.repo))
    settings = Settings(data="hub")
    folder = predict(task, calculator(), tmp_path / "out", settings)
    named = f"hub:{task.hub.repo}@{COMMIT}"
    assert json.loads((folder / "manifest.json").read_text())["data_source"] == named
    assert score(task, tmp_path / "out", settings)["data_source"] == named
