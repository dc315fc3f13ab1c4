"""Plug-ins: entry points of a group, and the modules of an include path."""

import importlib.metadata
import sys

import pytest

from dualtoken.common.errors import UserError
from dualtoken.common.plugins import load_plugins

GROUP = "dualtoken.test_plugins"


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Modules and paths that a test adds are gone after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_every_module_of_a_folder_is_imported_once(tmp_path):
    (tmp_path / "plugin_one.py").write_text("from _plugin_helper import loaded\nloaded.append(__name__)\n")
    (tmp_path / "plugin_two.py").write_text("import plugin_one\nplugin_one.loaded.append(__name__)\n")
    (tmp_path / "_plugin_helper.py").write_text("loaded = []\n")
    (tmp_path / "notes.txt").write_text("not a module")
    load_plugins(GROUP, [tmp_path])
    load_plugins(GROUP, [tmp_path])
    assert sys.modules["_plugin_helper"].loaded == ["plugin_one", "plugin_two"]


def test_entry_points_of_the_group_are_imported(monkeypatch, tmp_path):
    (tmp_path / "plugin_of_a_package.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    information = tmp_path / "plugin_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{GROUP}]\nthing = plugin_of_a_package:Thing\n")
    load_plugins(GROUP)
    assert "plugin_of_a_package" in sys.modules


def test_a_broken_plugin_is_one_line_with_its_name(monkeypatch, tmp_path):
    (tmp_path / "plugin_broken.py").write_text("raise RuntimeError('first\\nsecond')\n")
    with pytest.raises(UserError, match=r"plugin_broken\.py cannot be imported: RuntimeError: first$"):
        load_plugins(GROUP, [tmp_path])
    (tmp_path / "plugin_broken.py").write_text("def (\n")
    with pytest.raises(UserError, match=r"plugin_broken\.py cannot be imported: SyntaxError: .*line 1"):
        load_plugins(GROUP, [tmp_path])
    broken = importlib.metadata.EntryPoint("thing", "no_such_module_anywhere:Thing", GROUP)
    monkeypatch.setattr("dualtoken.common.plugins.entry_points", lambda group: [broken])
    with pytest.raises(UserError, match=r"thing \(no_such_module_anywhere:Thing\) cannot be imported"):
        load_plugins(GROUP)


def test_what_is_not_a_folder_and_names_of_other_modules_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--include-path .*missing is not a folder"):
        load_plugins(GROUP, [tmp_path / "missing"])
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match=r"json\.py has the name of another Python module: rename the file"):
        load_plugins(GROUP, [tmp_path])
