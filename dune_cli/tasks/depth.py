"""Photos to depth in metres, by a depth head or a two-view model (docs/file-formats.md, `dune.depth/1`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli import console
from dune_cli.geometry.cameras import K_from_focal, focal_from_point_map, pixel_grid, transform_pixels
from dune_cli.io import depth_files, formats
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import Prepared, fit, prepare, to_photo
from dune_cli.io.video import Frame
from dune_cli.models.dinov2_heads import HeadDepth
from dune_cli.models.mast3r import TwoViewDepth
from dune_cli.provenance import Run

SCHEMA = "dune.depth/1"
NYU_LONG_SIDE_PX, KITTI_LONG_SIDE_PX = 640, 1216
NYU_RANGE = 10.0
MIN_CONFIDENCE = 1.5  # of the points that give the focal length, as in `dune reconstruct`


@dataclass(frozen=True)
class Depth:
    """A photo's depth z in metres, (H, W) float32 at the photo's pixels; NaN where there is none.

    `confidence` (H, W) of a two-view model (from 1 up), else None. `K` (3, 3) in the photo's pixels and where its focal
    length is from: given, exif, estimated (from the point map) or default. `network_from_image` (3, 3) maps the photo's
    pixels to those of the network's input, whose size is `network_size` (width, height).
    """

    photo: Photo
    depth: np.ndarray
    confidence: np.ndarray | None
    K: np.ndarray
    focal_source: str
    network_from_image: np.ndarray
    network_size: tuple[int, int]

    @property
    def valid(self) -> np.ndarray:
        """(H, W) bool: where there is a depth in front of the camera."""
        return depth_files.valid_depth(self.depth)


def predict(
    model: HeadDepth | TwoViewDepth,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None = None,
    flip: bool = False,
    run: Run | None = None,
) -> Depth:
    """The photo's depth. `camera`: (K, source); a two-view model replaces a "default" K by the one its points imply.

    `size_px`: long side of the network's input. A head sees the whole photo, reduced to it if it is larger (None: the
    long side of the pictures it was trained on, 640 or 1216); a two-view model sees the photo as `prepare` gives it
    (None: its standard size), and what that crops away has no depth. `flip`: mean with the mirrored photo's.
    """
    result = _predict(model, photo, camera, size_px, flip, run or Run())
    if isinstance(model, TwoViewDepth) and result.focal_source == "default":
        console.note(f"no focal length fits the points of {photo.path.name}: the default field of view is kept")
    return result


def predict_frames(
    model: HeadDepth | TwoViewDepth,
    frames: Iterable[tuple[Frame, Photo]],
    camera: tuple[np.ndarray, str],
    size_px: int | None = None,
    flip: bool = False,
    run: Run | None = None,
) -> Iterator[tuple[Frame, Depth]]:
    """As `predict`, of the frames of a video with their pictures; all are of one camera: the first focal length that a
    frame's points imply is kept."""
    run, waiting, name = run or Run(), 0, None
    for frame, photo in frames:
        result = _predict(model, photo, camera, size_px, flip, run)
        if isinstance(model, TwoViewDepth):
            camera, name = (result.K, result.focal_source), photo.path.name
            waiting += result.focal_source == "default"
        yield frame, result
    if waiting:
        console.note(f"no focal length fits the points of {waiting} of the frames of {name}: theirs is the default")


def _predict(
    model: HeadDepth | TwoViewDepth,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None,
    flip: bool,
    run: Run,
) -> Depth:
    with run.stage("prepare"):
        if isinstance(model, TwoViewDepth):
            network = model.model
            prepared = prepare(photo.rgb, size_px or network.size, network.patch, network.crop_square_to_4_3)
        else:
            prepared = fit(photo.rgb, size_px or default_size_px(model))
    images = torch.from_numpy(prepared.image)[None]
    confidence = None
    with run.stage("network"), torch.inference_mode():
        if isinstance(model, TwoViewDepth):
            points, confidence = (part[0].float().cpu().numpy() for part in model.points(images))
            depth = points[..., 2]
            if flip:
                depth = (depth + model(images.flip(-1)).flip(-1)[0].cpu().numpy()) / 2
        else:
            depth = model(images, flip=flip)[0].float().cpu().numpy()
    with run.stage("resample"):
        if confidence is not None:
            camera = _camera(photo, camera, points, confidence, prepared)
            confidence = to_photo(confidence, prepared.network_from_image, photo.width, photo.height)
        depth = to_photo(depth, prepared.network_from_image, photo.width, photo.height)
    return Depth(photo, depth, confidence, *camera, prepared.network_from_image, (prepared.width, prepared.height))


def default_size_px(model: HeadDepth) -> int:
    """The long side of the pictures that a head was trained on: NYU's up to its 10 m, else KITTI's."""
    return NYU_LONG_SIDE_PX if model.maximum <= NYU_RANGE else KITTI_LONG_SIDE_PX


def _camera(
    photo: Photo, camera: tuple[np.ndarray, str], points: np.ndarray, confidence: np.ndarray, prepared: Prepared
) -> tuple[np.ndarray, str]:
    if camera[1] != "default":
        return camera
    pixels = transform_pixels(np.linalg.inv(prepared.network_from_image), pixel_grid(prepared.height, prepared.width))
    centre = np.array([(photo.width - 1) / 2, (photo.height - 1) / 2])
    focal_px = focal_from_point_map(points, pixels, centre, confidence >= MIN_CONFIDENCE)
    if focal_px is None:
        return camera
    return K_from_focal(focal_px, photo.width, photo.height), "estimated"


def write(result: Depth, path: Path) -> dict[str, Any]:
    """Writes `path` in the format of its extension and returns what the JSON says of that format.

    Of a point cloud every `stride_px`-th pixel is taken, so that it has about as many points as the network saw pixels.
    """
    stride_px = max(1, round(max(result.depth.shape) / max(result.network_size)))
    data = formats.DepthData(result.depth, result.photo.rgb, result.K, result.confidence, stride_px)
    return formats.of(path).write_depth(path, data)


def document(result: Depth, file: Path, format_facts: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """The JSON that lies beside the file."""
    valid = result.valid
    seen = result.depth[valid]
    return {
        "schema": SCHEMA,
        "file": file.name,
        "image": {"path": str(result.photo.path), "width": result.photo.width, "height": result.photo.height},
        "scale": "metric",
        "unit": "metre",
        **format_facts,
        "min": seen.min() if len(seen) else None,
        "max": seen.max() if len(seen) else None,
        "valid_share": float(valid.mean()),
        "K": result.K,
        "focal_source": result.focal_source,
        "network": {
            "width": result.network_size[0],
            "height": result.network_size[1],
            "network_from_image": result.network_from_image,
        },
        "provenance": provenance,
    }
