"""Labels as arrays over the whole photo, read from files or given by a teacher.

Teachers: `fastdepth` (metric depth of rooms) for photos that `mosaic` takes for rooms, and `mosaic` (class logits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli.errors import UserError
from dune_cli.io.depth_files import read_depth
from dune_cli.io.image_file import FILE_LIMIT_BYTES, decode
from dune_cli.io.safe_read import open_regular
from dune_cli.models.mosaic import CLASSES, is_outdoor
from dune_cli.provenance import Source
from dune_cli.teachers.fastdepth import DEFAULT_WEIGHTS, as_square, load_network, sure_depth
from dune_cli.teachers.registry import load_teacher
from dune_cli.training.heads.datasets import IGNORED, DepthFile, Example, MaskFile, Polygons

NEAREST_M, FARTHEST_M = 0.05, 100.0  # metric depth beyond these is none


@dataclass(frozen=True)
class LabelMap:
    """A photo's label.

    kind: "metric" (depth in metres, (H, W), 0 where there is none), "disparity" ((H, W), 0 where there is none),
    "classes" ((H, W) uint8, 255 where there is none), "logits" ((C, H, W)), or "class" (a number). focal_px: for
    "metric", in the photo's pixels; None where it is not known.
    """

    kind: str
    values: np.ndarray
    focal_px: float | None = None


def read_label(example: Example, size: tuple[int, int], exif_focal_px: float | None = None) -> LabelMap:
    """The label of an example whose photo has `size` (width, height). UserError for one that does not fit it."""
    label = example.label
    if isinstance(label, DepthFile):
        return _read_depth(label, size, exif_focal_px)
    if isinstance(label, MaskFile):
        return LabelMap("classes", _read_mask(label, size))
    if isinstance(label, Polygons):
        return LabelMap("classes", draw_regions(label, size))
    if label is None:
        raise UserError(f"{example.photo} has no label, and no --teacher gives one")
    return LabelMap("class", np.array(label, np.int64))


def _read_depth(label: DepthFile, size: tuple[int, int], exif_focal_px: float | None) -> LabelMap:
    units = None if label.path.suffix.lower() == ".npz" else label.units
    depth = np.nan_to_num(read_depth(label.path, units).astype(np.float32), nan=0.0)
    ratio = (depth.shape[1] / depth.shape[0]) / (size[0] / size[1])
    if not 0.97 < ratio < 1.03:
        raise UserError(
            f"the depth map {label.path} has {depth.shape[1]} x {depth.shape[0]} px, another shape than its photo's "
            f"{size[0]} x {size[1]} px"
        )
    if label.kind == "metric":
        depth[(depth < NEAREST_M) | (depth > FARTHEST_M)] = 0
    focal_px = label.focal_px if label.focal_px is not None else exif_focal_px
    return LabelMap(label.kind, depth, focal_px)


def _read_mask(label: MaskFile, size: tuple[int, int]) -> np.ndarray:
    with open_regular(label.path, "a mask (an 8-bit PNG)", FILE_LIMIT_BYTES) as file:
        modes = ("L", "P")

        def values(image: Any) -> np.ndarray:
            if image.mode not in modes:
                raise UserError(f"the mask {label.path} is a picture of kind {image.mode}; an 8-bit PNG is needed")
            return np.asarray(image)

        mask = decode(label.path, file, values, formats=["PNG"], allowed="an 8-bit PNG")
    if mask.shape != size[::-1]:
        raise UserError(
            f"the mask {label.path} has {mask.shape[1]} x {mask.shape[0]} px, its photo {size[0]} x {size[1]} px"
        )
    if label.ids:
        numbers = np.full(256, IGNORED, np.uint8)
        numbers[list(label.ids)] = np.arange(label.classes)
        return numbers[mask]
    unknown = sorted(set(np.unique(mask).tolist()) - set(range(label.classes)) - {IGNORED})
    if unknown:
        raise UserError(
            f"the mask {label.path} has the class number {unknown[0]}; allowed: 0 to {label.classes - 1}, and "
            f"{IGNORED} for none"
        )
    return mask


def draw_regions(label: Polygons, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 class numbers of COCO's regions, later ones over earlier ones; 0 where there is none."""
    import cv2

    if label.size != size:
        raise UserError(
            f"a photo of {size[0]} x {size[1]} px has regions for {label.size[0]} x {label.size[1]} px; do not resize "
            "photos of a COCO set"
        )
    mask = np.zeros(size[::-1], np.uint8)
    for number, region in label.regions:
        if isinstance(region, dict):
            mask[_from_rle(region, size)] = number
            continue
        for polygon in region if isinstance(region, list) else ():
            points = np.asarray(polygon, np.float64)
            if points.ndim != 1 or len(points) < 6 or len(points) % 2:
                raise UserError("a COCO polygon needs an even number of at least six coordinates")
            cv2.fillPoly(mask, [np.rint(points.reshape(-1, 2) - 0.5).astype(np.int32)], int(number))
    return mask


def _from_rle(region: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """COCO's uncompressed run lengths, column by column, beginning with the background: (H, W) bool."""
    counts = region.get("counts")
    if not isinstance(counts, list):
        raise UserError("compressed COCO run lengths are not read; write polygons or uncompressed counts")
    runs = np.asarray(counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise UserError(f"COCO run lengths of {int(runs.sum())} pixels do not fit an image of {size[0]} x {size[1]} px")
    flags = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flags.reshape(size[0], size[1]).T


# --- teachers ---


LABEL_TEACHERS = {"depth": ("fastdepth",), "segmentation": ("mosaic",)}
FASTDEPTH_ASPECTS = (1.0, 1.8)  # width / height; it was trained on 4:3
NYU_FOCAL_PER_WIDTH = 0.853  # of FastDepth's training images: 518.9 / 2 px for 304 px


class LabelTeacher:
    """Gives labels to photos that have none. `sources`: the weights behind them."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self._mosaic = load_teacher("mosaic", device)
        self._fastdepth, self._sources = None, [self._mosaic.source]
        if name == "fastdepth":
            self._fastdepth, source = load_network(DEFAULT_WEIGHTS, device)
            self._sources.append(source)

    @property
    def sources(self) -> list[Source]:
        return self._sources

    @torch.inference_mode()
    def label(self, rgb: np.ndarray) -> LabelMap | None:
        """The label of a photo (H, W, 3) uint8; None where the teacher does not know such photos."""
        image = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].to(self.device).float() / 255
        logits = self._mosaic.logits(image)
        if self._fastdepth is None:
            return LabelMap("logits", logits[0].cpu().numpy())
        if is_outdoor(logits[0], CLASSES):
            return None
        height, width = rgb.shape[:2]
        if not FASTDEPTH_ASPECTS[0] <= width / height <= FASTDEPTH_ASPECTS[1]:
            return None
        small = as_square(image)
        mirrored = self._fastdepth(small.flip(-1)).depth[0].flip(-1)
        depth, sure = sure_depth(self._fastdepth(small).depth[0], mirrored)
        values = F.avg_pool2d((depth * sure)[None], 2)[0] * (F.avg_pool2d(sure.float()[None], 2)[0] == 1)
        return LabelMap("metric", values.cpu().numpy(), NYU_FOCAL_PER_WIDTH * width)
