"""Poses of query photos as JSON (`dune.pose/1`) and in words: relative to reference photos, and in a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import rotvec_from_rotation
from dune_cli.sfm.localization import LocalizationResult
from dune_cli.sfm.multi_reference import MultiReferencePose
from dune_cli.sfm.relative_pose import CameraImage, Relocalization

SCHEMA = "dune.pose/1"


def best_of(results: Sequence[Relocalization]) -> Relocalization:
    """The result with the highest confidence among those with a pose; without any pose, that with most evidence."""
    return max(results, key=lambda r: (r.success, r.confidence, r.inliers))


def document(
    results: Sequence[Relocalization], provenance: dict[str, Any], joint: MultiReferencePose | None = None
) -> dict[str, Any]:
    """The `dune.pose/1` object: the pose by all references together, where there is one, else the best one. With
    several references, that by each of them is in `candidates`."""
    fields = {"schema": SCHEMA, **_pose_fields(best_of(results) if joint is None else joint.pose)}
    if joint is not None:
        fields["joint"] = {
            "references": [
                {
                    "image": str(used.image.photo.path),
                    "ref_from_this": used.ref_from_this + 0.0,
                    "inliers": used.inliers,
                }
                for used in joint.references
            ],
            "rotation_std_deg": joint.localization.rotation_std_deg,
            "position_std": joint.localization.position_std,
            "covariance": joint.localization.covariance,
        }
    if len(results) > 1:
        fields["candidates"] = [_pose_fields(result) for result in results]
    return fields | {"provenance": provenance}


def _pose_fields(result: Relocalization) -> dict[str, Any]:
    ref_from_query = result.ref_from_query
    fields: dict[str, Any] = {"success": result.success, "scale": result.scale}
    if result.success and result.scale == "arbitrary":
        fields["scale_note"] = result.scale_from
    return (
        fields
        | {
            "query": _image_fields(result.query),
            "reference": _image_fields(result.reference),
            "ref_from_query": None if ref_from_query is None else ref_from_query + 0.0,  # no -0.0
            "query_from_ref": None if result.query_from_ref is None else result.query_from_ref + 0.0,
            "rotation_deg": result.rotation_deg,
            "translation": None if ref_from_query is None else ref_from_query[:3, 3] + 0.0,
            "distance": result.distance,
            "matches": result.matches,
            "inliers": result.inliers,
            "fixed": result.static_matches,
            "turned_deg": result.rotated_deg,
            "confidence": round(result.confidence, 6),
            "solver": result.solver,
            "message": result.message,
        }
    )


def _image_fields(image: CameraImage) -> dict[str, Any]:
    return {
        "image": str(image.photo.path),
        "width": image.photo.width,
        "height": image.photo.height,
        "K": image.K,
        "focal_source": image.focal_source,
        "camera": _camera_fields(image.camera),
    }


def _camera_fields(camera: Camera | None) -> dict[str, Any] | None:
    """COLMAP's model, its parameters with pixel centres at integers."""
    return None if camera is None else {"model": camera.model, "params": list(camera.params)}


def in_words(result: Relocalization) -> str:
    """A few lines for people."""
    title = f"{result.query.name} relative to {result.reference.name}"
    if not result.success:
        return f"{title}: no pose\n  {result.message}"
    pose = result.ref_from_query
    rotvec = rotvec_from_rotation(pose[:3, :3])
    angle = np.linalg.norm(rotvec)
    axis = "" if angle < 1e-6 else f" about ({_numbers(rotvec / angle)})"
    metric = result.scale == "metric"
    unit = "m" if metric else "(scale unknown)"
    lines = [
        title,
        f"  rotation     {result.rotation_deg:.2f} degrees{axis}",
        f"  translation  ({_numbers(pose[:3, 3])}) {unit}: the query camera's centre in the reference camera's frame "
        "(x right, y down, z forward)",
        f"  distance     {result.distance:.3f} m" if metric else "  distance     unknown",
        f"  inliers      {result.inliers} of {result.matches} matches ({result.solver})",
        f"  confidence   {result.confidence:.2f} (0 to 1)",
        f"  scale        metric, from {result.scale_from}"
        if metric
        else f"  scale        arbitrary: {result.scale_from}",
    ]
    if result.rotated_deg:
        lines.append(f"  rotated      matched after the query was rotated clockwise by {result.rotated_deg} degrees")
    return "\n".join(lines)


def joint_in_words(joint: MultiReferencePose) -> str:
    """Two lines for people."""
    pose = joint.pose
    unit = " m" if pose.scale == "metric" else f" ({pose.scale_from})"
    spread = joint.localization.position_std
    names = ", ".join(used.image.name for used in joint.references)
    return (
        f"{pose.query.name} by {len(joint.references)} references together ({names}), in the frame of "
        f"{pose.reference.name}\n  at ({_numbers(pose.ref_from_query[:3, 3])}) +- {np.linalg.norm(spread):.2g}{unit}, "
        f"rotation {pose.rotation_deg:.2f} +- {joint.localization.rotation_std_deg:.2g} degrees, {pose.inliers} of "
        f"{pose.matches} matches agree, confidence {pose.confidence:.2f}"
    )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value + 0.0:.3f}" for value in values)


def map_document(
    result: LocalizationResult, provenance: dict[str, Any], sequence: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The `dune.pose/1` object of a pose in a map's world. `sequence`: of a frame of a video, its place there.

    `covariance` (6x6): of the rotation vector about the world's axes in radians, then of the position.
    `covariance_has_map_calibration`: whether it includes the uncertainty of the map's cameras.
    """
    pose, photo_map = result.world_from_query, result.map
    fields: dict[str, Any] = {"schema": SCHEMA, "success": result.success, "scale": photo_map.scale}
    if photo_map.scale_note is not None:
        fields["scale_note"] = photo_map.scale_note
    width, height = result.size or (None, None)
    return (
        fields
        | {
            "query": {
                "image": result.name,
                "width": width,
                "height": height,
                "K": result.K,
                "focal_source": result.focal_source,
                "camera": _camera_fields(result.camera),
            },
            "map": {"folder": str(photo_map.folder), "images": len(photo_map.images)},
            "world_from_query": None if pose is None else pose + 0.0,  # no -0.0
            "query_from_world": None if pose is None else poses.inverse(pose) + 0.0,
            "position": None if pose is None else pose[:3, 3] + 0.0,
            "rotation_std_deg": result.rotation_std_deg,
            "position_std": result.position_std,
            "covariance": result.covariance,
            "covariance_has_map_calibration": result.has_map_calibration,
            "matches": result.matches,
            "inliers": result.inliers,
            "fixed": result.static_matches,
            "turned_deg": result.rotated_deg,
            "confidence": round(result.confidence, 6),
            "reprojection_error_px": result.reprojection_error_px,
            "retrieved": [
                {
                    "image": image.name,
                    "likeness": None if image.similarity is None else round(image.similarity, 6),
                    "matches": image.matches,
                    "inliers": image.inliers,
                }
                for image in result.retrieved
            ],
            "solver": "pnp",
            "message": result.message,
            **({} if sequence is None else {"sequence": sequence}),
            "provenance": provenance,
        }
    )


def map_pose_in_words(result: LocalizationResult, consistent: bool | None = None) -> str:
    """One line for people. `consistent`: whether a frame's pose fits the motion of the frames beside it."""
    if result.world_from_query is None or result.position_std is None:
        return f"{result.name}: no pose: {result.message}"
    unit = " m" if result.map.scale == "metric" else ""
    place = ", ".join(f"{value + 0.0:.3f}" for value in result.world_from_query[:3, 3])
    spread = float(np.linalg.norm(result.position_std))
    rotated = f", rotated by {result.rotated_deg} degrees" if result.rotated_deg else ""
    jump = ", far from the motion of the frames beside it" if consistent is False else ""
    return (
        f"{result.name}: at ({place}){unit} +- {spread:.2g}, rotation +- {result.rotation_std_deg:.2g} degrees, "
        f"{result.inliers} of {result.matches} matches agree, confidence {result.confidence:.2f}{rotated}{jump}"
    )
