"""The photos of a scene without distortion, with their cameras, points and masks: the folder that splatting and stereo
tools load (3DGS, Brush, nerfstudio, OpenMVS).

FOLDER/images/NAME, FOLDER/masks/NAME.png where there are masks (0: not used), and FOLDER/sparse/0, a COLMAP model with
a PINHOLE camera for every image; of photos in rigs with rigs and frames, and FOLDER/rig_config.json. Panoramas are
there as perspective views, images/DIRECTION/NAME. The cameras are those of `pycolmap.undistort_camera`: the photo's
focal length, and no pixel that the photo does not show. `pycolmap.undistort_images` is not used: it reads neither HEIC,
nor 16 bits, nor EXIF's orientation, which the tools that load its folder then apply or not, and it knows no masks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.colmap.rigs import CONFIG, write_rig_config
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum
from dune_cli.io.outputs import atomic_directory
from dune_cli.io.photo_files import is_plain, write_photo, written_name
from dune_cli.io.photos import read_photo
from dune_cli.io.png import save_png
from dune_cli.io.undistortion import WIDEST_DEG, StraightPhoto
from dune_cli.sfm.cameras import from_colmap, to_colmap
from dune_cli.sfm.masks import PhotoMasks
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct.export import model_points

IMAGES, MASKS, MODEL = "images", "masks", "sparse/0"
SMALLEST_SIDE_PX = 16


def write_undistorted(
    scene: Scene, photos: Sequence[Path], folder: Path, masks: PhotoMasks | None = None
) -> dict[str, Any]:
    """Writes the registered views; `photos`: the file of each view. Returns the JSON's `undistorted`, without the
    folder.

    Images are the upright photos, those without distortion as copies of their files where every program reads them
    alike. Points and poses are in the scene's coordinates: a `world_offset` is not added, for the tools compute in
    float32. `images`, `masks` and `sparse` of an existing folder are replaced. UserError for a lens that shows nothing
    within 60 degrees of its axis.
    """
    if scene.perspective is not None and masks is not None:
        masks = scene.perspective.masks
    scene, photos = scene.in_perspective(photos)
    views = [scene.views[index] for index in scene.registered]
    straight = [straight_photo(view.camera) for view in views]
    names = [written_name(view.image) for view in views]
    points, colors, tracks = model_points(scene, [one.pixels_of for one in straight])
    frusta = [
        Frustum(one.K, view.world_from_cam, one.width, one.height, name)
        for one, view, name in zip(straight, views, names)
    ]
    files = [photos[index] for index in scene.registered]
    copied = 0
    with atomic_directory(folder, replaces=[IMAGES, MASKS, "sparse", CONFIG]) as temporary:
        rigs = scene.rigs.renumbered({index: row for row, index in enumerate(scene.registered)})
        write_colmap(temporary / MODEL, frusta, points, colors, tracks, rigs=rigs)
        write_rig_config(temporary, rigs)
        for file, one, name in zip(console.progress(files, "undistorting", len(files), "photo"), straight, names):
            target = temporary / IMAGES / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if one.camera.is_pinhole and target.suffix == file.suffix and is_plain(file):
                shutil.copyfile(file, target)
                copied += 1
            else:
                rgb = read_photo(file).rgb
                write_photo(target, rgb if one.camera.is_pinhole else one.image(rgb))
            if masks is not None:
                mask = temporary / MASKS / f"{name}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                save_png(mask, _mask(masks.used(file), one))
    document: dict[str, Any] = {"images": len(files), "copied": copied, "masks": masks is not None}
    if scene.world_offset is not None:
        document["world_offset"] = scene.world_offset
    return document


def _mask(used: np.ndarray | None, straight: StraightPhoto) -> np.ndarray:
    """(H, W) uint8, 0 or 255, of the undistorted photo; `used` (H, W) bool of the photo, None where all of it is."""
    if used is None:
        return np.full((straight.height, straight.width), 255, np.uint8)
    used = used if straight.camera.is_pinhole else straight.mask(used)
    return np.where(used, 255, 0).astype(np.uint8)


def straight_photo(camera: Camera) -> StraightPhoto:
    """The pinhole camera along the same axis, with the same focal lengths, of the largest image about the axis that the
    photo fills, at most WIDEST_DEG to each side."""
    if camera.is_pinhole:
        return StraightPhoto(camera, camera.K, (camera.width, camera.height))
    pycolmap = optional.import_pycolmap("undistorting photos")
    made = from_colmap(pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), to_colmap(camera)))
    reach = np.diag(made.K)[:2] * np.tan(np.radians(WIDEST_DEG))
    low = np.maximum(np.ceil(made.K[:2, 2] - reach), 0)
    high = np.minimum(np.floor(made.K[:2, 2] + reach), [made.width - 1, made.height - 1])
    width, height = (int(side) for side in high - low + 1)
    if min(width, height) < SMALLEST_SIDE_PX:
        raise UserError(
            f"the lens {camera.model} shows no picture within {WIDEST_DEG:g} degrees of its axis; check --intrinsics"
        )
    K = made.K.copy()
    K[:2, 2] -= low
    return StraightPhoto(camera, K, (width, height))
