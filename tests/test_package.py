"""The package as it is installed: version, requirements, and what a built copy holds."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dualtoken

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup() -> dict:
    return runpy.run_path(str(ROOT / "setup.py"), run_name="not_main")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that an installation copies, made by setup.py."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder / "dualtoken"


def test_there_is_one_version(setup):
    assert setup["read_version"]() == dualtoken.__version__
    assert str(Version(dualtoken.__version__)) == dualtoken.__version__
    assert f"\nversion: {dualtoken.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(dualtoken.__version__)}\b", changes, re.MULTILINE)


def test_importing_the_package_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import dualtoken;"
        "new = {name for name in set(sys.modules) - before if not name.startswith('dualtoken')};"
        "assert not new, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_constraints_fit_the_requirements(setup):
    """Every requirement outside the extra `gpu` has an exact version in constraints.txt that it allows."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins), "a package is listed twice"
    assert all(re.fullmatch(r"==[^=<>!~,]+", str(pin.specifier)) for pin in pins)
    extras = [
        text for name, extra in setup["EXTRAS"].items() if name not in ("gpu", "lmms") for text in extra
    ]
    for text in [*setup["CORE"], *extras]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


def test_both_ends_of_the_range_of_transformers_are_tested(setup):
    """`make oldest` runs with the lower bound, the other tests with the newest below the upper one."""
    (allowed,) = [one for one in map(Requirement, setup["CORE"]) if one.name == "transformers"]
    least, beyond = (
        Version(bound.version) for bound in sorted(allowed.specifier, key=lambda b: b.operator)[::-1]
    )
    oldest, newest = (_pinned(ROOT / name, "transformers") for name in (".ci/oldest.txt", "constraints.txt"))
    assert oldest.release[:2] == least.release[:2]
    assert newest.release[:2] == (beyond.major, beyond.minor - 1)


def _pinned(file: Path, name: str) -> Version:
    found = re.search(rf"^{name}==(.+)$", file.read_text(), re.MULTILINE)
    assert found is not None
    return Version(found[1])


def test_the_extras_are_the_documented_ones(setup):
    assert set(setup["EXTRAS"]) == {"train", "eval", "lmms", "gpu", "gguf", "bench", "docs", "dev"}
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{extra}`" in readme for extra in setup["EXTRAS"])


def test_missing_optional_packages_are_named_by_their_extra(setup):
    from dualtoken.common.packages import OPTIONAL

    for extra, package in OPTIONAL.values():
        wanted = canonicalize_name(package)
        assert wanted in [canonicalize_name(Requirement(text).name) for text in setup["EXTRAS"][extra]]


def test_a_built_copy_holds_every_module_and_no_tests(built):
    expected = {
        path.relative_to(ROOT)
        for folder in ("tokenizer", "mllm", "data_pipelines", "train", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    }
    found = {path.relative_to(built) for path in built.rglob("*.py")}
    assert expected <= found
    assert not any(path.parts[0] in ("tests", "build", "docs", ".venv") for path in found)
    assert Path("setup.py") not in found


def test_a_built_copy_holds_the_small_model_and_all_that_is_not_a_module(built):
    data = ("pretrained/**/*", "train/recipes/**/*.yaml", "train/zero/*.json", "ablations/*.yaml")
    for pattern in (*data, "benchmarks/*.py", "py.typed"):
        expected = {path.relative_to(ROOT) for path in ROOT.glob(pattern) if path.is_file()}
        assert expected <= {path.relative_to(built) for path in built.glob(pattern)}
    assert list(built.glob("train/recipes/*.yaml"))


def test_every_folder_of_modules_is_a_package():
    """A folder without `__init__.py` would be missing from an installation, but not from an editable one."""
    names = ("common", "tokenizer", "mllm", "data_pipelines", "train", "eval", "scripts")
    folders = {path.parent for name in names for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_console_script_is_what_it_says(setup):
    from importlib.metadata import PackageNotFoundError, entry_points, version

    try:
        installed = version("dualtoken")
    except PackageNotFoundError:
        pytest.skip("dualtoken is importable but not installed")
    assert installed == dualtoken.__version__
    (script,) = entry_points(group="console_scripts", name="dualtoken")
    assert script.value == "dualtoken.scripts.cli:main"
