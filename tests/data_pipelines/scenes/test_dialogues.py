"""Rewordings keep the meaning, and every answer in a dialogue follows from its scene."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from dualtoken.data_pipelines.records import Record
from dualtoken.data_pipelines.scenes.checker import check
from dualtoken.data_pipelines.scenes.convert import SceneOptions, scene_record
from dualtoken.data_pipelines.scenes.dialogues import FORMS
from dualtoken.data_pipelines.scenes.language import SKILLS, plural, scene_for_skill
from dualtoken.data_pipelines.scenes.questions import KINDS, questions
from dualtoken.data_pipelines.scenes.scene import (
    COLOURS,
    HELD_OUT_SEED,
    SHAPES,
    Scene,
    random_scene,
    relation,
    render,
)
from dualtoken.data_pipelines.scenes.wordings import RELATION_WORDS, reword_prompt, reword_question
from dualtoken.eval.data.held_out import HeldOut, image_prompts, single_questions

NUMBERS = {"one": 1, "a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "no": 0}
WHERE = {phrase: where for where, phrases in RELATION_WORDS.items() for phrase in phrases}
ANY_WHERE = "|".join(sorted(WHERE, key=len, reverse=True))


def things(text: str) -> Counter[str]:
    """Colours and shapes that a text names."""
    known = {name: name for name in (*COLOURS, *SHAPES)} | {plural(shape): shape for shape in SHAPES}
    return Counter(known[word] for word in re.findall(r"\w+", text.lower()) if word in known)


def wheres(text: str) -> set[str]:
    return {WHERE[found] for found in re.findall(ANY_WHERE, text.lower())}


# --- other words ----------------------------------------


def test_a_reworded_question_names_the_same_objects_in_a_wording_of_its_kind():
    seen = Counter[str]()
    for seed in range(400):
        rng = np.random.default_rng((3, seed))
        for asked in questions(random_scene(rng), rng):
            for reserved in (False, True):
                other = reword_question(asked.question, asked.kind, rng, reserved)
                assert things(other) == things(asked.question), (asked.question, other)
                if asked.kind in ("relation_yes_no", "statement"):
                    assert wheres(other) == wheres(asked.question), (asked.question, other)
                assert "{" not in other
            seen[asked.kind] += other.lower().rstrip("?.") != asked.question.lower().rstrip("?.")
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > 20


def test_the_objects_of_a_relation_keep_their_roles():
    rng = np.random.default_rng(5)
    turned = ("Seen from", "Which side of", "On which side of", "In which direction from")
    for _ in range(100):
        other = reword_question("Where is the red star relative to the circle?", "relation", rng)
        first = other.index("red star") < other.index("circle")
        assert first == (not other.lower().startswith(tuple(start.lower() for start in turned))), other


def test_reserved_wordings_never_occur_in_training():
    asked = ("How many objects are there?", "total_count")
    plain = {reword_question(*asked, np.random.default_rng(n)).lower().strip("?.") for n in range(300)}
    kept = {reword_question(*asked, np.random.default_rng(n), True).lower().strip("?.") for n in range(50)}
    assert len(plain) > 5
    assert not plain & kept


@pytest.mark.parametrize("skill", SKILLS)
def test_a_reworded_prompt_names_the_objects_of_its_specification(skill):
    for seed in range(150):
        rng = np.random.default_rng((4, seed))
        generated = scene_for_skill(rng, skill)
        prompt = reword_prompt(generated.spec, rng, generated.scene.background, reserved=bool(seed % 2))
        expected = Counter(
            word for wanted in generated.spec.objects for word in (wanted.colour, wanted.shape)
        )
        assert things(prompt) - Counter(["white"]) == expected, prompt
        assert wheres(prompt) == ({generated.spec.relation} if generated.spec.relation else set()), prompt
        if generated.spec.objects[0].count > 1:
            assert re.search(rf"\b(two|three|four|{generated.spec.objects[0].count})\b", prompt)


# --- records ----------------------------------------


def fingerprint(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def test_the_evaluation_records_of_nano_have_not_changed():
    asked = [next(single_questions(record)) for record in HeldOut().scenes(600)]
    assert fingerprint([[a.question, a.answer, a.kind] for a in asked]) == "561cd9d26965"
    images = [record for skill in SKILLS for record in image_prompts(skill, 100)]
    assert fingerprint([[r.texts()[0], r.metadata["spec"]] for r in images]) == "c56f6f7cc665"


@pytest.mark.parametrize("task", ["vqa", "t2i", "caption"])
def test_rewording_follows_its_share_and_changes_nothing_else(task):
    plain = [scene_record(SceneOptions(task=task, image_size=8), n) for n in range(150)]
    other = [scene_record(SceneOptions(task=task, image_size=8, paraphrase=0.3), n) for n in range(150)]
    changed, number = 0, 0
    for before, after in zip(plain, other, strict=True):
        assert before.metadata == after.metadata
        texts = list(zip(before.texts(), after.texts(), strict=True))
        assert all(a == b for a, b in texts[1::2])
        changed += sum(a != b for a, b in texts[::2])
        number += len(texts[::2])
    assert 0.15 < changed / number < 0.42


@pytest.mark.parametrize("bad", [{"paraphrase": 1.5}, {"paraphrase": -0.1}, {"turns": 1}])
def test_invalid_shares_and_turns_are_refused(bad):
    with pytest.raises(ValueError, match=f"--{next(iter(bad))} is"):
        SceneOptions(**bad)


# --- dialogues ----------------------------------------


def dialogues(count: int, **options: Any) -> list[Record]:
    settings = SceneOptions(task="chat", image_size=64, **options)
    return [scene_record(settings, number).validate() for number in range(count)]


class Reader:
    """Reads a dialogue as a person would, and derives the correct answer to each turn."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.last = ""
        self.it: Any = None

    def only(self, **look: str) -> Any:
        found = [o for o in self.scene.objects if all(getattr(o, k) == v for k, v in look.items())]
        assert len(found) == 1, look
        self.it = found[0]
        return self.it

    def follow_up(self, ask: str) -> str:
        named = list(things(ask))
        colours = [name for name in named if name in COLOURS]
        shapes = [name for name in named if name in SHAPES]
        if re.search(r"\bit\b", ask):
            it = self.it
            where = relation(it, self.only(colour=colours[0], shape=shapes[0]))
            self.it = it
            return str(where) if ask.startswith("Where") else "yes" if wheres(ask) == {where} else "no"
        if match := re.search(r"have the same (colour|shape)", ask):
            others = sum(getattr(o, match[1]) == getattr(self.it, match[1]) for o in self.scene.objects) - 1
            return str(others) if ask.startswith("How many") else "yes" if others else "no"
        if re.search(r"\ball\b", ask):
            return str(len(self.scene.objects))
        if self.last == "colour":
            return str(self.only(shape=shapes[0]).colour)
        if self.last == "shape":
            return str(self.only(colour=colours[0]).shape)
        if self.last == "count":
            return str(sum(o.shape == shapes[0] for o in self.scene.objects))
        assert self.last.startswith("existence")
        look = (colours[0], self.last.split()[1])
        return "yes" if look in {(o.colour, o.shape) for o in self.scene.objects} else "no"

    def opening(self, ask: str, kind: str, answer: str) -> None:
        """Notes what a question that stands by itself is about."""
        named = list(things(ask))
        if kind == "colour":
            assert self.only(shape=named[0]).colour == answer
        elif kind == "shape":
            assert self.only(colour=named[0]).shape == answer
        elif kind == "existence" and len(named) == 2:
            kind = f"existence {next(name for name in named if name in SHAPES)}"
        self.last = "count" if kind == "count_by_shape" else kind


@pytest.mark.parametrize("paraphrase", [0.0, 0.5])
def test_every_answer_of_a_dialogue_follows_from_its_scene(paraphrase):
    follow_ups = Counter[str]()
    for record in dialogues(400, seed=8, paraphrase=paraphrase):
        scenes = [Scene.from_dict(scene) for scene in record.metadata["scenes"]]
        reader = Reader(scenes[0])
        turns = zip(record.messages[::2], record.messages[1::2], record.metadata["kinds"], strict=True)
        for ask, reply, kind in turns:
            text, part = ask["content"][-1]["text"], reply["content"][0]
            if kind == "follow_up":
                assert reader.follow_up(text) == part["text"], record.texts()
                follow_ups[part["text"]] += 1
            elif kind not in ("draw", "caption"):
                reader.opening(text, kind, part["text"])
    assert sum(follow_ups.values()) > 200
    assert {"yes", "no", "left", "above", "red", "star", "0", "2"} <= set(follow_ups)


def test_every_image_of_a_dialogue_is_the_scene_that_is_specified():
    images = 0
    for record in dialogues(150, seed=9):
        generated = [part for role, part in record.parts() if part["type"] == "image" and role == "assistant"]
        specs = [spec for spec in record.metadata["specs"] if spec]
        assert len(generated) == len(specs)
        shown = len(record.image_parts()) - len(generated)
        for scene, spec, part in zip(record.metadata["scenes"][shown:], specs, generated, strict=True):
            image = render(Scene.from_dict(scene), 64)
            assert part["image"].tobytes() == image.tobytes()
            assert check(spec, image).correct, (record.texts(), spec)
            images += 1
        asks = [m["content"][-1]["text"] for m in record.messages[::2]]
        last = things(asks[-1])
        if record.metadata["form"] == "ask_then_draw":
            named = Counter(
                word for wanted in specs[-1]["objects"] for word in (wanted["colour"], wanted["shape"])
            )
            assert named <= last, (asks, specs)
        elif len(specs) == 2:  # the first image, changed in what the last turn names
            before, after = (spec["objects"][0] for spec in specs)
            kept = [key for key in ("colour", "shape", "count") if before[key] == after[key]]
            assert len(kept) == 2
            assert things(" ".join((after["colour"], after["shape"]))) >= last
    assert images > 80


def test_dialogues_have_every_form_and_an_allowed_number_of_turns():
    records = dialogues(200, seed=10, turns=4)
    forms = Counter(record.metadata["form"] for record in records)
    assert set(forms) == set(FORMS)
    assert min(forms.values()) > 30
    lengths = {len(record.messages) // 2 for record in records}
    assert lengths == {2, 3, 4}
    assert dialogues(3, seed=10, turns=4)[2].texts() == records[2].texts()
    held_out = SceneOptions(task="chat", seed=HELD_OUT_SEED, paraphrase=1.0, image_size=8)
    assert scene_record(held_out, 0).texts()


def test_a_dialogue_states_that_its_turns_are_ordered():
    record = next(record for record in dialogues(20, seed=11) if record.metadata["form"] == "look")
    assert record.metadata["ordered"]
