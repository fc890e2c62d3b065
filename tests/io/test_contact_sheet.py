"""Contact sheets: where the pictures are, which files, and what is too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.contact_sheet import (
    CAPTION_PX,
    COLUMNS,
    GAP_PX,
    TILE_PX,
    SheetRow,
    Tile,
    reduced,
    save_contact_sheet,
    sheet_size_px,
)

RED, BLUE = (reduced(np.full((300, 400, 3), colour, np.uint8)) for colour in ((220, 0, 0), (0, 0, 220)))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_the_query_is_on_the_left_and_more_hits_take_more_lines(tmp_path: Path, ending: str) -> None:
    hits = tuple(Tile(BLUE, f"{rank}   0.900", f"{'long_name' * 9}{rank}.jpg\n\x1b[2J") for rank in range(COLUMNS + 2))
    rows = [SheetRow(Tile(RED, "query", "q.jpg"), hits), SheetRow(Tile(None, "query", ""), hits[:1])]
    save_contact_sheet(tmp_path / f"sheet.{ending}", rows)
    sheet = Image.open(tmp_path / f"sheet.{ending}").convert("RGB")
    assert sheet.size == sheet_size_px([COLUMNS + 2, 1])
    middle, step, line = TILE_PX // 2, TILE_PX + GAP_PX, TILE_PX + CAPTION_PX + GAP_PX
    left, top = 2 * GAP_PX + step + middle, GAP_PX + middle

    def colour(x: int, y: int) -> str:
        red, _, blue = sheet.getpixel((x, y))
        return "red" if red > 150 > blue else "blue" if blue > 150 > red else "grey" if red < 230 else "white"

    assert colour(GAP_PX + middle, top) == "red"
    assert [colour(left + column * step, top) for column in range(COLUMNS)] == ["blue"] * COLUMNS
    assert [colour(left + column * step, top + line) for column in range(3)] == ["blue", "blue", "white"]
    assert colour(GAP_PX + 4, top + 2 * line) == "grey" and colour(left, top + 2 * line) == "blue"


def test_a_sheet_that_would_be_too_large_is_refused() -> None:
    with pytest.raises(UserError, match=r"400 queries and 4000 hits would be .* a smaller --top"):
        sheet_size_px([10] * 400)
