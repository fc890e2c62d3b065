"""open3d's meshing in a child process, whose calls hold Python's lock, so that progress and Ctrl-C would wait.

python -m dune_cli.mvs.meshing_process METHOD IN.npz OUT.npz; OUT has `vertices`, `faces` and `colors` in [0, 1].
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from dune_cli import optional
from dune_cli.errors import DuneError, JobFailed, PackageMissing

PURPOSE = "meshing"
BLOCK = 8  # voxels a side
MAX_BLOCKS = 60_000  # of 8^3 voxels: about 400 MB
TRUNCATION_VOXELS = 4.0
MIN_COMPONENT_SHARE = 0.002  # of the triangles: smaller components are removed
MAX_HOLE_VOXELS = 10.0  # radius of a hole that is closed
POISSON_DEPTH = 9  # at most: cells of a 512th of the scene
MAX_GAP = 4.0  # point spacings from the cloud, beyond which a Poisson vertex is removed
PACKAGES = Path(__file__).resolve().parents[2]  # the folder of dune_cli
PR_SET_PDEATHSIG = 1
WAIT_S = 0.2  # between two checks for signals

Arrays = dict[str, np.ndarray]


def mesh_in_subprocess(method: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The result of `METHODS[method]` on the arrays `inputs`, in a child process.

    PackageMissing without open3d, JobFailed where the child fails.
    """
    with tempfile.TemporaryDirectory(prefix="dune-mesh-") as folder:
        input_file, output_file = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(input_file, **inputs)
        paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, method, str(input_file), str(output_file)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # one sentence, if it fails; open3d writes to stderr
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(WAIT_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        message = process.stdout.read().decode("utf-8", "replace").strip() if process.stdout else ""
        if process.returncode == PackageMissing.exit_code:
            raise PackageMissing(message)
        if process.returncode or not output_file.is_file():
            reason = f"({message})" if message else ""
            raise JobFailed(f"meshing ended with status {process.returncode} {reason}".strip())
        with np.load(output_file, allow_pickle=False) as arrays:
            return dict(arrays)


def main(method: str, input_file: str, output_file: str) -> int:
    """The child process. The exit code; the reason of a failure on stdout."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # without its parent, the result is of no use
    try:
        with np.load(input_file, allow_pickle=False) as arrays:
            np.savez(output_file, **METHODS[method](dict(arrays)))
    except DuneError as error:
        print(error)
        return error.exit_code
    except MemoryError:
        print("out of memory; try a lower --quality")
        return 1
    return 0


def tsdf(inputs: Arrays) -> Arrays:
    """`inputs`: voxel (); and of each view i depth_i (h, w) float32, 0 where not valid, colors_i (h, w, 3) uint8, K_i
    (3, 3), world_from_cam_i (4, 4)."""
    open3d = optional.import_open3d(PURPOSE)
    core = open3d.core
    grid = open3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"),
        (core.float32, core.float32, core.float32),
        ((1), (1), (3)),
        float(inputs["voxel"]),
        BLOCK,
        MAX_BLOCKS,
        core.Device("CPU:0"),
    )
    for i in range(sum(name.startswith("depth_") for name in inputs)):
        depth = inputs[f"depth_{i}"]
        farthest = float(depth.max()) * 1.01
        image = open3d.t.geometry.Image(core.Tensor(depth[..., None]))
        color = open3d.t.geometry.Image(core.Tensor(inputs[f"colors_{i}"].astype(np.float32) / 255))
        K, pose = core.Tensor(inputs[f"K_{i}"]), core.Tensor(np.linalg.inv(inputs[f"world_from_cam_{i}"]))
        blocks = grid.compute_unique_block_coordinates(image, K, pose, 1.0, farthest, TRUNCATION_VOXELS)
        grid.integrate(blocks, image, color, K, K, pose, 1.0, farthest, TRUNCATION_VOXELS)
    mesh = _without_small_parts(grid.extract_triangle_mesh(weight_threshold=0.5).to_legacy())
    if len(mesh.triangles):
        # small parts are gone, whose outline would be closed as well
        open_mesh = open3d.t.geometry.TriangleMesh.from_legacy(mesh)  # its memory is that of the closed one
        closed = open_mesh.fill_holes(MAX_HOLE_VOXELS * float(inputs["voxel"]))
        mesh.triangles = open3d.utility.Vector3iVector(closed.triangle.indices.numpy().astype(np.int32))
    return _mesh_arrays(mesh)


def poisson(inputs: Arrays) -> Arrays:
    """`inputs`: points_world (N, 3), normals (N, 3), colors (N, 3) uint8."""
    open3d = optional.import_open3d(PURPOSE)
    points_world = inputs["points_world"]
    points = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points_world))
    points.normals = open3d.utility.Vector3dVector(inputs["normals"].astype(np.float64))
    points.colors = open3d.utility.Vector3dVector(inputs["colors"] / 255.0)
    tree = cKDTree(points_world)
    sample = points_world[:: max(1, len(points_world) // 5000)]
    spacing = float(np.median(tree.query(sample, k=min(8, len(sample)))[0][:, -1]))
    finest = np.log2(max(float(np.ptp(points_world, axis=0).max()) / spacing, 2))
    depth = min(POISSON_DEPTH, int(np.ceil(finest)) + 1)
    mesh, _ = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(points, depth=depth, n_threads=1)
    gap, _ = tree.query(np.asarray(mesh.vertices))
    mesh.remove_vertices_by_mask(gap > MAX_GAP * spacing)
    return _mesh_arrays(_without_small_parts(mesh))


METHODS = {"tsdf": tsdf, "poisson": poisson}


def _without_small_parts(mesh: Any) -> Any:
    """The mesh without small connected components, changed in place."""
    labels, sizes, _ = mesh.cluster_connected_triangles()
    labels, sizes = np.asarray(labels), np.asarray(sizes)
    if len(sizes):
        mesh.remove_triangles_by_mask(sizes[labels] < MIN_COMPONENT_SHARE * len(labels))
        mesh.remove_unreferenced_vertices()
    return mesh


def _mesh_arrays(mesh: Any) -> Arrays:
    return {
        "vertices": np.asarray(mesh.vertices),
        "faces": np.asarray(mesh.triangles).astype(np.int64),
        "colors": np.asarray(mesh.vertex_colors),
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
