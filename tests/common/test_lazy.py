"""Names and modules that are imported when they are needed."""

import importlib
import sys

import pytest

from dualtoken.common.lazy import after_import, lazy_class


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """first_part imports second_part before it defines `Made`."""
    (tmp_path / "first_part.py").write_text("import second_part\nclass Made:\n    size = 3\n")
    (tmp_path / "second_part.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("first_part", "second_part"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("package", ["tokenizer", "mllm", "data_pipelines", "eval"])
def test_a_package_has_what_it_exports(package):
    module = importlib.import_module(f"dualtoken.{package}")
    assert {*module.__all__} <= {*dir(module)}
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_an_action_waits_until_all_its_modules_are_finished(modules):
    seen = []
    for names in (["first_part"], ["second_part"], ["second_part", "first_part"]):
        after_import(
            names, lambda names=names: seen.append((names, hasattr(sys.modules.get("first_part"), "Made")))
        )
    assert seen == []
    first = importlib.import_module("first_part")
    assert seen == [
        (["second_part"], False),  # in the middle of the other's import
        (["first_part"], True),
        (["second_part", "first_part"], True),
    ]
    assert type(first.__loader__).__name__ == "SourceFileLoader"
    after_import(["first_part"], lambda: seen.append("at once"))
    assert seen[-1] == "at once"


def test_a_stand_in_imports_its_class_at_its_first_use(modules):
    made = lazy_class("first_part", "Made", known=1)
    assert made.__name__ == "Made"
    assert made.known == 1
    assert "first_part" not in sys.modules
    assert made.size == 3
    assert isinstance(made(), made)
    assert type(made()).__module__ == "first_part"
