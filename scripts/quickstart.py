"""Let the small model that comes with the package answer questions and generate images, without download.

Writes the image that the questions are about and the generated images into a folder.

Example:
  dualtoken quickstart
  dualtoken quickstart --prompt "a blue star" --num-images 2 --output /tmp/first-look
"""

import argparse
import sys
import time

from ..common.output_files import check_files, staged_files
from . import cli, options

QUESTIONS = ("What shape is the purple object?", "How many objects are there?")
SCENE = "scene.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--prompt",
        type=options.words,
        default="a red circle",
        help="what the images show (default: a red circle)",
    )
    add("--num-images", type=options.num_images, default=4, help="how many images (default: 4)")
    add("--seed", type=options.seed, default=0, help="another seed, other images (default: 0)")
    add(
        "--output",
        type=options.path,
        default="quickstart",
        help="folder for the images (default: ./quickstart)",
    )
    options.add_shared(parser, "--model", "--device")


def run(args: argparse.Namespace) -> int:
    from ..common.images.reading import load_image
    from ..data_pipelines.scenes.scene import Scene, SceneObject, render
    from ..mllm import resolve_model

    start = time.perf_counter()
    names = [f"drawing_{index}.png" for index in range(args.num_images)]
    check_files(args.output, [SCENE, *names])
    device = options.resolve_device(args.device)
    resolve_model(args.model)  # fails before anything is printed
    print(f"loading {args.model} on {device} …", flush=True)
    pipeline = options.load_pipeline(args.model, device)
    print(f"loaded in {time.perf_counter() - start:.1f} s")

    scene = Scene(
        objects=(
            SceneObject("circle", "green", 0.28, 0.34, 0.19),
            SceneObject("square", "purple", 0.72, 0.66, 0.18),
        )
    )
    with staged_files(args.output, "quickstart") as folder:
        render(scene, 256).save(folder / SCENE)
    print(f"\nan image of a green circle and a purple square: {args.output / SCENE}")
    image = load_image(args.output / SCENE)
    for question in QUESTIONS:
        print(f"  {question} {pipeline.answer(image, question)}", flush=True)

    generation_start = time.perf_counter()
    print(f"\ngenerating {args.num_images} images of {args.prompt!r} …", flush=True)
    images = pipeline.generate_images(
        args.prompt, num_images=args.num_images, seed=args.seed, progress=sys.stderr.isatty()
    )
    with staged_files(args.output, "quickstart") as folder:
        for name, image in zip(names, images, strict=True):
            image.save(folder / name)
    print(f"{len(images)} images in {time.perf_counter() - generation_start:.1f} s:")
    for name in names:
        print(f"  {args.output / name}")

    print(f"\ndone in {time.perf_counter() - start:.1f} s. Next: dualtoken chat, dualtoken sample --help")
    return 0


if __name__ == "__main__":
    cli.run_main(__spec__)
