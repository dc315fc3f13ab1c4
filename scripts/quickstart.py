"""Let the small model that comes with the package answer a question about a picture, and draw. No download.

Writes the picture it is asked about and the drawings into a folder.

Example:
  dualtoken quickstart
  dualtoken quickstart --prompt "a blue star" --num-images 2 --output /tmp/first-look
"""

import argparse
import sys
import time
from pathlib import Path

from .options import (
    add_device_argument,
    add_model_argument,
    integer,
    load_pipeline,
    resolve_device,
    text_argument,
)

QUESTIONS = ("What shape is the purple object?", "How many objects are there?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default="a red circle", help="what to draw (default: a red circle)")
    parser.add_argument("--num-images", type=integer(1), default=4, help="how many drawings (default: 4)")
    parser.add_argument(
        "--seed", type=integer(0), default=0, help="another seed, other drawings (default: 0)"
    )
    parser.add_argument(
        "--output", default="quickstart", help="folder for the pictures (default: ./quickstart)"
    )
    add_model_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from ..common.files import atomic_file
    from ..data_pipelines.scenes import Scene, SceneObject, render
    from ..tokenizer.processing import load_image

    start = time.perf_counter()
    prompt = text_argument(args.prompt, "--prompt")
    device = resolve_device(args.device)
    pipeline = load_pipeline(args.model, device)
    print(f"model {args.model} on {device}, loaded in {time.perf_counter() - start:.1f} s")

    folder = Path(args.output)
    scene = Scene(
        objects=(
            SceneObject("circle", "green", 0.28, 0.34, 0.19),
            SceneObject("square", "purple", 0.72, 0.66, 0.18),
        )
    )
    picture = folder / "scene.png"
    with atomic_file(picture) as temporary:
        render(scene, 256).save(temporary)
    print(f"\na picture of a green circle and a purple square: {picture}")
    image = load_image(picture)
    for question in QUESTIONS:
        print(f"  {question} {pipeline.answer(image, question)}")

    drawing_start = time.perf_counter()
    images = pipeline.generate_images(prompt, num_images=args.num_images, seed=args.seed)
    seconds = time.perf_counter() - drawing_start
    print(f"\n{len(images)} drawings of {prompt!r} in {seconds:.1f} s:")
    for index, image in enumerate(images):
        path = folder / f"drawing_{index}.png"
        with atomic_file(path) as temporary:
            image.save(temporary)
        print(f"  {path}")

    print(f"\ndone in {time.perf_counter() - start:.1f} s. Next: dualtoken chat, dualtoken sample --help")
    return 0


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["quickstart", *sys.argv[1:]]))
