"""Previews: what a result shows, as one small picture. One place for the commands, Python and the app."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.geometry.epipolar import sampson_error_px
from dune_cli.geometry.framing import up_direction
from dune_cli.io.class_names import with_names
from dune_cli.io.depth_files import colored
from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Mesh
from dune_cli.io.png import class_overlay, save_png
from dune_cli.io.rendering import overlay
from dune_cli.io.results import SUFFIXES, read_result
from dune_cli.io.scene_colors import recolored
from dune_cli.io.scene_pictures import draw, picture_size, view_of
from dune_cli.sfm.relative_pose import Relocalization, TwoViewMatches
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.depth import Depth
from dune_cli.tasks.encode import EncoderFeatures, at_photo_size, pca_picture
from dune_cli.tasks.human import PhotoPeople
from dune_cli.tasks.segment import ClassMap

LONG_SIDE_PX = 1280
COLORMAP = "turbo"
GAP_PX = 8
MOST_LINES = 150  # of matches, evenly spread
AGREES_PX = 3.0  # largest Sampson error of a match that agrees with the pose, at a pixel size of 1
AGREEING, OTHER = (40, 200, 90), (230, 60, 40)


def picture(result: Any, meshes: Sequence[Mesh] = ()) -> np.ndarray:
    """(H, W, 3) uint8, at most LONG_SIDE_PX long: a depth in colours (near bright), classes over the photo, the bodies
    `meshes` of people over the photo, or the principal components of features. TypeError for other results."""
    if isinstance(result, Depth):
        return small(colored(result.depth, COLORMAP))
    if isinstance(result, ClassMap):
        overlaid = small(class_overlay(result.photo.rgb, result.classes, result.colors))
        return with_names(overlaid, result.classes, result.names)
    if isinstance(result, PhotoPeople):
        return small(overlay(result.photo.rgb, meshes, result.K, lens=result.lens))
    if isinstance(result, EncoderFeatures):
        return small(at_photo_size(pca_picture(result.patches, 1), result))
    raise TypeError(f"no picture is known of a {type(result).__name__}")


def scene_picture(scene: Scene, file: Path | None) -> np.ndarray:
    """A scene as its first camera sees it, as `dune render` draws it: of its `file`, or of its points where the file's
    format is not read back."""
    if file is not None and file.suffix.lower() in SUFFIXES:
        result = read_result(file)
        data, positions = result.data, result.positions
    else:
        positions, colors, _ = scene.cloud()
        views = [scene.views[index] for index in scene.registered]
        cameras = tuple(view.frustum for view in views)
        data = SceneData(positions, colors, cameras=cameras)
    camera = view_of(positions, data.cameras, picture_size(data.cameras, LONG_SIDE_PX))[0]
    up = up_direction([one.world_from_cam for one in data.cameras])
    return draw(recolored(data, "color", up, camera.world_from_cam), camera)


def match_picture(matched: TwoViewMatches | None, found: Relocalization) -> np.ndarray:
    """Reference and query side by side with lines between matched pixels: green where they agree with the pose, red
    elsewhere."""
    from PIL import Image, ImageDraw

    photos = [small(image.photo.rgb, LONG_SIDE_PX // 2) for image in (found.reference, found.query)]
    canvas = Image.fromarray(side_by_side(photos))
    if matched is None or not len(matched.matches.points1):
        return np.asarray(canvas)
    points1, points2 = matched.matches.points1, matched.matches.points2
    agrees = np.zeros(len(points1), bool)
    if found.query_from_ref is not None:
        K1, K2 = matched.reference.K, matched.query.K
        error = sampson_error_px(points1, points2, K1, K2, found.query_from_ref)
        agrees = error <= AGREES_PX * max(matched.pixel_sizes_px)
    chosen = np.unique(np.linspace(0, len(points1) - 1, MOST_LINES).round().astype(int))
    chosen = chosen[np.argsort(agrees[chosen], kind="stable")]  # what agrees lies on top
    scales = [one.shape[1] / image.photo.width for one, image in zip(photos, (found.reference, found.query))]
    start, end = points1[chosen] * scales[0], points2[chosen] * scales[1] + [photos[0].shape[1] + GAP_PX, 0]
    lines = ImageDraw.Draw(canvas)
    for (x1, y1), (x2, y2), good in zip(start, end, agrees[chosen]):
        color = AGREEING if good else OTHER
        lines.line([(x1, y1), (x2, y2)], color, 1)
        for x, y in ((x1, y1), (x2, y2)):
            lines.ellipse([x - 2, y - 2, x + 2, y + 2], outline=color)
    return np.asarray(canvas)


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures in a row on white, from left to right, aligned at the top."""
    height = max(one.shape[0] for one in pictures)
    width = sum(one.shape[1] for one in pictures) + GAP_PX * (len(pictures) - 1)
    row = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for one in pictures:
        row[: one.shape[0], left : left + one.shape[1]] = one
        left += one.shape[1] + GAP_PX
    return row


def small(rgb: np.ndarray, long_side_px: int | None = None) -> np.ndarray:
    """A picture (H, W, 3) uint8 reduced to `long_side_px`, or LONG_SIDE_PX; smaller ones stay as they are."""
    from PIL import Image

    long_side_px = long_side_px or LONG_SIDE_PX
    if max(rgb.shape[:2]) <= long_side_px:
        return rgb
    image = Image.fromarray(rgb)
    image.thumbnail((long_side_px, long_side_px), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image)


def save(pictured: np.ndarray, path: Path) -> str:
    """Writes a picture as PNG; returns its name, for the JSON of the result."""
    save_png(path, pictured)
    return path.name
