"""Lazy imports: a package's names, stand-ins for classes, and actions after the import of other modules."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported at their first use (PEP 562).

    The names and their modules are read from the relative imports under `if TYPE_CHECKING:` of its
    `__init__.py`.
    """
    module = sys.modules[package]
    homes = _type_checking_imports(Path(module.__file__ or "").read_text(encoding="utf-8"))

    def get(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name], package), name)
        elif f".{name}" in homes.values():
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *homes})


def after_import(names: Sequence[str], action: Callable[[], object]) -> None:
    """Call `action` as soon as all modules of these names have been imported, or now if they are."""
    missing = {name for name in names if name in _waiting or name not in sys.modules}
    if not missing:
        action()
        return

    def imported(name: str) -> None:
        missing.discard(name)
        if not missing:
            action()

    for name in missing:
        _waiting[name].append(imported)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


_waiting: defaultdict[str, list[Callable[[str], None]]] = defaultdict(list)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules in `_waiting` by the other finders, and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(fullname, path, target)
            if found is not None:
                if found.loader is not None:
                    found.loader = _NotifyingLoader(found.loader)
                return found
        return None


class _NotifyingLoader(importlib.abc.Loader):
    """Loads by another loader, which it reinstates, and then calls what waits for the module."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for imported in _waiting.pop(module.__name__, ()):
            imported(module.__name__)


def _type_checking_imports(source: str) -> dict[str, str]:
    """name -> module of the relative imports under `if TYPE_CHECKING:`."""
    blocks = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {
        alias.name: "." * node.level + (node.module or "")
        for body in blocks
        for node in body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }


class LazyClass(type):
    """The type of stand-ins for classes, which are imported at their first use.

    >>> Model = lazy_class("dualtoken.mllm.modeling", "DualTokenForConditionalGeneration")
    """

    def load(cls) -> Any:
        """Import the class."""
        return getattr(importlib.import_module(cls.__module__), cls.__name__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls.load(), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.load())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.load())

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.load()(*args, **kwargs)


def lazy_class(module: str, name: str, **known: Any) -> LazyClass:
    """A stand-in for `module.name`; reading an attribute of `known` imports nothing."""
    return LazyClass(name, (), {"__module__": module, **known})
