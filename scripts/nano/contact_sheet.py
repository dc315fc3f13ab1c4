"""Contact sheets: many small images with their texts in one image."""

from bisect import bisect

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LINE = 256, 8, 20
FRAME = "#b0b0b0"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(rows: list[tuple[str, list[Image.Image]]], cell: int = CELL) -> Image.Image:
    """A sheet of rows (text, thumbnails of at most cell x cell), each with at least one image."""
    font = ImageFont.load_default(size=14)
    columns = max(len(images) for _, images in rows)
    width = GAP + columns * (cell + GAP)
    sheet = Image.new("RGB", (width, GAP + len(rows) * (LINE + cell + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (text, images) in enumerate(rows):
        top = GAP + row * (LINE + cell + GAP)
        pen.text((GAP, top), shortened(text, width - 2 * GAP, font), fill="black", font=font)
        for column, image in enumerate(images):
            paste_framed(sheet, image, GAP + column * (cell + GAP), top + LINE)
    return sheet


def paste_framed(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Paste with a thin grey frame, so that white images have visible edges."""
    right, bottom = left + image.width, top + image.height
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, right, bottom), outline=FRAME)
    sheet.paste(image, (left, top))


def thumbnail(image: Image.Image, cell: int = CELL) -> Image.Image:
    """The image reduced to a cell, or enlarged by an integer factor without interpolation."""
    factor = cell // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    reduced = image.copy()
    reduced.thumbnail((cell, cell))
    return reduced


def shortened(text: str, width: int, font: Font) -> str:
    """The text on one line, cut to `width` pixels."""
    text = " ".join(text[: 4 * width].split())
    if font.getlength(text) <= width:
        return text
    ends = range(1, len(text))
    fitting = bisect(ends, float(width), key=lambda end: float(font.getlength(text[:end] + "…")))
    return text[:fitting] + "…"


def card_sheet(cards: list[tuple[str, list[Image.Image]]], columns: int, cell: int = CELL) -> Image.Image:
    """A grid of cards (text, images): the first image at full size, up to three more in a row below it, and
    the wrapped text, cut with "…"."""
    font = ImageFont.load_default(size=13)
    small, lines = cell // 3, 7
    height = cell + small + lines * LINE
    rows = -(-len(cards) // columns)
    sheet = Image.new("RGB", (GAP + columns * (cell + GAP), GAP + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, images) in enumerate(cards):
        left = GAP + number % columns * (cell + GAP)
        top = GAP + number // columns * (height + GAP)
        pen.rectangle((left - 2, top - 2, left + cell + 1, top + height + 1), outline="lightgrey")
        if images:
            paste_framed(sheet, thumbnail(images[0], cell), left, top)
        for column, image in enumerate(images[1:4]):
            paste_framed(sheet, thumbnail(image, small - 3), left + column * small, top + cell + 2)
        text_top = top + (cell + small if len(images) > 1 else cell if images else 0)
        room = (top + height - text_top) // LINE
        for line, words in enumerate(wrapped(text, cell, room, font)):
            pen.text((left, text_top + line * LINE), words, fill="black", font=font)
    return sheet


def wrapped(text: str, width: int, lines: int, font: Font) -> list[str]:
    """The text in at most `lines` lines of `width` pixels, broken between words."""
    done: list[str] = []
    for paragraph in text.splitlines():
        words = paragraph.split()
        while words and len(done) < lines:
            taken = 1
            while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
                taken += 1
            rest = len(done) == lines - 1
            done.append(shortened(" ".join(words if rest else words[:taken])[:width], width, font))
            words = words[taken:]
    return done
