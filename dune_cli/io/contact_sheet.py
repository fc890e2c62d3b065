"""Contact sheets: a row of small pictures for each query, with captions, as PNG or JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.console import shown
from dune_cli.errors import UserError
from dune_cli.io.outputs import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg")
TILE_PX, CAPTION_PX, GAP_PX = 192, 34, 12
COLUMNS = 5  # of hits beside the query
LONGEST_PX = 32_000  # a side of a JPEG has at most 65,535
LARGEST_PIXELS = 200_000_000
FONT_PX = 13
PAPER, TEXT, FAINT, FRAME = "#ffffff", "#1c1c1c", "#6a6a6a", "#d9480f"
EMPTY = "#dddddd"
QUALITY = 88
ELLIPSIS = "…"


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3) uint8 as `reduced` gives it, None for an empty tile, with a title and a name below it."""

    picture: np.ndarray | None
    title: str
    name: str


@dataclass(frozen=True)
class SheetRow:
    """A query, on the left, and its hits; more than COLUMNS hits take several lines."""

    query: Tile
    hits: tuple[Tile, ...]


def reduced(rgb: np.ndarray) -> np.ndarray:
    """A photo (H, W, 3) uint8 at the size of a tile; smaller ones stay as they are."""
    from PIL import Image

    image = Image.fromarray(rgb)
    image.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    return np.asarray(image)


def sheet_size_px(hits: Sequence[int]) -> tuple[int, int]:
    """Width and height of a sheet whose rows have that many hits. UserError where it would be too large."""
    columns = 1 + max(1, min(COLUMNS, max(hits, default=1)))
    lines = sum(max(1, -(-count // COLUMNS)) for count in hits)
    width = columns * (TILE_PX + GAP_PX) + 2 * GAP_PX
    height = lines * (TILE_PX + CAPTION_PX + GAP_PX) + GAP_PX
    if height > LONGEST_PX or width * height > LARGEST_PIXELS:
        raise UserError(
            f"a contact sheet of {len(hits)} queries and {sum(hits)} hits would be {width} x {height} px; at most "
            f"{LONGEST_PX} px are written: name fewer queries or a smaller --top"
        )
    return width, height


def save_contact_sheet(path: str | Path, rows: Sequence[SheetRow]) -> None:
    """Writes the rows as a PNG or JPEG, by the ending of `path`. UserError where the sheet would be too large."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", sheet_size_px([len(row.hits) for row in rows]), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_PX)

    def paste(tile: Tile, left: int, top: int, is_query: bool) -> None:
        height, width = (TILE_PX, TILE_PX) if tile.picture is None else tile.picture.shape[:2]
        x, y = left + (TILE_PX - width) // 2, top + TILE_PX - height  # captions are close to their pictures
        if tile.picture is None:
            draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
            draw.text((x + width // 2, y + height // 2), "no picture", FAINT, font, anchor="mm")
        else:
            sheet.paste(Image.fromarray(tile.picture), (x, y))
        if is_query:
            draw.rectangle((x - 4, y - 4, x + width + 3, y + height + 3), outline=FRAME, width=3)
        draw.text((left, top + TILE_PX + 4), tile.title, FRAME if is_query else TEXT, font)
        draw.text((left, top + TILE_PX + 18), _fitting(tile.name, font), FAINT, font)

    top = GAP_PX
    for row in rows:
        paste(row.query, GAP_PX, top, True)
        for number, hit in enumerate(row.hits):
            line, column = divmod(number, COLUMNS)
            left = 2 * GAP_PX + (column + 1) * (TILE_PX + GAP_PX)
            paste(hit, left, top + line * (TILE_PX + CAPTION_PX + GAP_PX), False)
        top += max(1, -(-len(row.hits) // COLUMNS)) * (TILE_PX + CAPTION_PX + GAP_PX)
    with atomic_path(path) as temporary:
        if temporary.suffix.lower() == ".png":
            sheet.save(temporary, "PNG")
        else:
            sheet.save(temporary, "JPEG", quality=QUALITY)


def _fitting(name: str, font: object) -> str:
    """The name, its middle left out where it is wider than a tile."""
    name = shown(name)
    if font.getlength(name) <= TILE_PX:  # type: ignore[attr-defined]
        return name
    kept = len(name)
    while kept > 2:
        kept -= 1
        cut = name[: kept - kept // 2] + ELLIPSIS + name[len(name) - kept // 2 :]
        if font.getlength(cut) <= TILE_PX:  # type: ignore[attr-defined]
            return cut
    return ELLIPSIS
