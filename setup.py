"""Packaging of DualToken. The repository root is the import package `dualtoken`, its folders the subpackages.

`pip install .` copies, `pip install -e .` is for development; both take extras: `pip install -e '.[dev]'`.
Exact versions that were tested together stand in constraints.txt: `pip install -c constraints.txt .`
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NOT_PACKED = ("tests", "tests.*", "build", "build.*", "dist", "docs", "docs.*")

CORE = [
    "torch>=2.6",
    "transformers>=5,<5.25",  # the newest that all tests passed with is 5.24
    "safetensors>=0.4",
    "sentencepiece>=0.2",
    "protobuf>=4",  # transformers reads sentencepiece models with it
    "numpy>=1.26",
    "pillow>=10",
    "scipy>=1.11",
    "webdataset>=1.0",
    "braceexpand>=0.1.7",
    "filelock>=3.12",
    "fsspec>=2024.2",
    "jsonargparse[signatures]>=4.49",
    "pyyaml>=6",
    "tqdm>=4.66",
]

EXTRAS = {
    "train": [
        "deepspeed>=0.19,<0.20",  # train/backend/deepspeed.py depends on how it works inside
        "tensorboard>=2.17",
        "torchdata>=0.11",
        "open_clip_torch>=3.0",
        "peft>=0.17",
        "datasets>=4",
        "lpips>=0.1.4",
    ],
    "eval": [
        "torchmetrics>=1.5",
        "torch-fidelity>=0.4",  # the Inception of FID, which torchmetrics wraps
        "lpips>=0.1.4",
        "open_clip_torch>=3.0",
        "matplotlib>=3.8",
        "pyarrow>=17",
    ],
    # Hundreds of tasks beside our own; brings some eighty packages.
    "lmms": ["lmms-eval>=0.7"],
    # Compiled for one CUDA and torch version each, so nothing else in the package requires them.
    "gpu": ["flash-attn", "liger-kernel", "bitsandbytes>=0.46.1", "accelerate>=1.1"],
    # What `dualtoken bench` compares with.
    "bench": ["vector-quantize-pytorch>=1.20"],
    "dev": [
        "pytest>=8.3",
        "hypothesis>=6.100",
        "pytest-xdist>=3.6",
        "pytest-timeout>=2.3",
        "psutil>=6",
        "scikit-image>=0.24",  # its PSNR and SSIM are what ours are compared with
        "ruff>=0.9",
        "mypy>=1.13",
        "pre-commit>=4",
        "types-PyYAML",
        "types-tqdm",
    ],
}


def read_version() -> str:
    """The version written in the root `__init__.py`, read as text so that building imports nothing."""
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('__init__.py has no line __version__ = "…"')
    return match.group(1)


def packages() -> list[str]:
    """`dualtoken` and, as `dualtoken.<folder>`, every folder of the root that has an `__init__.py`."""
    return ["dualtoken", *(f"dualtoken.{name}" for name in find_packages(str(ROOT), exclude=NOT_PACKED))]


class BuildPackage(build_py):
    """Copies the package without this file, and without what an earlier build left in `build/`."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "dualtoken", ignore_errors=True)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("dualtoken", "setup")]


if __name__ == "__main__":
    setup(
        name="dualtoken",
        version=read_version(),
        description="Images as pixel and semantic tokens, understood and drawn by one language model",
        long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        author="DualToken contributors",
        license="MIT",
        license_files=["LICENSE"],
        python_requires=">=3.11",
        package_dir={"dualtoken": "."},
        packages=packages(),
        cmdclass={"build_py": BuildPackage},
        include_package_data=False,
        package_data={
            "dualtoken": ["pretrained/**/*", "ablations/*.yaml", "benchmarks/*.py"],
            "dualtoken.scripts.nano": ["*.md"],
            "dualtoken.train": ["recipes/*.yaml", "recipes/*/*.yaml"],
        },
        install_requires=CORE,
        extras_require=EXTRAS,
        entry_points={
            "console_scripts": ["dualtoken = dualtoken.scripts.cli:main"],
            "lmms_eval.models": ["dualtoken = dualtoken.eval.plugins.lmms:manifest"],
        },
        classifiers=[
            "Development Status :: 3 - Alpha",
            "Intended Audience :: Science/Research",
            "Programming Language :: Python :: 3.11",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
        ],
        zip_safe=False,
    )
