"""Scenes: without overlap, deterministic for a seed, and labelled as they are rendered."""

import json

import numpy as np
import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.scenes.convert import SceneOptions
from dualtoken.data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    NUM_PATCH_CLASSES,
    OPPOSITE,
    SHAPES,
    Scene,
    SceneObject,
    coverage,
    patch_classes,
    place_objects,
    random_scene,
    relation,
    render,
)


def scenes(count: int) -> list[Scene]:
    return [random_scene(np.random.default_rng((3, seed))) for seed in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_objects_are_large_separate_and_inside(count):
    for seed in range(300):
        placements = place_objects(np.random.default_rng((count, seed)), count)
        assert len(placements) == count
        for i, a in enumerate(placements):
            assert a.radius >= 0.125
            assert min(a.x, a.y) - a.radius >= 0.0
            assert max(a.x, a.y) + a.radius <= 1.0
            for b in placements[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + 0.03


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [8, 16])
def test_on_a_grid_an_object_covers_the_same_cells_at_every_position(count, grid):
    side = 8 * grid
    seen = set()
    for seed in range(60):
        placements = place_objects(np.random.default_rng((count, seed)), count, grid)
        for i, a in enumerate(placements):
            star = Scene((SceneObject("star", "red", a.x, a.y, a.radius),))
            box = [round((edge - a.radius) * side) for edge in (a.x, a.y)]
            width = round(2 * a.radius * side)
            assert all(edge % 8 == 0 and 0 <= edge <= side - width for edge in box)
            area = (box[0], box[1], box[0] + width, box[1] + width)
            seen.add(render(star, side).crop(area).tobytes())
            gaps = [max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius for b in placements[:i]]
            assert min(gaps, default=1.0) >= 0.99 / grid
    assert len(seen) == 1


def test_a_grid_is_for_prompts_and_not_too_coarse():
    with pytest.raises(UserError, match="--grid is 7"):
        SceneOptions(task="t2i", grid=7)
    with pytest.raises(UserError, match="--task vqa"):
        SceneOptions(task="vqa", grid=8)


def test_placing_objects_never_fails():
    from dualtoken.data_pipelines.scenes.scene import _apart, _place_in_quadrants

    for seed in range(100):
        placements = _place_in_quadrants(np.random.default_rng(seed), 4, 0.125)
        assert all(_apart(a, b) for i, a in enumerate(placements) for b in placements[:i])


def test_a_seed_gives_one_scene_and_one_image():
    first, again = scenes(20), scenes(20)
    assert first == again
    assert all(render(a).tobytes() == render(b).tobytes() for a, b in zip(first, again, strict=True))
    assert len(set(first)) == 20


def test_a_scene_survives_json():
    for scene in scenes(50):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    pink = {"shape": "circle", "colour": "pink", "x": 0.5, "y": 0.5, "radius": 0.2}
    with pytest.raises(UserError, match="pink circle"):
        Scene.from_dict({"objects": [pink], "background": "white"})


def test_shapes_and_colours_occur_about_equally_often():
    objects = [item for scene in scenes(1500) for item in scene.objects]
    for values, names in (
        ([item.shape for item in objects], SHAPES),
        ([item.colour for item in objects], COLOURS),
    ):
        shares = [values.count(name) / len(values) for name in names]
        assert min(shares) > 0.8 / len(names)
    backgrounds = [scene.background for scene in scenes(500)]
    assert 0.7 < backgrounds.count("white") / 500 < 0.9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 64, 100])
def test_a_shape_is_rendered_at_its_position(shape, size):
    scene = Scene((SceneObject(shape, "black", 0.55, 0.4, 0.2),), "white")
    dark = 1.0 - np.asarray(render(scene, size).convert("L"), dtype=float) / 255.0
    rows, columns = np.nonzero(dark > 0.3)
    assert columns.mean() + 0.5 == pytest.approx(0.55 * size, abs=0.6)
    assert (rows.max() + rows.min() + 1) / 2 == pytest.approx(0.4 * size, abs=0.03 * size)
    assert columns.max() - columns.min() + 1 <= 0.4 * size * 1.06 + 1
    assert dark.sum() == pytest.approx(coverage(scene.objects[0], size).sum() * (1 - 16 / 255), rel=0.08)


def test_patch_classes_follow_the_image():
    for scene in scenes(60):
        labels = patch_classes(scene, 8)
        assert labels.shape == (8, 8)
        assert 0 <= labels.min() <= labels.max() < NUM_PATCH_CLASSES
        assert {item.patch_class for item in scene.objects} == set(np.unique(labels)) - {0}
        pixels = np.asarray(render(scene, 64), dtype=float).reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
        difference = np.abs(pixels - BACKGROUNDS[scene.background]).max(axis=-1)
        assert (difference[labels == 0] < 75).all()
        assert (difference[labels > 0] > 30).all()


def test_relations_are_stated_only_when_clear():
    def at(x, y):
        return SceneObject("circle", "red", x, y, 0.125)

    assert relation(at(0.2, 0.5), at(0.6, 0.6)) == "left"
    assert relation(at(0.6, 0.7), at(0.5, 0.2)) == "below"
    assert relation(at(0.3, 0.3), at(0.45, 0.35)) is None, "too near"
    assert relation(at(0.2, 0.2), at(0.6, 0.6)) is None, "diagonal"
    for scene in scenes(100):
        for a in scene.objects:
            for b in scene.objects:
                where = relation(a, b)
                assert relation(b, a) == (OPPOSITE[where] if where else None)
