"""Lists, lines, links and images of other people: each entry by itself, and nothing without end."""

import base64
import io

import pytest
from PIL import Image

from dualtoken.common.errors import ImageError, UserError
from dualtoken.common.images.sources import inline_image
from dualtoken.common.json_files import JsonError, bounded_lines, json_list
from dualtoken.common.paths import inside


def test_a_list_is_read_entry_by_entry():
    bad = ['"\ud83d"', "[" * 100_000 + "]" * 100_000, "9" * 5000, '{"deep": ' + "[" * 70 + "]" * 70 + "}"]
    text = "[" + ", ".join(f'{one}, {{"x": "]\\"[", "n": NaN}}' for one in bad) + "]"
    entries = list(json_list(text))
    assert [isinstance(entry, JsonError) for entry in entries] == [True, False] * len(bad)
    assert entries[1] == {"x": ']"[', "n": None}
    assert list(json_list(" [ ] ")) == []


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", "[1,, 2]", "[1 2]", "[1] x", "[", "[" * 100_000, "[1,]"])
def test_a_list_with_broken_syntax_is_refused_with_its_line(text):
    with pytest.raises(JsonError, match=r"line 1|end of the list"):
        list(json_list(text))


def test_lines_have_an_end():
    assert list(bounded_lines(io.BytesIO(b"abc\nabcdefgh\nxy\n"), 5)) == [b"abc\n", None, b"xy\n"]
    assert list(bounded_lines(io.StringIO("abcdefghijkl"), 5)) == [None]
    assert list(bounded_lines(io.BytesIO(b"abcd\nx"), 5)) == [b"abcd\n", b"x"]


def test_links_of_the_users_own_folder_may_lead_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/more").symlink_to(tmp_path)
    assert inside(tmp_path / "in", "more/a", "image", links=True) == tmp_path / "in/more/a"
    for name in ("more/a", "../a", "/a"):
        with pytest.raises(UserError, match=r"link out|leads out"):
            inside(tmp_path / "in", name, "image", links=name != "more/a")


def test_an_image_may_be_given_in_a_text():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    assert inline_image(text) == inline_image("data:image/png;base64," + text) == buffer.getvalue()
    assert inline_image("photos/" + "a" * 80 + ".png") is None
    with pytest.raises(ImageError):
        inline_image("data:image/png;base64,%%%")
