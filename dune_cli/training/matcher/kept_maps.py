"""Maps of training scenes on disk, so that structure from motion runs once a scene and every start trains on the same.

A map lies beside the teacher's matches that it was made of, and is made anew when they or the seed change, or when its
file is damaged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.io.cache_files import note_damaged, read_cached, write_cached
from dune_cli.provenance import sha256_of
from dune_cli.training.matcher.mapping import LEAST_FRAMES, Mapped, map_scene
from dune_cli.training.matcher.teacher_matches import SceneMatches, file_of

SCHEMA = "dune.scene-map/1"
ENDING = ".map.safetensors"


def kept_map(found: SceneMatches, folder: Path, seed: int) -> Mapped | None:
    """`map_scene` of the matches that lie in `folder`, kept there as `<scene>.map.safetensors`.

    JobFailed if it cannot be written.
    """
    path = folder / f"{found.scene}{ENDING}"
    made_of = f"{sha256_of(file_of(folder, found.scene))} {seed}"
    kept = _read(path, made_of, found)
    if kept is not None:
        return kept if len(kept.frames) else None
    mapped = map_scene(found, seed)
    whole = mapped or Mapped(np.zeros(0, np.int64), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), ())
    arrays = {"frames": whole.frames, "K": whole.K, "poses": whole.cam_from_world}
    arrays["points"] = np.concatenate([np.zeros(0, np.int64), *whole.points])
    try:
        write_cached(path, SCHEMA, made_of, arrays)
    except OSError as error:
        raise JobFailed(f"cannot write {path} ({error.strerror or error}); make room and run it again") from error
    return mapped


def _read(path: Path, made_of: str, found: SceneMatches) -> Mapped | None:
    """A kept map, of no frame where none could be placed. None without a whole file that is of these matches."""
    arrays = read_cached(path, SCHEMA, made_of)
    if arrays is None:
        return None
    try:
        return _mapped_of(arrays, found)
    except (KeyError, ValueError) as error:
        note_damaged(path, error)
        return None


def _mapped_of(arrays: dict[str, np.ndarray], found: SceneMatches) -> Mapped:
    """ValueError or KeyError for arrays that are no map of these matches."""
    frames, K, poses, points = (arrays[name] for name in ("frames", "K", "poses", "points"))
    count = len(frames) if frames.ndim == 1 else -1
    kinds = [array.dtype for array in (frames, K, poses, points)]
    if kinds != [np.int64, np.float64, np.float64, np.int64] or points.ndim != 1:
        raise ValueError("arrays of another type")
    if count not in (0, *range(LEAST_FRAMES, len(found.names) + 1)) or (np.diff(frames) < 1).any():
        raise ValueError("its frames are not those of a scene")
    if ((frames < 0) | (frames >= len(found.names))).any():
        raise ValueError("frames that there are not")
    if K.shape != (count, 3, 3) or poses.shape != (count, 4, 4) or not np.isfinite(K).all():
        raise ValueError("cameras of another number")
    if (K[:, [0, 1], [0, 1]] <= 0).any() or not _are_rigid(poses):
        raise ValueError("cameras that cannot be")
    counts = [len(found.points[frame]) for frame in frames]
    if len(points) != sum(counts) or (points < -1).any():
        raise ValueError("points of other keypoints")
    return Mapped(frames, K, poses, tuple(np.split(points, np.cumsum(counts)[:-1])) if count else ())


def _are_rigid(poses: np.ndarray) -> bool:
    """Whether poses (N, 4, 4) are finite, turn and do not scale or mirror."""
    if not np.isfinite(poses).all() or not np.allclose(poses[:, 3], [0, 0, 0, 1]):
        return False
    turns = poses[:, :3, :3]
    if np.abs(turns).max(initial=0) > 2:
        return False
    return bool(
        np.allclose(turns @ np.swapaxes(turns, 1, 2), np.eye(3), atol=1e-6) and (np.linalg.det(turns) > 0).all()
    )
