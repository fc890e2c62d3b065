"""Pairs of frames of real scenes with a teacher's correspondences, checked by structure from motion or by MAGSAC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.io.intrinsics import pinhole_matrix, rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import read_json
from dune_cli.training.matcher.loss import fundamental
from dune_cli.training.matcher.scenes import TrainingScene, refuse_benchmark
from dune_cli.training.matcher.sfm_cache import MappedSequence, cached_map
from dune_cli.training.matcher.teacher_matches import SceneMatches, labelled_scenes, read_matches

LEAST = 20  # correspondences of a pair
THRESHOLD_PX = 1.5  # of MAGSAC, in the photos' pixels
SAME_PLACE = 1e-6  # of the largest distance in a scene: cameras nearer than this fix no epipolar geometry


@dataclass(frozen=True)
class RealPair:
    """Two photos of a scene. points0, points1 (M, 2): correspondences in their pixels. F (3, 3): p1' F p0 = 0, or None
    where it is not fixed (a plane, a pure rotation). K0, K1, cam1_from_cam0: None without structure from motion.
    turn_deg: angle between the viewing directions; 0 where unknown. held_out: for validation."""

    scene: str
    photos: tuple[Path, Path]
    points0: np.ndarray
    points1: np.ndarray
    F: np.ndarray | None
    K0: np.ndarray | None
    K1: np.ndarray | None
    cam1_from_cam0: np.ndarray | None
    turn_deg: float
    held_out: bool


def real_pairs(scenes: Iterable[TrainingScene], folder: Path, seed: int) -> list[RealPair]:
    """The pairs of those scenes whose matches lie in `folder`. UserError if a benchmark's scene is among them."""
    refuse_benchmark(labelled_scenes(folder))
    pairs: list[RealPair] = []
    for scene in scenes:
        found = read_matches(folder, scene)
        if found is not None:
            mapped = posed(scene, found) or cached_map(found, folder, seed)
            pairs += _mapped_pairs(scene, found, mapped) if mapped is not None else _loose_pairs(scene, found, seed)
    return pairs


def posed(scene: TrainingScene, found: SceneMatches) -> MappedSequence | None:
    """The poses that `cameras.json` beside the photos tells; None where it has none. Points are the matches' tracks."""
    path = scene.photos[0].parent / "cameras.json"
    if not path.is_file():
        return None
    content = Fields(read_json(path, "the cameras of a scene"), str(path))
    frames = {frame.text("file"): frame for frame in content.objects("frames")}
    if any(name not in frames or frames[name].get("world_from_cam") is None for name in found.names):
        return None
    known = [frames[name] for name in found.names]
    sizes = found.sizes.tolist()
    K = [pinhole_matrix(frame.get("K"), f"{frame.where}: K", *size) for frame, size in zip(known, sizes)]
    poses = [rigid_pose(frame["world_from_cam"], f"{frame.where}: world_from_cam") for frame in known]
    return MappedSequence(np.arange(len(known)), np.array(K), np.linalg.inv(poses), ())


def _mapped_pairs(scene: TrainingScene, found: SceneMatches, mapped: MappedSequence) -> list[RealPair]:
    direct = {(int(i), int(j)): matches for (i, j), matches in zip(found.pairs, found.matches)}
    centres = np.linalg.inv(mapped.cam_from_world)[:, :3, 3]
    distances = np.linalg.norm(centres[:, None] - centres, axis=2)
    pairs = []
    for a in range(len(mapped.frames)):
        for b in range(a + 1, len(mapped.frames)):
            if not distances[a, b] > SAME_PLACE * distances.max():
                continue
            i, j = int(mapped.frames[a]), int(mapped.frames[b])
            pose = mapped.cam_from_world[b] @ np.linalg.inv(mapped.cam_from_world[a])
            F = fundamental(mapped.K[a], mapped.K[b], pose)
            if mapped.points:
                index = _shared(mapped.points[a], mapped.points[b])
            else:
                index = direct.get((i, j), np.zeros((0, 2), np.int64))
            points0, points1 = found.points[i][index[:, 0]], found.points[j][index[:, 1]]
            if not mapped.points:
                good = _distance(points0, points1, F) < THRESHOLD_PX
                points0, points1 = points0[good], points1[good]
            if len(points0) >= LEAST:
                turn = np.degrees(np.arccos(np.clip(pose[2, 2], -1, 1)))
                known = (F, mapped.K[a], mapped.K[b], pose, float(turn))
                pairs.append(_pair(scene, found, i, j, points0, points1, *known))
    return pairs


def _loose_pairs(scene: TrainingScene, found: SceneMatches, seed: int) -> list[RealPair]:
    import cv2

    pairs = []
    for (i, j), matches in zip(found.pairs, found.matches):
        points0, points1 = found.points[i][matches[:, 0]], found.points[j][matches[:, 1]]
        if len(points0) < LEAST:
            continue
        params = cv2.UsacParams()
        params.threshold, params.confidence, params.maxIterations = THRESHOLD_PX, 0.9999, 5000
        params.randomGeneratorState, params.score = seed, cv2.SCORE_METHOD_MAGSAC
        F, inliers = cv2.findFundamentalMat(points0, points1, params)
        if F is None or F.shape != (3, 3) or inliers is None:
            continue
        good = inliers[:, 0].astype(bool)
        if good.sum() < LEAST:
            continue
        _, flat = cv2.findHomography(points0[good], points1[good], cv2.USAC_MAGSAC, 2 * THRESHOLD_PX)
        fixed = flat is not None and flat.mean() < 0.7
        known = (F / np.linalg.norm(F) if fixed else None, None, None, None, 0.0)
        pairs.append(_pair(scene, found, int(i), int(j), points0[good], points1[good], *known))
    return pairs


def _pair(
    scene: TrainingScene,
    found: SceneMatches,
    i: int,
    j: int,
    points0: np.ndarray,
    points1: np.ndarray,
    F: np.ndarray | None,
    K0: np.ndarray | None,
    K1: np.ndarray | None,
    pose: np.ndarray | None,
    turn_deg: float,
) -> RealPair:
    photos = {path.name: path for path in scene.photos}
    paths = photos[found.names[i]], photos[found.names[j]]
    points = points0.astype(np.float64), points1.astype(np.float64)
    return RealPair(scene.name, paths, *points, F, K0, K1, pose, turn_deg, scene.held_out)


def _shared(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Places (M, 2) in both lists of the 3-D points that both have; -1 is none."""
    common, index0, index1 = np.intersect1d(points0, points1, return_indices=True)
    return np.stack([index0, index1], axis=1)[common >= 0]


def _distance(points0: np.ndarray, points1: np.ndarray, F: np.ndarray) -> np.ndarray:
    from dune_cli.training.matcher.loss import epipolar_distance

    return np.maximum(epipolar_distance(points0, points1, F), epipolar_distance(points1, points0, F.T))
