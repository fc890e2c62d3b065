"""Multi-view stereo of a scene with cameras and tracks: depth maps, one fused cloud, and a surface if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli import console, optional
from dune_cli.geometry.cameras import distort_pixels, pixel_grid
from dune_cli.io.meshes import Frustum
from dune_cli.io.photos import read_photo
from dune_cli.mvs.depth_maps import estimate_depth_maps
from dune_cli.mvs.fusion import fuse
from dune_cli.mvs.meshing import extract_mesh
from dune_cli.mvs.quality import DenseConfig
from dune_cli.provenance import Run
from dune_cli.sfm.scene import Scene, View


def densify(
    scene: Scene, paths: Sequence[Path], config: DenseConfig, mesh: str | None, run: Run, min_confidence: float = 0.0
) -> Scene:
    """The scene with depth maps, the cloud fused from them and, where `mesh` is tsdf or poisson, a surface.

    `paths`: the photos of the views, read again one by one; `min_confidence` of dense points, in [0, 1]. Where no view
    has dense points the scene stays as it is, and a note says so.
    """
    assert scene.sparse is not None
    views = scene.views
    maps = estimate_depth_maps(
        _undistorted_photos(views, paths),
        [view.K for view in views],
        [view.world_from_cam for view in views],
        scene.sparse,
        config,
        run,
    )
    maps = [one and replace(one, valid=one.valid & (one.confidence >= min_confidence)) for one in maps]
    if not any(one is not None and one.valid.any() for one in maps):
        return replace(scene, notes=(*scene.notes, "no dense points: no view's depth is confirmed by another"))
    views = tuple(replace(view, dense=one) for view, one in zip(views, maps))
    return fuse_scene(replace(scene, views=views), mesh, run)


def fuse_scene(scene: Scene, mesh: str | None, run: Run) -> Scene:
    """The scene with the cloud fused from its depth maps and, where `mesh` is tsdf or poisson, a surface."""
    maps = [view.dense for view in scene.views]
    cameras = [Frustum(view.K, view.world_from_cam, view.width, view.height, view.image) for view in scene.views]
    with run.stage("fuse", "fusing"):
        cloud = fuse(maps, cameras)
    with run.stage("mesh", "meshing"):
        surface = None if mesh is None else extract_mesh(maps, cameras, cloud, mesh)
    return replace(scene, fused=cloud, surface=surface)


def _undistorted_photos(views: Sequence[View], paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The photos without their radial distortion, one after the other; an empty one for a view without a pose."""
    for view, path in console.progress(zip(views, paths), "reading photos", len(views), "photo"):
        if not view.registered:
            yield np.zeros((view.height, view.width, 3), np.uint8)
            continue
        rgb = read_photo(path).rgb
        yield rgb if view.radial == 0 else _undistorted(rgb, view)


def _undistorted(rgb: np.ndarray, view: View) -> np.ndarray:
    cv2 = optional.require("cv2", "undistorting photos")
    distorted = distort_pixels(pixel_grid(view.height, view.width), view.K, view.radial).astype(np.float32)
    return cv2.remap(rgb, distorted[..., 0], distorted[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
