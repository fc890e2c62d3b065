"""A scene as files: the `dune.scene/1` JSON, and PLY, OBJ, GLB, NPZ or a COLMAP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry.bundle_adjustment import PRINCIPAL_SD
from dune_cli.geometry.cameras import distort_pixels, pixel_grid, transform_pixels
from dune_cli.geometry.poses import inverse
from dune_cli.io import formats
from dune_cli.io.colmap.write import Observation, write_colmap
from dune_cli.io.depth_files import to_png16
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Frustum
from dune_cli.io.orientation import UPRIGHT, StoredCamera, stored_camera, to_stored
from dune_cli.io.outputs import atomic_directory, unique_stems
from dune_cli.io.png import save_png
from dune_cli.io.pose_files import write_transforms
from dune_cli.sfm.scene import Scene, View

SCHEMA = "dune.scene/1"
MAX_COLMAP_DENSE_POINTS = 100_000


def write_scene(scene: Scene, path: Path, surface: bool = False) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Writes `path` in the format of its extension (dune_cli.io.formats); returns the JSON's `points` and `mesh`.

    The format holds what its CONTENT prefers: points, the meshes (JobFailed where there are none and it takes nothing
    else), or everything as arrays; with `surface` the meshes, if it takes any.
    """
    content = formats.constant(path, "CONTENT", ())
    if surface and "surface" in content:
        content = content[content.index("surface") :]
    points, colors, confidence = scene.cloud()
    none: dict[str, Any] = {"file": None, "count": 0, "fields": []}
    meshes = scene.meshes() if content[0] == "surface" else []
    if content == ("surface",) and not meshes:
        raise JobFailed(
            f"there is no surface for {path.name}, only {len(points)} points; write them with -o scene.glb, "
            "or with -o scene.ply and without --mesh"
        )
    if meshes:
        data = formats.SceneData(meshes=meshes, cameras=scene.frusta(), world_offset=scene.world_offset)
        formats.of(path).write_scene(path, data)
        return none, {
            "file": path.name,
            "vertices": sum(len(m.vertices) for m in meshes),
            "faces": sum(len(m.faces) for m in meshes),
            "groups": [m.name for m in meshes],
        }
    normals = None if scene.fused is None else scene.fused.normals
    arrays = _arrays(scene) if "arrays" in content else None
    data = formats.SceneData(points, colors, confidence, normals, (), scene.frusta(), arrays, scene.world_offset)
    fields = formats.of(path).write_scene(path, data)
    return {"file": path.name, "count": len(points), "fields": fields}, None


def scene_json(
    scene: Scene, points: dict[str, Any], mesh: dict[str, Any] | None, provenance: dict[str, Any]
) -> dict[str, Any]:
    """The `dune.scene/1` object. A camera that could not be placed has null poses and a `reason`; `radial`,
    `orientation`, `components` and `unregistered` are there only where there is something to say. Sizes, K and poses
    are those of the upright photos; `orientation` is EXIF's, where a photo is stored otherwise. Poses are in the
    world's own coordinates; where these are large, `world_offset` is what the output file's lack to them."""
    pairs = [
        {"images": list(p.images), "matches": p.matches, "inliers": p.inliers, "confidence": round(p.confidence, 6)}
        for p in scene.pairs
    ]
    tree: dict[str, Any] = {"schema": SCHEMA, "scale": scene.scale}
    if scene.scale_note is not None:
        tree["scale_note"] = scene.scale_note
    tree |= {
        "method": scene.method,
        "image_size_is": "upright",
        "world": scene.world or f"camera {next(iter(scene.registered), 0)}",
        "cameras": [_camera_json(view, scene.pose_in_world(view)) for view in scene.views],
        "pairs": pairs,
        "points": points,
        "mesh": mesh,
        "quality": {
            "reprojection_error_px": scene.reprojection_error_px,
            "registered": len(scene.registered),
            "total": len(scene.views),
        },
    }
    if scene.world_offset is not None:
        relative = formats.constant(Path((mesh or points)["file"]), "OFFSET", False)
        tree["world_offset"] = scene.world_offset if relative else np.zeros(3)
    if scene.components:
        tree["components"] = [[scene.views[index].image for index in group] for group in scene.components]
    lost = [view for view in scene.views if not view.registered]
    if lost:
        tree["unregistered"] = [{"image": view.image, "reason": view.reason} for view in lost]
    return tree | {"provenance": provenance}


def _camera_json(view: View, world_from_cam: np.ndarray) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "image": view.image,
        "width": view.width,
        "height": view.height,
        "K": view.K,
        "focal_source": view.focal_source,
        "world_from_cam": world_from_cam if view.registered else None,
        "cam_from_world": inverse(world_from_cam) + 0.0 if view.registered else None,  # no -0.0
        "registered": view.registered,
    }
    if view.radial:
        tree["radial"] = view.radial
    if view.orientation != UPRIGHT:
        tree["orientation"] = view.orientation
    tree["camera"] = _lens_json(view)
    return tree if view.registered else tree | {"reason": view.reason}


def _lens_json(view: View) -> dict[str, Any]:
    """COLMAP's name of the model, its parameters in pixels with centres at integers, and one standard deviation of each
    where they were looked for (null: the camera was given). A focal length that was looked for also has what it was
    before, and the `modes` of `Calibration`, in which `dune reloc --map` reads how far the map may be off."""
    K, found = view.K, view.calibration
    if found is None and not view.radial:
        return {"model": "PINHOLE", "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]], "sd": None}
    focal_px = float(np.sqrt(K[0, 0] * K[1, 1]))
    tree: dict[str, Any] = {"model": "SIMPLE_RADIAL", "params": [focal_px, K[0, 2], K[1, 2], view.radial], "sd": None}
    if found is not None:
        principal_sd_px = PRINCIPAL_SD * max(view.width, view.height)  # not looked for: what is assumed of it
        tree["sd"] = [found.focal_sd * focal_px, principal_sd_px, principal_sd_px, found.radial_sd]
        tree |= {"focal_before": found.focal_before_px, "modes": found.modes}
    return tree


def write_colmap_model(scene: Scene, folder: Path, binary: bool) -> None:
    """The cameras of the photos as they are stored, and as points the triangulated matches with their tracks and at
    most 100,000 of the dense points, evenly spread, each seen by its own view: what splatting starts from. ValueError
    for a photo that is stored mirrored."""
    cameras = [_stored(scene, scene.views[index]) for index in scene.registered]
    points, colors, tracks = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)], []
    if scene.sparse is not None:
        points.append(scene.sparse.points_world)
        colors.append(scene.sparse.colors)
        seen: list[list[Observation]] = [[] for _ in scene.sparse.points_world]
        for place, index in enumerate(scene.registered):
            which, pixels = scene.sparse.observations[index]
            pixels = transform_pixels(cameras[place].stored_from_upright, pixels)
            for point, (x, y) in zip(which.tolist(), pixels.tolist()):
                seen[point].append((place, x, y))
        tracks += seen
    total = sum(int(view.dense.valid.sum()) for view in scene.views if view.dense is not None)
    step = max(1, -(-total // MAX_COLMAP_DENSE_POINTS))
    for place, view in enumerate(scene.views[i] for i in scene.registered):
        if view.dense is None:
            continue
        pick = np.flatnonzero(view.dense.valid)[step // 2 :: step]
        points.append(view.dense.points_world.reshape(-1, 3)[pick])
        colors.append(view.dense.colors.reshape(-1, 3)[pick])
        grid = pixel_grid(*view.dense.valid.shape).reshape(-1, 2)[pick]
        straight = transform_pixels(view.dense.image_from_map, grid)
        bent = distort_pixels(straight, view.K, view.radial)
        stored = transform_pixels(cameras[place].stored_from_upright, bent)
        tracks += [[(place, x, y)] for x, y in stored.tolist()]
    radials = [scene.views[index].radial for index in scene.registered]
    frusta = [_frustum(camera, scene.views[index]) for camera, index in zip(cameras, scene.registered)]
    world = scene.in_world(np.concatenate(points))
    write_colmap(folder, frusta, world, np.concatenate(colors), tracks, binary, radials)


def write_transforms_json(scene: Scene, path: Path, photos: Sequence[Path], points_file: Path | None) -> None:
    """The placed cameras of the photos as they are stored, as nerfstudio has them. `photos`: the file of each view;
    `points_file`: a PLY of the scene. ValueError for a photo that is stored mirrored."""
    views = [scene.views[index] for index in scene.registered]
    files = [photos[index] for index in scene.registered]
    write_transforms(
        path, [_stored(scene, view) for view in views], files, points_file, [view.radial for view in views]
    )


def write_depths(scene: Scene, folder: Path) -> int:
    """Every dense view's depth as NAME.png (16 bits, 0 = none), and depths.json: for each its file, `png_scale` (depth
    = value / png_scale, in the scene's units), and the map's own size and K. Maps lie as the photos are stored. Returns
    how many there are. ValueError for a photo that is stored mirrored."""
    dense = [(view, view.dense, view.depth) for view in scene.views if view.dense is not None]
    if not dense:
        return 0
    names = unique_stems([Path(view.image) for view, _, _ in dense])
    frames = []
    with atomic_directory(folder) as temporary:
        for name, (view, one, depth) in zip(names, dense):
            assert one is not None and depth is not None
            K = np.linalg.inv(one.image_from_map) @ view.K
            camera = stored_camera(K, view.world_from_cam, depth.shape[1], depth.shape[0], view.orientation)
            pixels, png_scale = to_png16(np.ascontiguousarray(to_stored(depth, view.orientation)))
            save_png(temporary / f"{name}.png", pixels)
            frames.append(
                {
                    "image": view.image,
                    "file": f"{name}.png",
                    "png_scale": png_scale,
                    "width": camera.width,
                    "height": camera.height,
                    "K": camera.K,
                    "radial": view.radial,
                }
            )
        tree = {"schema": "dune.depths/1", "scale": scene.scale, "invalid": 0, "undistorted": True}
        tree |= {"image_size_is": "stored", "depths": frames}
        write_json(temporary / "depths.json", tree)
    return len(frames)


def _stored(scene: Scene, view: View) -> StoredCamera:
    return stored_camera(view.K, scene.pose_in_world(view), view.width, view.height, view.orientation)


def _frustum(camera: StoredCamera, view: View) -> Frustum:
    return Frustum(camera.K, camera.world_from_cam, camera.width, camera.height, view.image)


def _arrays(scene: Scene) -> dict[str, np.ndarray]:
    """In the world's own coordinates, points as float64 where these are large. For each view N, upright: viewN_K,
    viewN_world_from_cam, viewN_radial where there is such a term,
    viewN_orientation (EXIF) where the photo is stored otherwise, and with dense points
    viewN_points (h, w, 3) in the world, viewN_depth, viewN_confidence, viewN_valid (h, w), viewN_colors (h, w, 3),
    viewN_image_from_map (3, 3). The fused cloud: fused_points (F, 3), fused_normals, fused_colors, fused_confidence.
    The matched points: sparse_points (M, 3), sparse_colors, sparse_confidence, and for each view N the indices
    sparse_indexN (K,) of those that it sees at sparse_pixelsN (K, 2)."""
    arrays: dict[str, np.ndarray] = {}
    for index, view in enumerate(scene.views):
        arrays[f"view{index}_K"] = view.K
        arrays[f"view{index}_world_from_cam"] = scene.pose_in_world(view)
        if view.radial:
            arrays[f"view{index}_radial"] = np.array(view.radial)
        if view.orientation != UPRIGHT:
            arrays[f"view{index}_orientation"] = np.array(view.orientation)
        if view.dense is not None and view.depth is not None:
            arrays[f"view{index}_points"] = scene.in_world(view.dense.points_world.astype(np.float32))
            arrays[f"view{index}_depth"] = view.depth.astype(np.float32)
            arrays[f"view{index}_confidence"] = view.dense.confidence.astype(np.float32)
            arrays[f"view{index}_valid"] = view.dense.valid
            arrays[f"view{index}_colors"] = view.dense.colors
            arrays[f"view{index}_image_from_map"] = view.dense.image_from_map
    if scene.fused is not None:
        for name in ("points_world", "normals", "colors", "confidence"):
            arrays[f"fused_{name.removesuffix('_world')}"] = getattr(scene.fused, name)
        arrays["fused_points"] = scene.in_world(scene.fused.points_world)
    if scene.sparse is not None:
        arrays["sparse_points"] = scene.in_world(scene.sparse.points_world.astype(np.float32))
        arrays["sparse_colors"] = scene.sparse.colors
        arrays["sparse_confidence"] = scene.sparse.confidence
        for index, (points, pixels) in enumerate(scene.sparse.observations):
            arrays[f"sparse_index{index}"], arrays[f"sparse_pixels{index}"] = points, pixels
    return arrays
