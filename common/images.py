"""Images that users give: which files are images."""

from __future__ import annotations

from pathlib import PurePosixPath

from PIL import Image

#: Formats that Pillow names and that are never read: EPS is a program that another program would have to run,
#: and the rest need software of the field they come from.
REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, by the ending in any case: whatever Pillow here can read.

    `._photo.jpg`, which macOS writes beside `photo.jpg` on foreign disks and into tars, is none.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.name.startswith("._"):
        return False
    Image.init()  # registers every format, once
    kind = Image.EXTENSION.get(path.suffix.lower())
    return kind in Image.OPEN and kind not in REFUSED_FORMATS
