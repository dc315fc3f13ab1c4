"""Names of files in texts and on the command line, under every locale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualtoken.common.errors import UserError
from dualtoken.common.paths import native_name
from dualtoken.scripts.options import text_argument

NAME = "bé图.png"


def test_a_name_stays_what_it_is_where_names_are_utf8():
    for name in (NAME, "a.png", "half\ud800.png", ""):
        assert native_name(name) == name


def test_a_name_in_utf8_is_found_under_a_locale_that_is_not(tmp_path: Path):
    (tmp_path / NAME).write_text("here")
    code = (
        "import sys; from pathlib import Path; from dualtoken.common.paths import inside;"
        "assert sys.getfilesystemencoding() != 'utf-8';"
        r"print(inside(Path(sys.argv[1]), 'b\xe9\u56fe.png', 'image', links=True).read_text())"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | ascii_only,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout.strip()) == (0, "here"), said.stderr


def test_a_text_whose_bytes_python_kept_is_read_as_utf8():
    kept = "café 图".encode().decode("ascii", errors="surrogateescape")
    assert text_argument(kept, "--prompt") == "café 图"
    for bad in ("half \ud800", b"caf\xe9".decode("ascii", errors="surrogateescape")):
        with pytest.raises(UserError, match="not UTF-8"):
            text_argument(bad, "--prompt")
