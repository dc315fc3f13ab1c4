"""Sentences about scenes are true, questions have the stated answers, skills show what they name."""

import re
from collections import Counter

import numpy as np
import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.scenes.language import (
    BARE_SHARE,
    NUMBER_WORDS,
    SKILLS,
    ImageSpec,
    captions,
    describe,
    noun_phrase,
    scene_for_skill,
    spec_for_scene,
)
from dualtoken.data_pipelines.scenes.questions import KINDS, questions, statements
from dualtoken.data_pipelines.scenes.scene import Scene, SceneObject, random_scene, relation

PHRASES = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
LOOK = r"(?:the )?(?:(\w+) )?(\w+)"
RELATION = "|".join(PHRASES)


def asked(count: int) -> list[tuple[Scene, str, str, str]]:
    result = []
    for seed in range(count):
        rng = np.random.default_rng((9, seed))
        scene = random_scene(rng)
        result += [(scene, *question) for question in questions(scene, rng)]
    return result


def the_one(scene: Scene, colour: str | None, shape: str) -> SceneObject:
    fitting = [item for item in scene.objects if item.shape == shape and colour in (None, item.colour)]
    assert len(fitting) == 1, f"'the {colour} {shape}' names {len(fitting)} objects"
    return fitting[0]


def number_of(scene: Scene, what: str) -> int:
    singular = {"crosses": "cross"}.get(what, what.removesuffix("s") if what != "cross" else what)
    return sum(singular in (item.shape, item.colour) for item in scene.objects)


def claim_holds(scene: Scene, claim: str) -> bool:
    """A parser of claims that is independent of the generator."""
    if match := re.fullmatch(rf"{LOOK} ({RELATION}) {LOOK}", claim.replace(" is ", " ")):
        a, b = the_one(scene, match[1], match[2]), the_one(scene, match[4], match[5])
        return relation(a, b) == PHRASES[match[3]]
    if match := re.fullmatch(r"there (?:is exactly|are) (\w+) (?:(\w+) objects?|(\w+))", claim):
        return number_of(scene, match[2] or match[3]) == NUMBER_WORDS.index(match[1])
    if match := re.fullmatch(r"there is an? (\w+) (\w+)", claim):
        return match.groups() in [(item.colour, item.shape) for item in scene.objects]
    if match := re.fullmatch(r"the (\w+) is (\w+)", claim):
        return the_one(scene, None, match[1]).colour == match[2]
    raise AssertionError(f"cannot read '{claim}'")


def right_answer(scene: Scene, question: str, kind: str) -> str:
    words = question.rstrip("?").split()
    if kind == "total_count":
        return str(len(scene.objects))
    if kind in ("count_by_shape", "count_by_colour"):
        return str(number_of(scene, words[-1] if words[2] == "are" else words[2]))
    if kind == "colour":
        return the_one(scene, None, words[-2] if words[-1] == "have" else words[-1]).colour
    if kind == "shape":
        colour = words[-1] if question.startswith("Which") else words[-2]
        (item,) = (item for item in scene.objects if item.colour == colour)
        return item.shape
    if kind == "relation":
        match = re.fullmatch(rf"Where is {LOOK} relative to {LOOK}\?", question)
        assert match
        return str(relation(the_one(scene, match[1], match[2]), the_one(scene, match[3], match[4])))
    if kind == "relation_yes_no":
        return "yes" if claim_holds(scene, question.removeprefix("Is ").rstrip("?")) else "no"
    if kind == "existence":
        empty = ("Is", "there", "a", "an", "in", "the", "image", "Do", "you", "see", "anything")
        named = [word for word in words if word not in empty]
        fits = [set(named) <= {item.colour, item.shape} for item in scene.objects]
        return "yes" if any(fits) else "no"
    return "true" if claim_holds(scene, question.removeprefix("True or false: ").rstrip(".")) else "false"


def test_every_answer_is_correct():
    for scene, question, answer, kind in asked(500):
        assert right_answer(scene, question, kind) == answer, (question, scene)
        assert re.fullmatch(r"[a-z]+|\d", answer)


def test_every_kind_occurs_and_yes_is_as_common_as_no():
    found = asked(800)
    assert {kind for *_, kind in found} == set(KINDS)
    for kind, yes in (("existence", "yes"), ("relation_yes_no", "yes"), ("statement", "true")):
        answers = Counter(answer for *_, answer, k in found if k == kind)
        assert 0.42 < answers[yes] / answers.total() < 0.58
    negatives = [(s, q) for s, q, answer, kind in found if kind == "existence" and answer == "no"]
    hard = [any(word in q for item in s.objects for word in (item.colour, item.shape)) for s, q in negatives]
    assert sum(hard) / len(hard) > 0.5, "most negatives name a colour or a shape of the scene"


def test_questions_are_distinct_and_as_many_as_requested():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = questions(random_scene(rng, num_objects=1 + seed % 4), rng, 6)
        assert len(found) == 6
        assert len({question.question for question in found}) == 6


def test_statements_are_correct():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        for question, answer, kind in statements(scene, rng):
            assert kind == "statement"
            assert right_answer(scene, question, kind) == answer


def test_descriptions_name_everything():
    scene = Scene(
        (
            SceneObject("cross", "orange", 0.2, 0.2, 0.125),
            SceneObject("star", "red", 0.7, 0.2, 0.125),
            SceneObject("cross", "orange", 0.5, 0.7, 0.125),
        ),
        "light grey",
    )
    sentences = {describe(scene, np.random.default_rng(seed)) for seed in range(20)}
    assert sentences == {
        "Two orange crosses and a red star on a light grey background.",
        "A red star and two orange crosses on a light grey background.",
    }
    assert noun_phrase("star", "orange") == "an orange star"


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_shows_the_objects_of_its_specification(skill):
    for seed in range(150):
        scene, prompt, spec = scene_for_skill(np.random.default_rng(seed), skill)
        assert ImageSpec.from_dict(spec.to_dict()) == spec
        looks = Counter((item.shape, item.colour) for item in scene.objects)
        assert looks == Counter({(o.shape, o.colour): o.count for o in spec.objects})
        assert all(o.colour in prompt.lower() and o.shape in prompt.lower() for o in spec.objects)
        assert (spec.relation is not None) == (skill == "position")
        if skill == "position":
            assert relation(*scene.objects) == spec.relation
        if skill in ("two_object", "color_attr"):
            assert spec.objects[0].colour != spec.objects[1].colour
        if " background" in prompt:
            assert f"{scene.background} background" in prompt


def test_the_bare_prompt_is_by_far_the_most_common():
    prompts = [scene_for_skill(np.random.default_rng(seed), "single_object").prompt for seed in range(1000)]
    bare = sum(re.fullmatch(r"(an?|one) \w+ \w+", prompt) is not None for prompt in prompts)
    assert bare / 1000 == pytest.approx(BARE_SHARE, abs=0.05)
    assert (
        len({re.sub(r"(an?|one) \w+ (?=circle|square|triangle|diamond|star|cross)", "", p) for p in prompts})
        > 30
    )


def test_captions_of_two_objects_may_state_their_relation():
    rng = np.random.default_rng(0)
    scene = random_scene(rng, num_objects=2, repetition=0.0)
    while relation(*scene.objects) is None:
        scene = random_scene(rng, num_objects=2, repetition=0.0)
    found = captions(scene, rng, count=50)
    assert any(phrase in text for text in found for phrase in PHRASES)
    assert all(item.shape in text.lower() for text in found for item in scene.objects)
    assert len(spec_for_scene(scene).objects) == 2


def test_an_unknown_skill_is_refused():
    with pytest.raises(UserError, match="single_object"):
        scene_for_skill(np.random.default_rng(0), "juggling")
