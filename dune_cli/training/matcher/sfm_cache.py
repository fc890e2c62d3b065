"""Structure from motion of training scenes by pycolmap on a teacher's matches: the poses of a scene's frames, and which
points they share.

A map is cached beside the matches that it was made of. It is made again when they or the seed change, or when its file
is damaged, so that every start of a training uses the same map.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.io.cache import note_damaged, read_cached, write_cached
from dune_cli.io.outputs import scratch_folder
from dune_cli.provenance import sha256_of
from dune_cli.sfm.colmap_models import image_name, registered_images, write_images
from dune_cli.sfm.verification import quiet_pycolmap
from dune_cli.training.matcher.teacher_matches import SceneMatches, matches_file

DEFAULT_FOCAL = 1.1  # long sides
MIN_FRAMES = 4
SCHEMA = "dune.scene-map/1"
ENDING = ".map.safetensors"


@dataclass(frozen=True)
class MappedFrames:
    """The registered frames of a scene. frames (R,) int; K (R, 3, 3) for pixels with centres at integers;
    cam_from_world (R, 4, 4); points: per frame (T,) int64, the 3-D point of each of its keypoints, -1 for none."""

    frames: np.ndarray
    K: np.ndarray
    cam_from_world: np.ndarray
    points: tuple[np.ndarray, ...]


def map_scene(matches: SceneMatches, seed: int) -> MappedFrames | None:
    """The largest model of a scene; None where fewer than four frames can be registered (pure rotations, few matches).

    Frames of one size share a camera of unknown focal length, without distortion. All pairs are verified by COLMAP with
    its default options, which are also the mapper's: a teacher's matches have few outliers.
    """
    pycolmap = quiet_pycolmap()
    if len(matches.names) < MIN_FRAMES:
        return None
    with scratch_folder() as folder:
        path = folder / "database.db"
        with pycolmap.Database.open(path) as database:
            _write_matches(pycolmap, database, matches)
        pairs = "".join(f"{image_name(i)} {image_name(j)}\n" for i, j in matches.pairs)
        (folder / "pairs.txt").write_text(pairs, encoding="utf-8")
        pycolmap.set_random_seed(seed)
        pycolmap.verify_matches(path, folder / "pairs.txt")
        options = pycolmap.IncrementalPipelineOptions(num_threads=1, min_model_size=MIN_FRAMES, multiple_models=False)
        models = pycolmap.incremental_mapping(path, folder, folder / "models", options)
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if best is None or best.num_reg_images() < MIN_FRAMES:
        return None
    return _mapped_frames(best)


def _write_matches(pycolmap: Any, database: Any, matches: SceneMatches) -> None:
    sizes = [(width, height) for width, height in matches.sizes.tolist()]
    distinct = list(dict.fromkeys(sizes))
    cameras = []
    for width, height in distinct:
        params = [DEFAULT_FOCAL * max(width, height), width / 2, height / 2]
        cameras.append(pycolmap.Camera(model="SIMPLE_PINHOLE", width=width, height=height, params=params))
    write_images(database, cameras, [distinct.index(size) for size in sizes], matches.points)
    for (i, j), indices in zip(matches.pairs.tolist(), matches.matches):
        database.write_matches(i + 1, j + 1, indices.astype(np.uint32))


def _mapped_frames(model: Any) -> MappedFrames:
    frames, Ks, poses, points = [], [], [], []
    for frame, image, K, cam_from_world in registered_images(model):
        points.append(np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D], dtype=np.int64))
        frames.append(frame)
        Ks.append(K)
        poses.append(cam_from_world)
    return MappedFrames(np.array(frames), np.array(Ks), np.array(poses), tuple(points))


def cached_map(matches: SceneMatches, folder: Path, seed: int) -> MappedFrames | None:
    """`map_scene` of the matches that are in `folder`, cached there as `<scene>.map.safetensors`.

    JobFailed if it cannot be written.
    """
    path = folder / f"{matches.scene}{ENDING}"
    made_of = f"{sha256_of(matches_file(folder, matches.scene))} {seed}"
    cached = _read_cached(path, made_of, matches)
    if cached is not None:
        return cached if len(cached.frames) else None
    mapped = map_scene(matches, seed)
    stored = mapped or MappedFrames(np.zeros(0, np.int64), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), ())
    arrays = {"frames": stored.frames, "K": stored.K, "poses": stored.cam_from_world}
    arrays["points"] = np.concatenate([np.zeros(0, np.int64), *stored.points])
    try:
        write_cached(path, SCHEMA, made_of, arrays)
    except OSError as error:
        raise JobFailed(f"cannot write {path} ({error.strerror or error}); make room and run it again") from error
    return mapped


def _read_cached(path: Path, made_of: str, matches: SceneMatches) -> MappedFrames | None:
    """A cached map; it has no frames where the scene cannot be mapped. None without an intact file that was made of
    these matches."""
    arrays = read_cached(path, SCHEMA, made_of)
    if arrays is None:
        return None
    try:
        return _checked_map(arrays, matches)
    except (KeyError, ValueError) as error:
        note_damaged(path, error)
        return None


def _checked_map(arrays: dict[str, np.ndarray], matches: SceneMatches) -> MappedFrames:
    """ValueError or KeyError for arrays that are no map of these matches."""
    frames, K, poses, points = (arrays[name] for name in ("frames", "K", "poses", "points"))
    count = len(frames) if frames.ndim == 1 else -1
    dtypes = [array.dtype for array in (frames, K, poses, points)]
    if dtypes != [np.int64, np.float64, np.float64, np.int64] or points.ndim != 1:
        raise ValueError("arrays of another type")
    if count not in (0, *range(MIN_FRAMES, len(matches.names) + 1)) or (np.diff(frames) < 1).any():
        raise ValueError("its frames are not those of a scene")
    if ((frames < 0) | (frames >= len(matches.names))).any():
        raise ValueError("frames that do not exist")
    if K.shape != (count, 3, 3) or poses.shape != (count, 4, 4) or not np.isfinite(K).all():
        raise ValueError("cameras of another number")
    if (K[:, [0, 1], [0, 1]] <= 0).any() or not _are_rigid(poses):
        raise ValueError("cameras that are not possible")
    counts = [len(matches.points[frame]) for frame in frames]
    if len(points) != sum(counts) or (points < -1).any():
        raise ValueError("points of other keypoints")
    return MappedFrames(frames, K, poses, tuple(np.split(points, np.cumsum(counts)[:-1])) if count else ())


def _are_rigid(poses: np.ndarray) -> bool:
    """Whether poses (N, 4, 4) are finite rotations and translations, without scale or reflection."""
    if not np.isfinite(poses).all() or not np.allclose(poses[:, 3], [0, 0, 0, 1]):
        return False
    rotations = poses[:, :3, :3]
    if np.abs(rotations).max(initial=0) > 2:
        return False
    orthogonal = np.allclose(rotations @ np.swapaxes(rotations, 1, 2), np.eye(3), atol=1e-6)
    return bool(orthogonal and (np.linalg.det(rotations) > 0).all())
