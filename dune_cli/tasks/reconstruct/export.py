"""A scene as files: the `dune.scene/1` JSON beside PLY, OBJ, GLB or NPZ; COLMAP model, transforms.json, depth maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid, transform_pixels
from dune_cli.geometry.poses import inverse
from dune_cli.io import formats
from dune_cli.io.colmap.write import Observation, write_colmap
from dune_cli.io.depth_files import to_png16
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.orientation import UPRIGHT, StoredCamera, quarter_turns, stored_camera, to_stored
from dune_cli.io.outputs import atomic_directory, unique_stems
from dune_cli.io.png import save_png
from dune_cli.io.pose_files import write_transforms
from dune_cli.sfm.scene import Georeference, Scene, View

SCHEMA = "dune.scene/1"
MAX_COLMAP_DENSE_POINTS = 100_000


def write_scene(
    scene: Scene, path: Path, surface: bool = False, people: Sequence[Mesh] = ()
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Writes `path` in the format of its extension (dune_cli.io.formats); returns the JSON's `points` and `mesh`.

    people: more meshes, for a format that keeps their names; the JSON does not count them.

    The format gets the first of its CONTENT: points, meshes, or everything as arrays; with `surface` the meshes, if it
    takes any. Without meshes it gets the points; JobFailed where it takes nothing but meshes.
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
        data = formats.SceneData(
            meshes=[*people, *meshes], cameras=scene.frusta(), world_offset=scene.world_offset, **_place(scene)
        )
        formats.of(path).write_scene(path, data)
        document = {
            "file": path.name,
            "vertices": sum(len(m.vertices) for m in meshes),
            "faces": sum(len(m.faces) for m in meshes),
            "groups": [m.name for m in meshes],
        }
        if meshes[0].texture is not None:
            beside = ".png" in formats.constant(path, "TEXTURE", ())
            height, width = meshes[0].texture.shape[:2]
            file = path.with_suffix(".png").name if beside else None
            document["texture"] = {"file": file, "width": width, "height": height}
        return none, document
    normals = None if scene.fused is None else scene.fused.normals
    arrays = _arrays(scene) if "arrays" in content else None
    data = formats.SceneData(
        points, colors, confidence, normals, people, scene.frusta(), arrays, scene.world_offset, **_place(scene)
    )
    fields = formats.of(path).write_scene(path, data)
    return {"file": path.name, "count": len(points), "fields": fields}, None


def _place(scene: Scene) -> dict[str, Any]:
    """What a format is told of a georeferenced scene."""
    placed = scene.georeference
    if placed is None:
        return {}
    frame = placed.frame
    return {"axes": frame.axes, "z_up": frame.z_up, "crs_offset": placed.offset, "crs_wkt": frame.wkt}


def scene_json(
    scene: Scene,
    points: dict[str, Any],
    mesh: dict[str, Any] | None,
    provenance: dict[str, Any],
    people: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The `dune.scene/1` object; docs/file-formats.md describes it. people: its fields about people.

    An unregistered camera has null poses and a `reason`; a panorama has a null K. `radial`, `orientation`,
    `components` and `unregistered` are left out where they are trivial. Sizes, K and poses are those of the upright
    photos; `orientation` is EXIF's, where a photo is stored otherwise. Poses are in the world's own coordinates;
    where these are large, `world_offset` is to be added to those of the output file."""
    pairs = [
        {"images": list(p.images), "matches": p.matches, "inliers": p.inliers, "confidence": round(p.confidence, 6)}
        | ({"contradicts_scene": True} if p.contradicts_scene else {})
        for p in scene.pairs
    ]
    document: dict[str, Any] = {"schema": SCHEMA, "scale": scene.scale}
    if scene.scale_note is not None:
        document["scale_note"] = scene.scale_note
    document |= {
        "method": scene.method,
        "image_size_is": "upright",
        "world": _world(scene),
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
    if (filled := scene.filled_share) is not None:
        document["quality"] |= {"measured_share": round(scene.coverage, 6), "filled_share": round(filled, 6)}
    if (sky := scene.sky_share) is not None:
        document["quality"] |= {"sky_share": round(sky, 6)}
    if scene.world_offset is not None:
        relative = formats.constant(Path((mesh or points)["file"]), "OFFSET", False)
        document["world_offset"] = scene.world_offset if relative else np.zeros(3)
    if (masked := scene.masked) is not None:
        counted = masked.keypoints is not None
        document["masks"] = {
            "keypoints": masked.keypoints,
            "masked": masked.masked if counted else None,
            "by": {name: count if counted else None for name, count in masked.by.items()},
        }
    if scene.scale_from is not None:
        told = scene.scale_from
        document["scale_from"] = {"source": told.source, "relative_sd": told.relative_sd, **told.details}
    if (gravity := scene.gravity) is not None:
        document["gravity"] = {
            "down": gravity.down,
            "source": gravity.source,
            "sd_deg": gravity.sd_deg,
            "photos": gravity.photos,
        }
    if (adjusted := scene.adjustment) is not None:
        document["position_adjustment"] = {
            "used": sum(adjusted.agrees.values()),
            "outliers": [scene.views[index].image for index, agrees in adjusted.agrees.items() if not agrees],
            "sigma": adjusted.sigma,
            "rms_m": [adjusted.rms_before_m, adjusted.rms_after_m],
            "error_px": [adjusted.error_before_px, adjusted.error_after_px],
            "moved_m": adjusted.moved_m,
        }
    if scene.georeference is not None:
        document["georeference"] = georeference_json(scene.georeference)
    if scene.components:
        document["components"] = [[scene.views[index].image for index in group] for group in scene.components]
    unregistered = [view for view in scene.views if not view.registered]
    if unregistered:
        document["unregistered"] = [{"image": view.image, "reason": view.reason} for view in unregistered]
    return document | (people or {}) | {"provenance": provenance}


def _world(scene: Scene) -> str:
    camera = f"camera {next(iter(scene.registered), 0)}"
    return scene.world or (camera if scene.gravity is None else f"{camera}, turned upright")


def georeference_json(placed: Georeference) -> dict[str, Any]:
    """Coordinates in `crs` are those of the scene plus `offset`; docs/file-formats.md describes the rest."""
    return {
        "crs": placed.frame.name,
        "axes": placed.frame.axes,
        "offset": placed.offset,
        "positions": placed.source,
        "used": sum(not one.outlier for one in placed.residuals),
        "rms_m": placed.rms_m,
        "sigma": placed.sigma,
        "scale_sd": placed.scale_sd,
        "roll_sd_deg": min(placed.roll_sd_deg, 180.0),
        "roll_from": placed.roll_from,
        "outliers": placed.outliers,
        "residuals": [
            {"image": one.image, "residual_m": one.residual, "sd_m": one.sd_m, "outlier": one.outlier}
            | ({} if one.before_m is None else {"before_m": one.before_m})
            for one in placed.residuals
        ],
        **placed.details,
    }


def write_geojson(scene: Scene, path: Path) -> None:
    """The placed cameras of a georeferenced scene as points of longitude, latitude (WGS84) and height: RFC 7946."""
    placed = scene.georeference
    assert placed is not None
    residuals = {one.image: one for one in placed.residuals}
    features = []
    for index in scene.registered:
        view = scene.views[index]
        latitude, longitude, height = placed.geodetic(view.world_from_cam[:3, 3]).tolist()
        properties: dict[str, Any] = {"image": view.image}
        if view.image in residuals:
            one = residuals[view.image]
            properties |= {"residual_m": round(float(np.linalg.norm(one.residual)), 4), "outlier": one.outlier}
        coordinates = [round(longitude, 9), round(latitude, 9), round(height, 4)]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": coordinates},
                "properties": properties,
            }
        )
    write_json(path, {"type": "FeatureCollection", "features": features})


def _camera_json(view: View, world_from_cam: np.ndarray) -> dict[str, Any]:
    document: dict[str, Any] = {
        "image": view.image,
        "width": view.width,
        "height": view.height,
        "K": None if view.is_panorama else view.K,
        "focal_source": view.focal_source,
        "world_from_cam": world_from_cam if view.registered else None,
        "cam_from_world": inverse(world_from_cam) + 0.0 if view.registered else None,  # no -0.0
        "registered": view.registered,
    }
    if view.radial:
        document["radial"] = view.radial
    if view.orientation != UPRIGHT:
        document["orientation"] = view.orientation
    document["camera"] = _camera_model_json(view)
    return document if view.registered else document | {"reason": view.reason}


def _camera_model_json(view: View) -> dict[str, Any]:
    """COLMAP's name of the model, its parameters in pixels with centres at integers, and the standard deviations of
    estimated ones (null: the camera was given). An estimated focal length also has its value before, and the `modes` of
    `Calibration`, from which `dune reloc --map` derives the map's uncertainty."""
    camera, calibration = view.camera, view.calibration
    document: dict[str, Any] = {"model": camera.model, "params": list(camera.params), "sd": None}
    if calibration is not None:
        focal_sds = [calibration.focal_sd * focal for focal in camera.params[: camera.kind.focals]]
        document["sd"] = [*focal_sds, *calibration.principal_sd_px, *calibration.distortion_sd]
        document |= {"focal_before": calibration.focal_before_px, "modes": calibration.modes}
    return document


def write_colmap_model(scene: Scene, folder: Path, binary: bool) -> None:
    """The cameras of the photos as they are stored; the triangulated matches with their tracks; and at most 100,000
    dense points, evenly spread, each observed by its own view, for splatting to start from. ValueError for a photo that
    is stored mirrored. The folder of a georeferenced scene has georeference.json, as the scene's JSON has it."""
    views = [scene.views[index] for index in scene.registered]
    cameras = [_stored_camera(scene, view) for view in views]
    to_stored_pixels = [partial(transform_pixels, camera.stored_from_upright) for camera in cameras]
    points, colors, tracks = model_points(scene, to_stored_pixels)
    frusta = [
        Frustum(camera.K, camera.world_from_cam, camera.width, camera.height, view.image)
        for camera, view in zip(cameras, views)
    ]
    lenses = [_stored_lens(view) for view in views]
    rigs = scene.rigs.renumbered({index: row for row, index in enumerate(scene.registered)})
    write_colmap(folder, frusta, scene.in_world(points), colors, tracks, binary, lenses, rigs)
    if scene.georeference is not None:
        write_json(folder / "georeference.json", georeference_json(scene.georeference))
    else:
        (folder / "georeference.json").unlink(missing_ok=True)  # of the model that was here


def model_points(
    scene: Scene, to_image: Sequence[Callable[[np.ndarray], np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, list[list[Observation]]]:
    """The points (M, 3) of a COLMAP model in the scene's coordinates, their colours (M, 3), and their tracks.

    `to_image` of each registered view: the pixels (K, 2) of the model's image from those of the upright photo, NaN
    outside the image. Points that no image shows are left out. At most MAX_COLMAP_DENSE_POINTS are dense ones.
    """
    views = [scene.views[index] for index in scene.registered]
    points, colors, tracks = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)], []
    if scene.sparse is not None:
        sparse_tracks: list[list[Observation]] = [[] for _ in scene.sparse.points_world]
        for number, (index, to_pixels) in enumerate(zip(scene.registered, to_image)):
            point_indices, pixels = scene.sparse.observations[index]
            pixels = to_pixels(pixels)
            shown = np.isfinite(pixels).all(-1)
            for point, (x, y) in zip(point_indices[shown].tolist(), pixels[shown].tolist()):
                sparse_tracks[point].append((number, x, y))
        observed = np.array([bool(track) for track in sparse_tracks], dtype=bool)
        points.append(scene.sparse.points_world[observed])
        colors.append(scene.sparse.colors[observed])
        tracks += [track for track in sparse_tracks if track]
    total = sum(int(view.dense.valid.sum()) for view in scene.views if view.dense is not None)
    step = max(1, -(-total // MAX_COLMAP_DENSE_POINTS))
    for number, (view, to_pixels) in enumerate(zip(views, to_image)):
        if view.dense is None:
            continue
        pick = np.flatnonzero(view.dense.valid)[step // 2 :: step]
        grid = pixel_grid(*view.dense.valid.shape).reshape(-1, 2)[pick]
        pixels = view.camera.distort(transform_pixels(view.dense.image_from_map, grid))
        in_photo = np.isfinite(pixels).all(-1)
        pick, pixels = pick[in_photo], to_pixels(pixels[in_photo])
        shown = np.isfinite(pixels).all(-1)
        points.append(view.dense.points_world.reshape(-1, 3)[pick[shown]])
        colors.append(view.dense.colors.reshape(-1, 3)[pick[shown]])
        tracks += [[(number, x, y)] for x, y in pixels[shown].tolist()]
    return np.concatenate(points), np.concatenate(colors), tracks


def write_transforms_json(scene: Scene, path: Path, photos: Sequence[Path], points_file: Path | None) -> None:
    """The registered cameras of the photos as they are stored, in nerfstudio's format. `photos`: the file of each view;
    `points_file`: a PLY of the scene. ValueError for a photo that is stored mirrored."""
    views = [scene.views[index] for index in scene.registered]
    files = [photos[index] for index in scene.registered]
    cameras = [_stored_camera(scene, view) for view in views]
    write_transforms(path, cameras, files, points_file, [_stored_lens(view) for view in views])


def write_depths(scene: Scene, folder: Path) -> int:
    """The depth map of every dense view as NAME.png (16 bits, 0 = none), and depths.json with each map's file, size, K,
    and `png_scale` (depth = value / png_scale, in the scene's units); with --fill also filled/NAME.png, the
    `filled` file: 255 where a network's depth is, else 0. Maps are oriented as the photos are stored. Returns the
    number of maps. ValueError for a photo that is stored mirrored. Those of a panorama are the maps of its perspective
    views, whose poses depths.json then has as well."""
    turned = scene.perspective is not None
    scene, _ = scene.in_perspective(())
    dense = [(view, view.dense, view.depth) for view in scene.views if view.dense is not None]
    if not dense:
        return 0
    names = unique_stems([Path(view.image) for view, _, _ in dense])
    frames = []
    with atomic_directory(folder) as temporary:
        for name, (view, one, depth) in zip(names, dense):
            assert one is not None and depth is not None
            K = one.intrinsics(view.K)
            camera = stored_camera(K, view.world_from_cam, depth.shape[1], depth.shape[0], view.orientation)
            pixels, png_scale = to_png16(np.ascontiguousarray(to_stored(depth, view.orientation)))
            save_png(temporary / f"{name}.png", pixels)
            pose = {"world_from_cam": scene.pose_in_world(view)} if turned else {}
            filled = {} if one.filled is None else {"filled": f"filled/{name}.png"}
            if one.filled is not None:
                mask = np.where(one.filled, np.uint8(255), np.uint8(0))
                (temporary / "filled").mkdir(exist_ok=True)
                save_png(temporary / filled["filled"], np.ascontiguousarray(to_stored(mask, view.orientation)))
            frames.append(
                {
                    "image": view.image,
                    "file": f"{name}.png",
                    **filled,
                    "png_scale": png_scale,
                    "width": camera.width,
                    "height": camera.height,
                    "K": camera.K,
                    "radial": view.radial,
                    "camera": {"model": _stored_lens(view).model, "params": list(_stored_lens(view).params)},
                    **pose,
                }
            )
        document = {"schema": "dune.depths/1", "scale": scene.scale, "invalid": 0, "undistorted": True}
        write_json(temporary / "depths.json", document | {"image_size_is": "stored", "depths": frames})
    return len(frames)


def _stored_camera(scene: Scene, view: View) -> StoredCamera:
    return stored_camera(view.K, scene.pose_in_world(view), view.width, view.height, view.orientation)


def _stored_lens(view: View) -> Camera:
    """The view's camera as that of the photo's stored pixels."""
    return view.camera.turned(quarter_turns(view.orientation))


def _arrays(scene: Scene) -> dict[str, np.ndarray]:
    """The arrays of the NPZ, in the world's own coordinates, points as float64 where these are large.

    For each view N, upright: viewN_K, viewN_world_from_cam, where it has distortion viewN_camera_model (text) and
    viewN_camera_params (pixel centres at integers), viewN_radial for SIMPLE_RADIAL, viewN_orientation
    (EXIF) where the photo is stored otherwise, and with dense points viewN_points (h, w, 3) in the world, viewN_depth,
    viewN_confidence, viewN_valid (h, w), viewN_colors (h, w, 3), viewN_image_from_map (3, 3), with --fill viewN_filled
    (h, w). The fused cloud: fused_points (F, 3), fused_normals, fused_colors, fused_confidence. The triangulated
    matches: sparse_points (M, 3), sparse_colors, sparse_confidence, and of each view N the observed points
    sparse_indexN (K,) at sparse_pixelsN (K, 2)."""
    arrays: dict[str, np.ndarray] = {}
    for index, view in enumerate(scene.views):
        arrays[f"view{index}_K"] = view.K
        arrays[f"view{index}_world_from_cam"] = scene.pose_in_world(view)
        if view.radial:
            arrays[f"view{index}_radial"] = np.array(view.radial)
        if not view.camera.is_pinhole:
            arrays[f"view{index}_camera_model"] = np.array(view.camera.model)
            arrays[f"view{index}_camera_params"] = np.array(view.camera.params)
        if view.orientation != UPRIGHT:
            arrays[f"view{index}_orientation"] = np.array(view.orientation)
        if view.dense is not None and view.depth is not None:
            arrays[f"view{index}_points"] = scene.in_world(view.dense.points_world.astype(np.float32))
            arrays[f"view{index}_depth"] = view.depth.astype(np.float32)
            arrays[f"view{index}_confidence"] = view.dense.confidence.astype(np.float32)
            arrays[f"view{index}_valid"] = view.dense.valid
            arrays[f"view{index}_colors"] = view.dense.colors
            arrays[f"view{index}_image_from_map"] = view.dense.image_from_map
            if view.dense.filled is not None:
                arrays[f"view{index}_filled"] = view.dense.filled
    if scene.fused is not None:
        for name in ("points_world", "normals", "colors", "confidence"):
            arrays[f"fused_{name.removesuffix('_world')}"] = getattr(scene.fused, name)
        arrays["fused_points"] = scene.in_world(scene.fused.points_world)
    if scene.sparse is not None:
        arrays["sparse_points"] = scene.in_world(scene.sparse.points_world.astype(np.float32))
        arrays["sparse_colors"] = scene.sparse.colors
        arrays["sparse_confidence"] = scene.sparse.confidence
        for index, (point_indices, pixels) in enumerate(scene.sparse.observations):
            arrays[f"sparse_index{index}"], arrays[f"sparse_pixels{index}"] = point_indices, pixels
    return arrays
