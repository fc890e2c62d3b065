"""Draw the picture of the README: `python examples/readme_picture.py -o docs/dune.jpg`.

Four results of the example photos by the weights that come with dune: a scene from two photos, seen from the side; the
depth and the classes of one of them; the body of a person.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

PHOTOS = Path(__file__).resolve().parent / "photos"
CELL_PX = (320, 240)
CAPTION_PX = 24


def dune(verb: str, *words: object) -> None:
    """Runs a command of dune."""
    command = [sys.executable, "-m", "dune_cli.cli", verb, *map(str, words), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_pictures(folder: Path) -> dict[str, Path]:
    """Caption -> picture, in `folder`."""
    left, right = PHOTOS / "motorcycle_left.png", PHOTOS / "motorcycle_right.png"
    scene = ("--intrinsics", PHOTOS / "motorcycle_intrinsics.json", "--baseline", 0.193)
    dune("reconstruct", left, right, *scene, "-o", folder / "scene.glb")
    dune("render", folder / "scene.glb", "-o", folder / "scene.png", "--size", "640,480", "--azimuth-deg", 15)
    dune("depth", left, "-o", folder / "depth.png", "--colormap")
    dune("human", PHOTOS / "astronaut.png", "-o", folder / "people.obj", "--overlay", folder / "people.png")
    dune("segment", left, "-o", folder / "classes.png", "--color-overlay")
    return {
        "dune reconstruct": folder / "scene.png",
        "dune depth": folder / "depth_color.png",
        "dune human": folder / "people.png",
        "dune segment": folder / "classes_overlay.png",
    }


def join(pictures: dict[str, Path]) -> Image.Image:
    """The pictures side by side, each cut to a cell, with its caption below."""
    width, height = CELL_PX
    sheet = Image.new("RGB", (width * len(pictures), height + CAPTION_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, (caption, path) in enumerate(pictures.items()):
        cell = ImageOps.fit(Image.open(path).convert("RGB"), CELL_PX, Image.Resampling.LANCZOS, centering=(0.5, 0.3))
        sheet.paste(cell, (index * width, 0))
        draw.text((index * width + 8, height + 4), caption, fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        join(make_pictures(Path(folder))).save(options.output, quality=88)
    print(options.output)


if __name__ == "__main__":
    main()
