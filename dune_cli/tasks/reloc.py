"""Poses of query photos as JSON (`dune.pose/1`) and in words: relative to reference photos, and in a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dune_cli.geometry import poses
from dune_cli.geometry.poses import rotvec_from_rotation
from dune_cli.sfm.localization import LocalizationResult
from dune_cli.sfm.multi_reference import MultiReferencePose
from dune_cli.sfm.relative_pose import CameraImage, Relocalization

# A relocalization as `dune.pose/1` JSON and in words.


SCHEMA = "dune.pose/1"


def best_of(results: Sequence[Relocalization]) -> Relocalization:
    """The one with a pose and the highest confidence; without any pose, the one that came nearest to one."""
    return max(results, key=lambda r: (r.success, r.confidence, r.inliers))


def document(
    results: Sequence[Relocalization], provenance: dict[str, Any], joint: MultiReferencePose | None = None
) -> dict[str, Any]:
    """The object of `dune.pose/1`: the pose by all references together, where there is one, else the best one; with
    several references also that by each of them, as `candidates`."""
    tree = {"schema": SCHEMA, **_facts(best_of(results) if joint is None else joint.pose)}
    if joint is not None:
        tree["joint"] = {
            "references": [
                {"image": str(used.shot.photo.path), "ref_from_this": used.ref_from_this + 0.0, "inliers": used.inliers}
                for used in joint.references
            ],
            "rotation_std_deg": joint.located.rotation_std_deg,
            "position_std": joint.located.position_std,
            "covariance": joint.located.covariance,
        }
    if len(results) > 1:
        tree["candidates"] = [_facts(result) for result in results]
    return tree | {"provenance": provenance}


def _facts(result: Relocalization) -> dict[str, Any]:
    ref_from_query = result.ref_from_query
    facts: dict[str, Any] = {"success": result.success, "scale": result.scale}
    if result.success and result.scale == "arbitrary":
        facts["scale_note"] = result.scale_from
    return (
        facts
        | {
            "query": _shot(result.query),
            "reference": _shot(result.reference),
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


def _shot(shot: CameraImage) -> dict[str, Any]:
    return {
        "image": str(shot.photo.path),
        "width": shot.photo.width,
        "height": shot.photo.height,
        "K": shot.K,
        "focal_source": shot.focal_source,
    }


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
    unit = "m" if metric else "(unknown lengths)"
    lines = [
        title,
        f"  rotation     {result.rotation_deg:.2f} degrees{axis}",
        f"  translation  ({_numbers(pose[:3, 3])}) {unit}: where the query's camera stands, seen from the reference's "
        "(x right, y down, z forward)",
        f"  distance     {result.distance:.3f} m" if metric else "  distance     unknown",
        f"  inliers      {result.inliers} of {result.matches} matches ({result.solver})",
        f"  confidence   {result.confidence:.2f} (0 to 1)",
        f"  scale        metric, from {result.scale_from}"
        if metric
        else f"  scale        arbitrary: {result.scale_from}",
    ]
    if result.rotated_deg:
        lines.append(f"  turned       matched after the query was turned clockwise by {result.rotated_deg} degrees")
    return "\n".join(lines)


def joint_in_words(joint: MultiReferencePose) -> str:
    """Two lines for people."""
    pose = joint.pose
    unit = " m" if pose.scale == "metric" else f" ({pose.scale_from})"
    spread = joint.located.position_std
    names = ", ".join(used.shot.name for used in joint.references)
    return (
        f"{pose.query.name} by {len(joint.references)} references together ({names}), seen from {pose.reference.name}\n"
        f"  at ({_numbers(pose.ref_from_query[:3, 3])}) +- {np.linalg.norm(spread):.2g}{unit}, rotation "
        f"{pose.rotation_deg:.2f} +- {joint.located.rotation_std_deg:.2g} degrees, {pose.inliers} of {pose.matches} "
        f"matches agree, confidence {pose.confidence:.2f}"
    )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value + 0.0:.3f}" for value in values)


# A photo's pose in a map as `dune.pose/1` JSON and in words.


def map_document(located: LocalizationResult, provenance: dict[str, Any]) -> dict[str, Any]:
    """The object of `dune.pose/1` with the map's world in the place of a reference's frame.

    `covariance` (6x6): of the rotation vector about the world's axes in radians, then of the position;
    `covariance_has_map_calibration`: whether it contains how sure the map's own cameras are.
    """
    pose, photo_map = located.world_from_query, located.map
    tree: dict[str, Any] = {"schema": SCHEMA, "success": located.success, "scale": photo_map.scale}
    if photo_map.scale_note is not None:
        tree["scale_note"] = photo_map.scale_note
    width, height = located.size or (None, None)
    return (
        tree
        | {
            "query": {
                "image": located.name,
                "width": width,
                "height": height,
                "K": located.K,
                "focal_source": located.focal_source,
            },
            "map": {"folder": str(photo_map.folder), "images": len(photo_map.images)},
            "world_from_query": None if pose is None else pose + 0.0,  # no -0.0
            "query_from_world": None if pose is None else poses.inverse(pose) + 0.0,
            "position": None if pose is None else pose[:3, 3] + 0.0,
            "rotation_std_deg": located.rotation_std_deg,
            "position_std": located.position_std,
            "covariance": located.covariance,
            "covariance_has_map_calibration": located.has_map_calibration,
            "matches": located.matches,
            "inliers": located.inliers,
            "fixed": located.static_matches,
            "turned_deg": located.rotated_deg,
            "confidence": round(located.confidence, 6),
            "reprojection_error_px": located.reprojection_error_px,
            "retrieved": [
                {
                    "image": seen.name,
                    "likeness": None if seen.similarity is None else round(seen.similarity, 6),
                    "matches": seen.matches,
                    "inliers": seen.inliers,
                }
                for seen in located.retrieved
            ],
            "solver": "pnp",
            "message": located.message,
            "provenance": provenance,
        }
    )


def map_pose_in_words(located: LocalizationResult) -> str:
    """One line for people."""
    if located.world_from_query is None or located.position_std is None:
        return f"{located.name}: no pose: {located.message}"
    unit = " m" if located.map.scale == "metric" else ""
    place = ", ".join(f"{value + 0.0:.3f}" for value in located.world_from_query[:3, 3])
    spread = float(np.linalg.norm(located.position_std))
    turned = f", turned by {located.rotated_deg} degrees" if located.rotated_deg else ""
    return (
        f"{located.name}: at ({place}){unit} +- {spread:.2g}, rotation +- {located.rotation_std_deg:.2g} degrees, "
        f"{located.inliers} of {located.matches} matches agree, confidence {located.confidence:.2f}{turned}"
    )
