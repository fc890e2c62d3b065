"""Files that lie beside photos and belong to them, but are none of the photos: the moving part of a live photo, masks,
depth maps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

VIDEO, MASK = "the moving part of a live photo", "a mask or map"
BESIDE = re.compile(r"(?:mask|depth)[_.-](?P<after>.+)|(?P<before>.+)[_.-](?:mask|depth)", re.IGNORECASE)


def companions(images: Iterable[Path], videos: Iterable[Path]) -> dict[Path, str]:
    """Those of the files that belong to one of the `images` in the same folder, and what they are.

    A video that is called as an image (`IMG_1.mov`, `IMG_1.heic`), and an image that is called as another one with its
    ending (COLMAP's masks, `a.jpg.png`), or as one with the word mask or depth (`mask_a.png`, `a_depth.png`).
    """
    images = list(images)
    names = {_key(image, image.name) for image in images}
    stems = {_key(image, image.stem) for image in images}
    found = {video: VIDEO for video in videos if _key(video, video.stem) in stems}
    for image in images:
        match = BESIDE.fullmatch(image.stem)
        other = "" if match is None else match["after"] or match["before"]
        if _key(image, image.stem) in names or (other and (_key(image, other) in stems or _key(image, other) in names)):
            found[image] = MASK
    return found


def _key(path: Path, name: str) -> tuple[Path, str]:
    return path.parent, name.casefold()
