"""Metres by square markers of known size (ArUco, AprilTag): found by OpenCV, corners triangulated in the scene.

A marker counts if two placed photos or more see it, its corners agree with them and make a square. Markers of other
sizes than most are left out and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import JobFailed
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.photos import read_photo
from dune_cli.sfm.marker_corners import refine_corners
from dune_cli.sfm.scene import ScaleEstimate, Scene, View

# one of each family with most markers: the smaller ones have the same pictures for their numbers
DICTIONARIES = {
    "apriltag-36h11": "DICT_APRILTAG_36h11",
    "apriltag-25h9": "DICT_APRILTAG_25h9",
    "apriltag-16h5": "DICT_APRILTAG_16h5",
    "aruco-original": "DICT_ARUCO_ORIGINAL",
    "4x4": "DICT_4X4_1000",
    "5x5": "DICT_5X5_1000",
    "6x6": "DICT_6X6_1000",
    "7x7": "DICT_7X7_1000",
}
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0))
DIAGONALS = ((0, 2), (1, 3))
MAX_ERROR_SHARE = 0.05  # of a marker's edge in a photo, that its corners may be off
MIN_ERROR_PX = 2.0
MAX_SKEW = 0.1  # of lengths of edges, and of diagonals from the square's
MIN_ANGLE_DEG = 2.0  # between the rays to a marker
OTHER_SIZE = 0.05  # share, and as many standard deviations as AGREE: such markers are of another size
AGREE = 4.0
MAX_SD = 0.1
NAMED = 3


@dataclass(frozen=True)
class FoundMarker:
    """A marker of a dictionary in the scene: `corners_world` (4, 3) in order, mean edge `length` in the scene's unit,
    `sd` of it as a share, from the differences of its edges, and the number of `photos`."""

    dictionary: str
    number: int
    corners_world: np.ndarray
    length: float
    sd: float
    photos: int

    @property
    def name(self) -> str:
        return f"{self.dictionary} {self.number}"


def scale_by_markers(scene: Scene, photos: Sequence[Path], size_m: float, dictionary: str | None) -> ScaleEstimate:
    """Metres by the edges of markers, `size_m` long; of one `dictionary`, or of all. JobFailed where no marker counts,
    or those that do differ too much."""
    names = list(DICTIONARIES) if dictionary is None else [dictionary]
    seen: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    registered = console.progress(scene.registered, "markers", len(scene.registered), "photo")
    for index in registered:
        rgb = read_photo(photos[index]).rgb
        for name in names:
            for number, corners in detect_markers(rgb, name).items():
                seen.setdefault((name, number), {})[index] = corners
    markers = []
    for (name, number), corners in sorted(seen.items()):
        marker = locate_marker(
            name, number, {scene.views[index].image: (scene.views[index], c) for index, c in corners.items()}
        )
        if marker is not None:
            markers.append(marker)
    if not markers:
        twice = sum(len(photos_of) > 1 for photos_of in seen.values())
        raise JobFailed(
            f"no marker of {', '.join(names)} tells the scale: {len(seen)} were found, {twice} in two placed photos or "
            "more; take photos in which a flat, square marker is seen sharp and from several places"
        )
    return scale_from_lengths(markers, size_m)


def detect_markers(rgb: np.ndarray, dictionary: str) -> dict[int, np.ndarray]:
    """The corners (4, 2) in pixels of each marker number that a photo (H, W, 3) shows once."""
    cv2 = optional.require("cv2", "--scale-from marker")
    aruco: Any = cv2.aruco
    parameters = aruco.DetectorParameters()
    parameters.cornerRefinementMethod = aruco.CORNER_REFINE_SUBPIX
    detector = aruco.ArucoDetector(aruco.getPredefinedDictionary(getattr(aruco, DICTIONARIES[dictionary])), parameters)
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    corners, numbers, _ = detector.detectMarkers(gray)
    found: dict[int, np.ndarray] = {}
    twice = set()
    for number, four in zip([] if numbers is None else numbers.ravel().tolist(), corners):
        if number in found:
            twice.add(number)
        found[number] = refine_corners(gray, np.asarray(four, np.float64).reshape(4, 2))
    return {number: four for number, four in found.items() if number not in twice}


def locate_marker(dictionary: str, number: int, seen: Mapping[str, tuple[View, np.ndarray]]) -> FoundMarker | None:
    """The marker that views see at corners (4, 2); None where these do not agree on a square. Views that see it
    elsewhere than most are left out."""
    views = [view for view, _ in seen.values()]
    pixels = [corners for _, corners in seen.values()]
    if len(views) < 2:
        return None
    used = np.arange(len(views))
    while len(used) >= 2:
        corners = _triangulated([views[i] for i in used], [pixels[i] for i in used])
        if corners is None:
            return None
        errors, limits = [], []
        for index in used:
            cam_from_world = inverse(views[index].world_from_cam)
            found = views[index].camera.project(transform_points(cam_from_world, corners))
            errors.append(float(np.abs(found - pixels[index]).max()) if np.isfinite(found).all() else np.inf)
            edge_px = float(np.mean([np.linalg.norm(pixels[index][a] - pixels[index][b]) for a, b in EDGES]))
            limits.append(max(MIN_ERROR_PX, MAX_ERROR_SHARE * edge_px))
        share = np.array(errors) / np.array(limits)
        if (share <= 1).all():
            return _square(dictionary, number, corners, len(used))
        used = np.delete(used, share.argmax())
    return None


def _triangulated(views: Sequence[View], pixels: Sequence[np.ndarray]) -> np.ndarray | None:
    """(4, 3) the points nearest to the rays of the corners; None for rays that are nearly parallel."""
    centres = np.stack([view.world_from_cam[:3, 3] for view in views])
    rays = np.stack(
        [view.camera.unproject(corners) @ view.world_from_cam[:3, :3].T for view, corners in zip(views, pixels)]
    )
    if not np.isfinite(rays).all():
        return None
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)  # (V, 4, 3)
    middle = rays.mean(axis=1)
    cosines = (middle @ middle.T) / np.outer(*[np.linalg.norm(middle, axis=1)] * 2)
    if cosines.min() > np.cos(np.radians(MIN_ANGLE_DEG)):
        return None
    across = np.eye(3) - rays[..., :, None] * rays[..., None, :]  # (V, 4, 3, 3): projections across the rays
    weights = np.ones((len(views), 4))
    points = np.zeros((4, 3))
    for _ in range(3):  # again with the pixels' lengths at the distances
        normal = np.einsum("vc,vcij->cij", weights, across)
        points = np.linalg.solve(normal, np.einsum("vc,vcij,vj->ci", weights, across, centres)[..., None])[..., 0]
        weights = 1 / np.maximum(((points - centres[:, None]) ** 2).sum(-1), 1e-300)
    return points


def _square(dictionary: str, number: int, corners: np.ndarray, photos: int) -> FoundMarker | None:
    edges = np.array([np.linalg.norm(corners[a] - corners[b]) for a, b in EDGES])
    diagonals = np.array([np.linalg.norm(corners[a] - corners[b]) for a, b in DIAGONALS]) / np.sqrt(2)
    length = float(edges.mean())
    lengths = np.concatenate([edges, diagonals])
    if not length > 0 or np.abs(lengths / length - 1).max() > MAX_SKEW:
        return None
    return FoundMarker(dictionary, number, corners, length, float(edges.std(ddof=1) / 2 / length), photos)


def scale_from_lengths(markers: Sequence[FoundMarker], size_m: float) -> ScaleEstimate:
    """The unit in metres of the scene by markers whose edges are `size_m` long: the median, and the mean of those near
    it. JobFailed where the markers differ too much."""
    lengths = np.array([marker.length for marker in markers])
    sds = np.array([marker.sd for marker in markers])
    typical = float(np.median(lengths))
    off = np.abs(lengths / typical - 1)
    agrees = off <= np.maximum(OTHER_SIZE, AGREE * sds)
    if agrees.sum() * 2 <= len(markers) and len(markers) > 1:
        spread = f"{lengths.min() / typical:.2f} to {lengths.max() / typical:.2f} times their median"
        raise JobFailed(
            f"the {len(markers)} markers that were found are not of one size: their edges are {spread}; name one kind "
            "with --marker-dictionary, or take the others away"
        )
    used = [marker for marker, one in zip(markers, agrees) if one]
    length = float(lengths[agrees].mean())
    between = float(lengths[agrees].std(ddof=1) / length) if agrees.sum() > 1 else 0.0
    sd = max(between, float(sds[agrees].mean())) / np.sqrt(agrees.sum())
    if sd > MAX_SD:
        raise JobFailed(
            f"the edges of the {len(used)} markers differ by {sd:.0%}, and {MAX_SD:.0%} are allowed; take sharper "
            "photos of them, from nearer and from several sides"
        )
    others = [marker.name for marker, one in zip(markers, agrees) if not one]
    named = ", ".join(marker.name for marker in used[:NAMED]) + (", ..." if len(used) > NAMED else "")
    notes = [f"{len(used)} markers ({named}) with edges of {size_m:g} m tell the scale to {sd:.2%}"]
    if others:
        notes.append(f"markers of another size, which were not used: {', '.join(others)}")
    details = {
        "marker_size_m": size_m,
        "markers": [
            {
                "dictionary": marker.dictionary,
                "id": marker.number,
                "photos": marker.photos,
                "edge_m": marker.length * size_m / length,
                "used": bool(one),
            }
            for marker, one in zip(markers, agrees)
        ],
    }
    return ScaleEstimate("marker", size_m / length, float(sd), details, tuple(notes))
