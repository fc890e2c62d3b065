"""Pairs of frames of real scenes with a teacher's correspondences, verified by known poses, structure from motion or
MAGSAC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.geometry.epipolar import fundamental_from_pose, magsac_params
from dune_cli.io.camera_checks import pinhole_matrix, rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import read_json
from dune_cli.training.matcher.loss import epipolar_distance
from dune_cli.training.matcher.scenes import TrainingScene, refuse_benchmark
from dune_cli.training.matcher.sfm_cache import MappedFrames, cached_map
from dune_cli.training.matcher.teacher_matches import SceneMatches, labelled_scenes, read_matches

MIN_CORRESPONDENCES = 20  # of a pair
THRESHOLD_PX = 1.5  # of MAGSAC, in the photos' pixels
MIN_BASELINE = 1e-6  # of the largest one in a scene: nearer cameras determine no epipolar geometry
PLANAR_SHARE = 0.7  # of the inliers, that fit a homography: then the epipolar geometry is not determined


@dataclass(frozen=True)
class RealPair:
    """Two photos of a scene. points0, points1 (M, 2): correspondences in their pixels. F (3, 3): p1' F p0 = 0, or None
    where it is not determined (a plane, a pure rotation). K0, K1, cam1_from_cam0: None without known poses.
    view_angle_deg: between the optical axes; 0 where unknown. held_out: for validation."""

    scene: str
    photos: tuple[Path, Path]
    points0: np.ndarray
    points1: np.ndarray
    F: np.ndarray | None
    K0: np.ndarray | None
    K1: np.ndarray | None
    cam1_from_cam0: np.ndarray | None
    view_angle_deg: float
    held_out: bool


def real_pairs(scenes: Iterable[TrainingScene], folder: Path, seed: int) -> list[RealPair]:
    """The pairs of those scenes that have matches in `folder`. UserError if a benchmark's scene is among them."""
    refuse_benchmark(labelled_scenes(folder))
    pairs: list[RealPair] = []
    for scene in scenes:
        matches = read_matches(folder, scene)
        if matches is not None:
            mapped = known_cameras(scene, matches) or cached_map(matches, folder, seed)
            pairs += _unposed_pairs(scene, matches, seed) if mapped is None else _posed_pairs(scene, matches, mapped)
    return pairs


def known_cameras(scene: TrainingScene, matches: SceneMatches) -> MappedFrames | None:
    """The cameras in `cameras.json` beside the photos, without points; None where it has none."""
    path = scene.photos[0].parent / "cameras.json"
    if not path.is_file():
        return None
    content = Fields(read_json(path, "the cameras of a scene"), str(path))
    frame_of = {frame.text("file"): frame for frame in content.objects("frames")}
    if any(name not in frame_of or frame_of[name].get("world_from_cam") is None for name in matches.names):
        return None
    frames = [frame_of[name] for name in matches.names]
    sizes = matches.sizes.tolist()
    K = [pinhole_matrix(frame.get("K"), f"{frame.where}: K", *size) for frame, size in zip(frames, sizes)]
    poses = [rigid_pose(frame["world_from_cam"], f"{frame.where}: world_from_cam") for frame in frames]
    return MappedFrames(np.arange(len(frames)), np.array(K), np.linalg.inv(poses), ())


def _posed_pairs(scene: TrainingScene, matches: SceneMatches, mapped: MappedFrames) -> list[RealPair]:
    """Pairs of frames with poses: the points that both observe, or the teacher's matches that fit the poses."""
    teacher = {(int(i), int(j)): indices for (i, j), indices in zip(matches.pairs, matches.matches)}
    centres = np.linalg.inv(mapped.cam_from_world)[:, :3, 3]
    baselines = np.linalg.norm(centres[:, None] - centres, axis=2)
    pairs = []
    for a in range(len(mapped.frames)):
        for b in range(a + 1, len(mapped.frames)):
            if not baselines[a, b] > MIN_BASELINE * baselines.max():
                continue
            i, j = int(mapped.frames[a]), int(mapped.frames[b])
            pose = mapped.cam_from_world[b] @ np.linalg.inv(mapped.cam_from_world[a])
            F = fundamental_from_pose(pose, mapped.K[a], mapped.K[b])
            F /= np.linalg.norm(F)
            if mapped.points:
                index = _common_points(mapped.points[a], mapped.points[b])
            else:
                index = teacher.get((i, j), np.zeros((0, 2), np.int64))
            points0, points1 = matches.points[i][index[:, 0]], matches.points[j][index[:, 1]]
            if not mapped.points:
                distance = np.maximum(epipolar_distance(points0, points1, F), epipolar_distance(points1, points0, F.T))
                points0, points1 = points0[distance < THRESHOLD_PX], points1[distance < THRESHOLD_PX]
            if len(points0) >= MIN_CORRESPONDENCES:
                angle_deg = float(np.degrees(np.arccos(np.clip(pose[2, 2], -1, 1))))
                cameras = (mapped.K[a], mapped.K[b], pose)
                pairs.append(_pair(scene, matches, (i, j), (points0, points1), F, cameras, angle_deg))
    return pairs


def _unposed_pairs(scene: TrainingScene, matches: SceneMatches, seed: int) -> list[RealPair]:
    """Pairs of a scene that cannot be mapped: the teacher's matches that fit a fundamental matrix."""
    import cv2

    pairs = []
    for (i, j), indices in zip(matches.pairs, matches.matches):
        points0, points1 = matches.points[i][indices[:, 0]], matches.points[j][indices[:, 1]]
        if len(points0) < MIN_CORRESPONDENCES:
            continue
        params = magsac_params(THRESHOLD_PX, 5000, seed)
        params.loMethod = cv2.LOCAL_OPTIM_INNER_LO
        F, inliers = cv2.findFundamentalMat(points0, points1, params)
        if F is None or F.shape != (3, 3) or inliers is None:
            continue
        keep = inliers[:, 0].astype(bool)
        if keep.sum() < MIN_CORRESPONDENCES:
            continue
        _, planar = cv2.findHomography(points0[keep], points1[keep], cv2.USAC_MAGSAC, 2 * THRESHOLD_PX)
        determined = planar is not None and planar.mean() < PLANAR_SHARE
        F = F / np.linalg.norm(F) if determined else None
        pairs.append(_pair(scene, matches, (int(i), int(j)), (points0[keep], points1[keep]), F))
    return pairs


def _pair(
    scene: TrainingScene,
    matches: SceneMatches,
    frames: tuple[int, int],
    points: tuple[np.ndarray, np.ndarray],
    F: np.ndarray | None,
    cameras: tuple[np.ndarray | None, ...] = (None, None, None),
    view_angle_deg: float = 0.0,
) -> RealPair:
    """`cameras`: K0, K1, cam1_from_cam0."""
    photos = {path.name: path for path in scene.photos}
    paths = tuple(photos[matches.names[frame]] for frame in frames)
    points0, points1 = (one.astype(np.float64) for one in points)
    return RealPair(scene.name, paths, points0, points1, F, *cameras, view_angle_deg, scene.held_out)


def _common_points(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Indices (M, 2) into both lists of the 3-D points that are in both; -1 is none."""
    common, index0, index1 = np.intersect1d(points0, points1, return_indices=True)
    return np.stack([index0, index1], axis=1)[common >= 0]
