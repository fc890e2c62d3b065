"""Masks of photos as image files: where a mask is 0, the photo is not used.

COLMAP's convention: the mask of `cam1/photo.jpg` is `cam1/photo.jpg.png` in the folder of masks; `cam1/photo.png` is
taken as well. A mask has the size of its photo. Of a photo that EXIF turns it is that of the stored pixels, as COLMAP
reads it, unless its size or its own EXIF says that it is upright.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io import exif
from dune_cli.io.image_file import FILE_LIMIT_BYTES, decode
from dune_cli.io.orientation import UPRIGHT, to_upright, turned_size
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoHeader, read_header
from dune_cli.io.safe_read import open_regular
from dune_cli.progress import amount

if TYPE_CHECKING:
    from PIL.Image import Image

FEW_COLOURS, THEIR_SHARE, SAMPLES = 16, 0.9, 100_000  # a mask's pixels have few values; a picture's have many
NAMES_IN_NOTE = 3


def find_masks(folder: str | Path, photos: Sequence[Path]) -> dict[Path, Path]:
    """The mask file of each photo that has one; a note names the others. UserError where none has, and for a mask of
    another size than its photo."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"--masks {folder} is no folder; name the one that holds a mask for each photo")
    found: dict[Path, Path] = {}
    names = relative_names(photos)
    for photo, name in zip(photos, names):
        for candidate in (f"{name}.png", str(PurePosixPath(name).with_suffix(".png"))):
            file = folder / candidate
            if file.is_file() and not (photo.exists() and file.samefile(photo)):
                found[photo] = file
                break
    if not found:
        raise UserError(
            f"--masks {folder} has no mask of any of the {len(photos)} photos; the one of {names[0]} is to be named "
            f"{names[0]}.png or {PurePosixPath(names[0]).with_suffix('.png')}"
        )
    missing = [name for photo, name in zip(photos, names) if photo not in found]
    if missing:
        more = ", ..." if len(missing) > NAMES_IN_NOTE else ""
        console.note(
            f"{folder} has no mask of {len(missing)} of {len(photos)} photos, which are used whole: "
            f"{', '.join(missing[:NAMES_IN_NOTE])}{more}"
        )
    return found


def read_mask(file: Path, photo: Path) -> np.ndarray:
    """(H, W) bool, True where the upright photo is used. UserError for a mask of another size than its photo, one with
    transparency, and a picture that is no mask."""
    shown = read_header(photo)
    if shown is None:
        raise UserError(f"the photo {photo} of the mask {file} cannot be read")
    with open_regular(file, "a mask", FILE_LIMIT_BYTES) as opened:
        values, turned = decode(file, opened, lambda image: _values(image, file))
    used = values.any(-1) if values.ndim == 3 else values != 0
    _check_few_values(values, file)
    return _upright(used, turned, shown, file, photo)


def note_empty(empty: Sequence[str], photos: int) -> None:
    """A note about photos (names) whose masks are 0 everywhere. UserError where fewer than two others are left."""
    if not empty:
        return
    names = ", ".join(empty[:NAMES_IN_NOTE]) + (", ..." if len(empty) > NAMES_IN_NOTE else "")
    if photos - len(empty) < 2:
        raise UserError(
            f"the masks of {len(empty)} of {photos} photos are 0 (black) everywhere ({names}), and two photos are "
            "needed; where a photo is to be used its mask must not be 0"
        )
    are, masks = ("is", "its mask is") if len(empty) == 1 else ("are", "their masks are")
    left_out = f"{amount(len(empty), 'photo')} of {photos} {are} left out"
    console.note(f"{left_out}, for {masks} 0 (black) everywhere: {names}")


def check_classes(names: Sequence[str], known: Sequence[str], model: str) -> None:
    """UserError for `names` of --mask that are not among the classes `known` to the `model`."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{model} knows no class {', '.join(unknown)}; --mask takes: {', '.join(known)}")


def _values(image: Image, file: Path) -> tuple[np.ndarray, int]:
    """The stored values (H, W) or (H, W, 3), and EXIF's orientation of the mask."""
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        if image.convert("RGBA").getextrema()[3][0] < 255:
            raise UserError(f"the mask {file} has transparent pixels; save it as black and white, 0 = not used")
        image = image.convert("RGB")
    if image.mode == "P" or len(image.getbands()) > 1:
        image = image.convert("RGB")
    return np.asarray(image), exif.stored_orientation(image)


def _check_few_values(values: np.ndarray, file: Path) -> None:
    flat = values.reshape(len(values) * values.shape[1], -1)
    flat = flat[:: max(1, len(flat) // SAMPLES)]
    _, counts = np.unique(flat, axis=0, return_counts=True)
    if np.sort(counts)[::-1][:FEW_COLOURS].sum() < THEIR_SHARE * len(flat):
        raise UserError(
            f"{file} is a picture and no mask: it has many different values; a mask is black (0) where its photo is "
            "not used, and white elsewhere"
        )


def _upright(used: np.ndarray, turned: int, shown: PhotoHeader, file: Path, photo: Path) -> np.ndarray:
    """The mask as the upright photo's."""
    upright = (shown.width, shown.height)
    stored = turned_size(*upright, shown.orientation)
    size = (used.shape[1], used.shape[0])
    if turned != UPRIGHT:
        used = to_upright(used, turned)
        size = (used.shape[1], used.shape[0])
    elif size == stored and shown.orientation != UPRIGHT:
        return np.ascontiguousarray(to_upright(used, shown.orientation))
    if size != upright:
        raise UserError(
            f"the mask {file} has {size[0]} x {size[1]} px and its photo {photo.name} {upright[0]} x {upright[1]} px; "
            "make the mask for this photo, at its size"
        )
    return np.ascontiguousarray(used)
