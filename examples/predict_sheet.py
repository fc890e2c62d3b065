"""Draw what the bundled models see: `python examples/predict_sheet.py PHOTO... -o sheet.jpg`.

A row a photo: the photo with its first ImageNet classes, its depth (near is bright, what has none is black), and the
segmentation with its largest classes. They come out of `dune predict`, which runs the shared encoder once a photo.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dune_cli.io.depth_files import colored
from dune_cli.io.png import class_overlay

CELL_PX = 300
LINE_PX = 16
LONGEST = 50  # characters of a line under a picture
LEAST_SHARE = 0.02  # of a class that is named


def cell(picture: np.ndarray, text: str) -> Image.Image:
    """(H, W, 3) uint8 in a cell with a line of text under it."""
    height, width = picture.shape[:2]
    scale = CELL_PX / max(height, width)
    small = Image.fromarray(picture).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (CELL_PX, small.height + LINE_PX), "white")
    canvas.paste(small, ((CELL_PX - small.width) // 2, 0))
    ImageDraw.Draw(canvas).text((4, small.height + 2), text[:LONGEST], fill="black")
    return canvas


def row(photo: Path, folder: Path) -> Image.Image:
    """The three cells of a photo, side by side, out of the files of `dune predict` in `folder`."""
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("depth", "segmentation", "classes")}
    rgb = np.asarray(Image.open(photo).convert("RGB"))
    names = ", ".join(f"{one['name'].split(',')[0]} {one['score']:.2f}" for one in read["classes"]["classes"][:3])
    raw = np.asarray(Image.open(folder / "depth.png")) / read["depth"]["png_scale"]
    valid = raw > 0
    unit = " m" if read["depth"]["unit"] else ""
    near, far = np.percentile(raw[valid], [1, 99]) if valid.any() else (1.0, 1.0)
    depth_text = f"{read['depth']['scale']}, {near:.1f} to {far:.1f}{unit}"
    numbers = np.asarray(Image.open(folder / "segmentation.png"))
    seen = read["segmentation"]["classes"]
    colors = np.zeros((256, 3), np.uint8)
    for one in seen:
        colors[one["id"]] = one["color"]
    largest = ", ".join(f"{one['name']} {one['share']:.0%}" for one in seen if one["share"] >= LEAST_SHARE)
    cells = [
        cell(rgb, names),
        cell(colored(np.where(valid, raw, np.nan), "turbo"), depth_text),
        cell(class_overlay(rgb, numbers, colors), largest),
    ]
    joined = Image.new("RGB", (sum(one.width for one in cells), cells[0].height), "white")
    for index, one in enumerate(cells):
        joined.paste(one, (index * CELL_PX, 0))
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path, help="picture to write")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, photo in enumerate(options.photos):
            folder = Path(scratch) / str(number)
            command = [sys.executable, "-m", "dune_cli.cli", "predict", str(photo), "-o", str(folder), "--quiet"]
            subprocess.run([*command, "--tasks", "depth,segmentation,classes"], check=True, stdout=subprocess.DEVNULL)
            rows.append(row(photo, next(folder.glob("*/predict.json")).parent))
    sheet = Image.new("RGB", (3 * CELL_PX, sum(one.height for one in rows)), "white")
    top = 0
    for one in rows:
        sheet.paste(one, (0, top))
        top += one.height
    sheet.save(options.output, quality=88)
    print(options.output)


if __name__ == "__main__":
    main()
