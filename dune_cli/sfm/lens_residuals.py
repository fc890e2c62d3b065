"""Whether a lens that was given fits its photos: the pattern that reprojection errors leave across the image."""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel

MIN_OBSERVATIONS = 300
LEAST_PATTERN = 0.5  # matched pixels, at the border of the image
LEAST_EXPLAINED = 0.05  # of the squared errors along the radius
LEAST_DEVIATIONS = 6.0


def lens_notes(model: SfmModel, correspondences: Correspondences, cameras: PhotoCameras) -> tuple[str, ...]:
    """A note for each known lens whose photos' errors grow along the radius, as those of another lens do."""
    notes = []
    for number, shared in enumerate(cameras.shared):
        photos = [index for index in model.world_from_cam if cameras.ids[index] == number]
        if not (shared.fixed and shared.lens_known) or not photos:
            continue
        border_px = radial_pattern_px(model, correspondences, cameras, photos)
        if abs(border_px) > LEAST_PATTERN * correspondences.pixel_size:
            name = "1 photo" if len(photos) == 1 else f"{len(photos)} photos"
            side = "outwards" if border_px > 0 else "inwards"
            notes.append(
                f"the lens {shared.camera.model} that was given does not fit {name}: at the border, points are seen "
                f"{abs(border_px):.1f} px further {side} than it says; check that it is of this camera, size and zoom, "
                "or leave it out to have it estimated"
            )
    return tuple(notes)


def radial_pattern_px(
    model: SfmModel, correspondences: Correspondences, cameras: PhotoCameras, photos: list[int]
) -> float:
    """How far outwards of where their camera projects them points are seen at 90 % of the largest radius, in pixels:
    the polynomial a r + b r³ fitted to the errors along the radius by iteratively reweighted least squares. 0 where it
    explains less than chance and LEAST_EXPLAINED of them."""
    radii, errors = [], []
    for index in photos:
        camera = cameras.of(index).camera
        points, keypoints = model.observations[index]
        seen = correspondences.keypoints[index][keypoints]
        points_cam = transform_points(inverse(model.world_from_cam[index]), model.points_world[points])
        offsets = seen - camera.K[:2, 2]
        radius = np.linalg.norm(offsets, axis=1)
        along = ((seen - camera.project(points_cam)) * offsets).sum(-1) / np.maximum(radius, 1e-9)
        radii.append(radius)
        errors.append(along)
    radius, error = np.concatenate(radii), np.concatenate(errors)
    known = np.isfinite(error)
    radius, error = radius[known], error[known]
    if len(radius) < MIN_OBSERVATIONS:
        return 0.0
    scale = float(np.quantile(radius, 0.98))
    terms = np.stack([radius / scale, (radius / scale) ** 3], axis=1)
    weight = np.ones(len(error))
    for _ in range(10):
        normal = (terms * weight[:, None]).T @ terms
        solution = np.linalg.solve(normal + 1e-9 * np.eye(2), (terms * weight[:, None]).T @ error)
        left = error - terms @ solution
        sigma = max(1.4826 * float(np.median(np.abs(left))), 1e-6)
        weight = 1 / (1 + (left / (2 * sigma)) ** 2)
    explained = 1 - float((weight * left**2).sum() / max((weight * error**2).sum(), 1e-300))
    at = np.array([0.9, 0.9**3])
    deviation = sigma * float(np.sqrt(at @ np.linalg.inv(normal) @ at))
    pattern = float(at @ solution)
    return pattern if explained > LEAST_EXPLAINED and abs(pattern) > LEAST_DEVIATIONS * deviation else 0.0
