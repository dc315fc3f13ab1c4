"""A contact sheet: many small images on one, a row for each prompt with its text above."""

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LINE = 256, 8, 20
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(rows: list[tuple[str, list[Image.Image]]], cell: int = CELL) -> Image.Image:
    """The sheet of rows (text, thumbnails of at most cell x cell), each with at least one image."""
    font = ImageFont.load_default(size=14)
    columns = max(len(images) for _, images in rows)
    width = GAP + columns * (cell + GAP)
    sheet = Image.new("RGB", (width, GAP + len(rows) * (LINE + cell + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (text, images) in enumerate(rows):
        top = GAP + row * (LINE + cell + GAP)
        pen.text((GAP, top), shortened(text, width - 2 * GAP, font), fill="black", font=font)
        for column, image in enumerate(images):
            sheet.paste(image, (GAP + column * (cell + GAP), top + LINE))
    return sheet


def thumbnail(image: Image.Image, cell: int = CELL) -> Image.Image:
    """The image at the size of a cell: enlarged by a whole factor, each pixel a block, or reduced."""
    factor = cell // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    reduced = image.copy()
    reduced.thumbnail((cell, cell))
    return reduced


def shortened(text: str, width: int, font: Font) -> str:
    """The text, or as much of its beginning as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
