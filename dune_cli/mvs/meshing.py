"""One coloured mesh by open3d: TSDF integration of the depth maps, or Poisson reconstruction of the fused cloud."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli.errors import JobFailed, UserError
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.mvs.fusion import FusionView, fusion_views
from dune_cli.mvs.meshing_process import BLOCK, MAX_BLOCKS, METHODS, mesh_in_subprocess
from dune_cli.sfm.scene import FusedCloud, PointMap

PIXELS_PER_VOXEL = 1.5  # of the median map


def extract_mesh(
    point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum], cloud: FusedCloud, method: str = "tsdf"
) -> Mesh:
    """A coloured mesh in world coordinates, OpenCV axes.

    `tsdf` integrates the depth maps in a sparse grid of voxels (B. Curless and M. Levoy, "A volumetric method for
    building complex models from range images", SIGGRAPH 1996); holes of up to 20 voxels are closed, and else it has no
    surface where nothing was observed. `poisson` (M. Kazhdan and H. Hoppe, "Screened Poisson surface reconstruction",
    2013) is smooth, closes holes of the fused `cloud`, and is cut where no point is near. UserError for another method;
    JobFailed without a surface.
    """
    if method not in METHODS:
        raise UserError(f"unknown surface {method!r}; allowed: {', '.join(METHODS)}")
    if method == "tsdf":
        inputs = _tsdf_inputs(fusion_views(point_maps, cameras))
    else:
        inputs = {"points_world": cloud.points_world, "normals": cloud.normals, "colors": cloud.colors}
    mesh = mesh_in_subprocess(method, inputs)
    if not len(mesh["faces"]):
        raise JobFailed("the dense points are too few for a surface; try a higher --quality or more photos")
    colors = np.rint(mesh["colors"].clip(0, 1) * 255).astype(np.uint8)
    return Mesh(mesh["vertices"], mesh["faces"], colors, "surface")


def _tsdf_inputs(views: Sequence[FusionView]) -> dict[str, np.ndarray]:
    inputs: dict[str, np.ndarray] = {"voxel": np.array(_voxel_size(views))}
    for i, view in enumerate(views):
        inputs[f"depth_{i}"] = np.nan_to_num(view.depth).astype(np.float32)
        inputs[f"colors_{i}"] = view.map.colors
        inputs[f"K_{i}"], inputs[f"world_from_cam_{i}"] = view.K, view.world_from_cam
    return inputs


def _voxel_size(views: Sequence[FusionView]) -> float:
    """About the size of the maps' pixels on the surface, larger where there would be too many blocks."""
    voxel = PIXELS_PER_VOXEL * float(np.median([view.pixel_size for view in views]))
    # a block is a dozen pixels wide, so that a ninth of the points suffices to count the blocks
    points = np.concatenate([view.map.points_world[view.map.valid][::9] for view in views])
    points = points - points.min(0)
    while True:
        # the truncation band reaches into the blocks around a surface's own
        blocks = len(np.unique(np.floor(points / (voxel * BLOCK)).astype(np.int64), axis=0))
        if 3 * blocks <= MAX_BLOCKS:
            return voxel
        voxel *= 1.3
