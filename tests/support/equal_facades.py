"""A house whose front and back look alike, on ground that does not, and photos around it: keypoints and matches."""

from __future__ import annotations

import itertools

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import from_rotation_translation, inverse, transform_points, vector_angle
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.matching import Correspondences

SIZE, MIDDLE, FOCAL = (640, 480), (319.5, 239.5), 480.0
HALF, HEIGHT, RADIUS, EYE = 2.0, 3.0, 8.0, 1.7
A_SIDE, ON_GROUND = 150, 900  # points
MAX_TURN = np.radians(45)  # between two directions from which a point looks alike
NOISE_PX = 0.4
TURN = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]])


def world_from_cams(turns: np.ndarray) -> np.ndarray:
    """(V, 4, 4): on a circle about the house, looking at it."""
    poses = []
    for turn in turns:
        centre = np.array([RADIUS * np.cos(turn), RADIUS * np.sin(turn), EYE])
        z = np.array([0, 0, 1.2]) - centre
        x = np.cross(z, [0, 0, 1.0])
        axes = [axis / np.linalg.norm(axis) for axis in (x, np.cross(z, x), z)]
        poses.append(from_rotation_translation(np.stack(axes, axis=1), centre))
    return np.stack(poses)


def photographed(turns: np.ndarray, alike: bool, seed: int = 0) -> tuple[Correspondences, PhotoCameras]:
    """Photos at `turns` (V,) radians. `alike`: points of the front are matched with those of the back as well."""
    rng = np.random.default_rng(seed)
    camera = Camera("PINHOLE", (FOCAL, FOCAL, *MIDDLE), *SIZE)
    points, normals, looks = _points(alike, rng)
    poses, keypoints, seen = world_from_cams(turns), [], []
    for pose in poses:
        in_camera = transform_points(inverse(pose), points)
        pixels = camera.project(in_camera) + NOISE_PX * rng.standard_normal((len(points), 2))
        visible = ((pixels > 0) & (pixels < SIZE)).all(1) & (in_camera[:, 2] > 0)
        visible &= vector_angle(normals, pose[:3, 3] - points) < np.radians(75)
        visible &= ~_behind_house(points, pose[:3, 3]) & (rng.random(len(points)) < 0.9)
        seen.append(np.flatnonzero(visible))
        keypoints.append(pixels[visible])
    matches = {}
    for i, j in itertools.combinations(range(len(turns)), 2):
        _, first, second = np.intersect1d(looks[seen[i]], looks[seen[j]], return_indices=True)
        rays = []
        for photo, index in ((i, first), (j, second)):
            own = seen[photo][index]
            ray = poses[photo][:3, 3] - points[own]
            back = (points[own][:, 0] < -HALF + 0.31) & (normals[own][:, 0] < -0.5) & alike
            rays.append(np.where(back[:, None], ray * [-1, -1, 1], ray))
        alike_seen = (vector_angle(*rays) < MAX_TURN) & (rng.random(len(first)) < 0.8)
        wrong = np.stack([rng.integers(0, len(seen[photo]), 8) for photo in (i, j)], axis=1)
        matches[i, j] = np.concatenate([np.stack([first, second], 1)[alike_seen], wrong]).astype(np.uint32)
    colors = tuple(np.zeros((len(pixels), 3), np.uint8) for pixels in keypoints)
    own_camera = PhotoCamera(camera, "given")
    cameras = share_cameras([own_camera] * len(turns))
    return Correspondences(tuple(keypoints), colors, (1.0,) * len(turns), matches), cameras


def _points(alike: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (M, 3), normals (M, 3), and numbers (M,) that are equal where points look alike."""

    def side() -> np.ndarray:
        along, up, out = rng.uniform((-HALF, 0, 0), (HALF, HEIGHT, 0.3), (A_SIDE, 3)).T
        return np.stack([HALF + out, along, up], axis=1)

    sides = [side() for _ in range(4)]
    if alike:
        sides[2] = sides[0]
    ground = rng.uniform(-7, 7, (ON_GROUND, 3)) * [1, 1, 0]
    ground = ground[np.abs(ground).max(1) > HALF + 0.5]
    turned = [points @ np.linalg.matrix_power(TURN, n).T for n, points in enumerate(sides)]
    out = [np.tile(np.linalg.matrix_power(TURN, n)[:, 0], (A_SIDE, 1)) for n in range(4)]
    numbers = np.arange(4 * A_SIDE + len(ground))
    if alike:
        numbers[2 * A_SIDE : 3 * A_SIDE] = np.arange(A_SIDE)
    return np.concatenate([*turned, ground]), np.concatenate([*out, np.tile([0, 0, 1.0], (len(ground), 1))]), numbers


def _behind_house(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(M,) bool: the points that the house hides."""
    steps = np.linspace(0.05, 0.95, 40)[:, None, None]
    between = centre + steps * (points - centre)
    return ((np.abs(between[..., :2]) < HALF - 0.05).all(-1) & (between[..., 2] < HEIGHT)).any(0)
