"""The checker of images: correct on clean renders, robust to soft edges, strict on incorrect images."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.scenes.checker import check, find_objects
from dualtoken.data_pipelines.scenes.language import SKILLS, ImageSpec, WantedObject, scene_for_skill
from dualtoken.data_pipelines.scenes.scene import COLOURS, SHAPES, Scene, SceneObject, random_scene, render


def one(shape="circle", colour="red", x=0.5, y=0.5, radius=0.2):
    return SceneObject(shape, colour, x, y, radius)


def image_of(*objects, size=64, background="white"):
    return render(Scene(tuple(objects), background), size)


def looks(image):
    return sorted((item.colour, item.shape) for item in find_objects(image))


def accuracy(images, scenes):
    right = [
        looks(i) == sorted((o.colour, o.shape) for o in s.objects)
        for i, s in zip(images, scenes, strict=True)
    ]
    return sum(right) / len(right)


def soften(image, seed):
    """The image with blur and noise, as after a coarse tokenizer."""
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(1.0)), dtype=float)
    noise = np.random.default_rng(seed).normal(0, 15, blurred.shape)
    return Image.fromarray((blurred + noise).clip(0, 255).astype(np.uint8))


def test_clean_and_soft_renders_are_recognised():
    scenes = [random_scene(np.random.default_rng((4, seed))) for seed in range(150)]
    clean = [render(scene, 64) for scene in scenes]
    assert accuracy(clean, scenes) >= 0.99
    assert accuracy([soften(image, i) for i, image in enumerate(clean)], scenes) >= 0.97
    assert accuracy([render(scene, 200) for scene in scenes[:30]], scenes[:30]) >= 0.99


@pytest.mark.parametrize("background", ["white", "light grey"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_colour_of_every_shape_at_its_smallest(shape, background):
    for colour in COLOURS:
        item = one(shape, colour, 0.41, 0.37, 0.125)
        (found,) = find_objects(image_of(item, background=background))
        assert (found.colour, found.shape) == (colour, shape)
        assert (found.x, found.y, found.radius) == pytest.approx((0.41, 0.37, 0.125), abs=0.012)


def test_touching_objects_of_two_colours_are_two():
    image = image_of(one("square", "red", 0.35, 0.5, 0.16), one("square", "blue", 0.62, 0.5, 0.16))
    assert looks(image) == [("blue", "square"), ("red", "square")]


def test_specks_and_faint_objects_are_ignored():
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[10:12, 10:13] = COLOURS["red"]
    pixels[30:45, 30:45] = 225
    assert find_objects(Image.fromarray(pixels)) == []


def test_a_blob_and_an_unknown_colour_are_unclear():
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[20:24, 5:60] = COLOURS["blue"]
    pixels[24:50, 50:54] = COLOURS["blue"]
    (found,) = find_objects(Image.fromarray(pixels))
    assert (found.colour, found.shape) == ("blue", "unclear")
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[20:40, 20:40] = (0, 255, 255)
    (found,) = find_objects(Image.fromarray(pixels))
    assert (found.colour, found.shape) == ("unclear", "square")


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_is_passed_by_its_own_scene(skill):
    for seed in range(40):
        scene, prompt, spec = scene_for_skill(np.random.default_rng((6, seed)), skill)
        result = check(spec.to_dict(), render(scene, 64))
        assert result.correct, (prompt, result.reason)
        assert result.colour_correct
        assert result.shape_correct
        assert not result.reason


RED_CIRCLE = WantedObject("circle", "red")
BLUE_SQUARE = WantedObject("square", "blue")


@pytest.mark.parametrize(
    ("spec", "objects", "colour", "shape"),
    [
        (ImageSpec("single_object", (RED_CIRCLE,)), [], False, False),
        (ImageSpec("single_object", (RED_CIRCLE,)), [one(), one(x=0.8, y=0.8, radius=0.13)], False, False),
        (ImageSpec("single_object", (RED_CIRCLE,)), [one(colour="orange")], False, True),
        (ImageSpec("single_object", (RED_CIRCLE,)), [one(shape="star")], True, False),
        (ImageSpec("colors", (RED_CIRCLE,)), [one(colour="purple")], False, True),
        (ImageSpec("counting", (WantedObject("circle", "red", 2),)), [one()], False, False),
        (
            ImageSpec("two_object", (RED_CIRCLE, BLUE_SQUARE)),
            [one("circle", "blue", 0.3), one("square", "red", 0.75)],
            True,
            True,
        ),
        (
            ImageSpec("position", (RED_CIRCLE, BLUE_SQUARE), "left"),
            [one("circle", "red", 0.75), one("square", "blue", 0.3)],
            True,
            True,
        ),
    ],
)
def test_an_incorrect_image_fails_with_a_reason(spec, objects, colour, shape):
    result = check(spec, image_of(*objects))
    assert not result.correct
    assert result.reason
    assert (result.colour_correct, result.shape_correct) == (colour, shape)


def test_the_colour_skill_allows_other_objects():
    spec = ImageSpec("colors", (RED_CIRCLE,))
    assert check(spec, image_of(one(x=0.3), one("star", "blue", 0.75))).correct


def test_a_tiny_image_is_refused():
    with pytest.raises(UserError, match="16 pixels"):
        find_objects(Image.new("RGB", (8, 8)))
