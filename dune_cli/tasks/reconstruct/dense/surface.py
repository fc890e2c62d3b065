"""One coloured mesh: truncated signed distances of the depth maps, or Poisson's surface of the cloud. By open3d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from dune_cli import optional
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.mesh import Frustum, Mesh
from dune_cli.tasks.reconstruct.dense.fusion import MapView, map_views
from dune_cli.tasks.reconstruct.scene import FusedCloud, PointMap

METHODS = ("tsdf", "poisson")
WHY = "meshing"
BLOCK = 8  # voxels a side
MAX_BLOCKS = 60_000  # of 8^3 voxels: about 400 MB
VOXELS_A_PIXEL = 1.5  # a voxel's side in pixels of the median map
TRUNCATION_VOXELS = 4.0
MIN_PIECE = 0.002  # of the triangles: smaller pieces hang in the air
POISSON_DEPTH = 9  # at most: cells of a 512th of the scene
MAX_GAP = 4.0  # a Poisson vertex may lie this many point spacings from the cloud


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
    open3d = optional.import_open3d(WHY)
    if method == "tsdf":
        mesh = _tsdf(open3d, map_views(point_maps, cameras))
    else:
        mesh = _poisson(open3d, cloud)
    mesh = _without_small_pieces(mesh)
    faces, vertices = np.asarray(mesh.triangles), np.asarray(mesh.vertices)
    if not len(faces):
        raise JobFailed("the dense points are too few for a surface; try a higher --quality or more photos")
    colors = np.rint(np.asarray(mesh.vertex_colors).clip(0, 1) * 255).astype(np.uint8)
    return Mesh(vertices, faces.astype(np.int64), colors, "surface")


def _tsdf(open3d: Any, views: Sequence[MapView]) -> Any:
    core = open3d.core
    voxel = _voxel_size(views)
    device = core.Device("CPU:0")
    grid = open3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"),
        (core.float32, core.float32, core.float32),
        ((1), (1), (3)),
        voxel,
        BLOCK,
        MAX_BLOCKS,
        device,
    )
    for view in views:
        depth = open3d.t.geometry.Image(core.Tensor(np.nan_to_num(view.depth[..., None]).astype(np.float32)))
        color = open3d.t.geometry.Image(core.Tensor(view.map.colors.astype(np.float32) / 255))
        K, pose = core.Tensor(view.K), core.Tensor(np.linalg.inv(view.world_from_cam))
        farthest = float(np.nanmax(view.depth)) * 1.01
        blocks = grid.compute_unique_block_coordinates(depth, K, pose, 1.0, farthest, TRUNCATION_VOXELS)
        grid.integrate(blocks, depth, color, K, K, pose, 1.0, farthest, TRUNCATION_VOXELS)
    return grid.extract_triangle_mesh(weight_threshold=0.5).to_legacy()


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


def _poisson(open3d: Any, cloud: FusedCloud) -> Any:
    points = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud.points_world))
    points.normals = open3d.utility.Vector3dVector(cloud.normals.astype(np.float64))
    points.colors = open3d.utility.Vector3dVector(cloud.colors / 255.0)
    tree = cKDTree(cloud.points_world)
    some = cloud.points_world[:: max(1, len(cloud.points_world) // 5000)]
    spacing = float(np.median(tree.query(some, k=min(8, len(some)))[0][:, -1]))
    finest = np.log2(max(float(np.ptp(cloud.points_world, axis=0).max()) / spacing, 2))
    depth = min(POISSON_DEPTH, int(np.ceil(finest)) + 1)
    mesh, _ = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(points, depth=depth, n_threads=1)
    gap, _ = tree.query(np.asarray(mesh.vertices))
    mesh.remove_vertices_by_mask(gap > MAX_GAP * spacing)
    return mesh


def _without_small_pieces(mesh: Any) -> Any:
    labels, sizes, _ = mesh.cluster_connected_triangles()
    labels, sizes = np.asarray(labels), np.asarray(sizes)
    if len(sizes):
        mesh.remove_triangles_by_mask(sizes[labels] < MIN_PIECE * len(labels))
        mesh.remove_unreferenced_vertices()
    return mesh
