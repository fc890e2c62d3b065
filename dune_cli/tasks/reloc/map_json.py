"""A photo's pose in a map as `dune.pose/1` JSON and in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from dune_cli.geometry import poses
from dune_cli.tasks.reloc.files import SCHEMA
from dune_cli.tasks.reloc.in_map import Located


def document(located: Located, provenance: dict[str, Any]) -> dict[str, Any]:
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
            "fixed": located.fixed,
            "turned_deg": located.turned_deg,
            "confidence": round(located.confidence, 6),
            "reprojection_error_px": located.reprojection_error_px,
            "retrieved": [
                {
                    "image": seen.name,
                    "likeness": None if seen.likeness is None else round(seen.likeness, 6),
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


def in_words(located: Located) -> str:
    """One line for people."""
    if located.world_from_query is None or located.position_std is None:
        return f"{located.name}: no pose: {located.message}"
    unit = " m" if located.map.scale == "metric" else ""
    place = ", ".join(f"{value + 0.0:.3f}" for value in located.world_from_query[:3, 3])
    spread = float(np.linalg.norm(located.position_std))
    turned = f", turned by {located.turned_deg} degrees" if located.turned_deg else ""
    return (
        f"{located.name}: at ({place}){unit} +- {spread:.2g}, rotation +- {located.rotation_std_deg:.2g} degrees, "
        f"{located.inliers} of {located.matches} matches agree, confidence {located.confidence:.2f}{turned}"
    )
