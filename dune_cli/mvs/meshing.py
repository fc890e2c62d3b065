"""One coloured mesh: truncated signed distances of the depth maps, or Poisson's surface of the cloud. By open3d."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli.errors import JobFailed, UserError
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.mvs.fusion import MapView, map_views
from dune_cli.mvs.meshing_process import BLOCK, MAX_BLOCKS, METHODS, surface_arrays
from dune_cli.sfm.scene import FusedCloud, PointMap

VOXELS_A_PIXEL = 1.5  # a voxel's side in pixels of the median map


def surface(
    point_maps: Sequence[PointMap | None], cameras: Sequence[Frustum], cloud: FusedCloud, method: str = "tsdf"
) -> Mesh:
    """A coloured mesh in world coordinates, OpenCV axes.

    `tsdf` averages the depth maps in a sparse grid of voxels (B. Curless and M. Levoy, "A volumetric method for
    building complex models from range images", SIGGRAPH 1996) and keeps to what was seen; `poisson` (M. Kazhdan and H.
    Hoppe, "Screened Poisson surface reconstruction", 2013) is smooth and closes holes of the fused `cloud`, and is cut
    where no point is near. UserError for another method; JobFailed where no surface comes out.
    """
    if method not in METHODS:
        raise UserError(f"unknown surface {method!r}; allowed: {', '.join(METHODS)}")
    given = _of_maps(map_views(point_maps, cameras)) if method == "tsdf" else _of_cloud(cloud)
    made = surface_arrays(method, given)
    if not len(made["faces"]):
        raise JobFailed("the dense points are too few for a surface; try a higher --quality or more photos")
    colors = np.rint(made["colors"].clip(0, 1) * 255).astype(np.uint8)
    return Mesh(made["vertices"], made["faces"], colors, "surface")


def _of_maps(views: Sequence[MapView]) -> dict[str, np.ndarray]:
    given: dict[str, np.ndarray] = {"voxel": np.array(_voxel_size(views))}
    for i, view in enumerate(views):
        given[f"depth_{i}"] = np.nan_to_num(view.depth).astype(np.float32)
        given[f"colors_{i}"] = view.map.colors
        given[f"K_{i}"], given[f"world_from_cam_{i}"] = view.K, view.world_from_cam
    return given


def _of_cloud(cloud: FusedCloud) -> dict[str, np.ndarray]:
    return {"points_world": cloud.points_world, "normals": cloud.normals, "colors": cloud.colors}


def _voxel_size(views: Sequence[MapView]) -> float:
    """A voxel about as large as the maps' pixels on the surface, or larger where the blocks would be too many."""
    voxel = VOXELS_A_PIXEL * float(np.median([view.footprint for view in views]))
    # a block is a dozen pixels wide: some of its points tell that it is there
    points = np.concatenate([view.map.points_world[view.map.valid][::9] for view in views])
    points = points - points.min(0)
    while True:
        # a truncation band reaches into the blocks around a surface's own
        blocks = len(np.unique(np.floor(points / (voxel * BLOCK)).astype(np.int64), axis=0))
        if 3 * blocks <= MAX_BLOCKS:
            return voxel
        voxel *= 1.3
