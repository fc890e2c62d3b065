"""Structure from motion on a teacher's matches (pycolmap): poses of a scene's frames and which points they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli import optional
from dune_cli.errors import JobFailed
from dune_cli.io.cache import note_damaged, read_cached, write_cached
from dune_cli.io.outputs import scratch_folder
from dune_cli.provenance import sha256_of
from dune_cli.training.matcher.teacher_matches import SceneMatches, file_of

FOCAL_GUESS = 1.1  # long sides
LEAST_FRAMES = 4


@dataclass(frozen=True)
class MappedSequence:
    """The frames of a scene that were placed. frames (R,) int; K (R, 3, 3) for pixels with centres at integers;
    cam_from_world (R, 4, 4); points: per frame (T,) int64, the 3-D point of each of its keypoints, -1 for none."""

    frames: np.ndarray
    K: np.ndarray
    cam_from_world: np.ndarray
    points: tuple[np.ndarray, ...]


def map_scene(found: SceneMatches, seed: int) -> MappedSequence | None:
    """The largest model of a scene; None where fewer than four frames can be placed (pure rotations, too little).

    Frames of one size share a camera of unknown focal length, without distortion.
    """
    pycolmap = optional.import_pycolmap("structure from motion of training scenes")
    if len(found.names) < LEAST_FRAMES:
        return None
    with scratch_folder() as folder:
        _fill_database(pycolmap, folder / "database.db", found)
        (folder / "pairs.txt").write_text("".join(f"{i:04d} {j:04d}\n" for i, j in found.pairs), encoding="utf-8")
        pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value  # it tells of every image
        pycolmap.set_random_seed(seed)
        pycolmap.verify_matches(folder / "database.db", folder / "pairs.txt")
        options = pycolmap.IncrementalPipelineOptions(num_threads=1, min_model_size=LEAST_FRAMES, multiple_models=False)
        models = pycolmap.incremental_mapping(folder / "database.db", folder, folder / "models", options)
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if best is None or best.num_reg_images() < LEAST_FRAMES:
        return None
    return _read(best, found)


def _fill_database(pycolmap: object, path: Path, found: SceneMatches) -> None:
    database = pycolmap.Database.open(path)
    cameras: dict[tuple[int, int], int] = {}
    images = []
    for index, (size, points) in enumerate(zip(found.sizes.tolist(), found.points)):
        width, height = size
        if (width, height) not in cameras:
            params = [FOCAL_GUESS * max(size), width / 2, height / 2]
            camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=width, height=height, params=params)
            cameras[width, height] = database.write_camera(camera)
        image = pycolmap.Image(name=f"{index:04d}", camera_id=cameras[width, height])
        images.append(database.write_image(image))
        database.write_keypoints(images[-1], points.astype(np.float32) + 0.5)
    for (i, j), matches in zip(found.pairs, found.matches):
        database.write_matches(images[i], images[j], matches.astype(np.uint32))
    database.close()


def _read(model: object, found: SceneMatches) -> MappedSequence:
    frames, Ks, poses, points = [], [], [], []
    for image_id in sorted(model.reg_image_ids(), key=lambda i: model.image(i).name):
        image = model.image(image_id)
        index = int(image.name)
        K = np.array(model.camera(image.camera_id).calibration_matrix())
        K[:2, 2] -= 0.5
        seen = np.full(len(found.points[index]), -1, dtype=np.int64)
        for place, point in enumerate(image.points2D):
            if point.has_point3D():
                seen[place] = point.point3D_id
        frames.append(index)
        Ks.append(K)
        poses.append(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
        points.append(seen)
    return MappedSequence(np.array(frames), np.array(Ks), np.array(poses), tuple(points))


# Maps of training scenes on disk, so that structure from motion runs once a scene and every start trains on the same.
#
# A map lies beside the teacher's matches that it was made of, and is made anew when they or the seed change,
# or when its
# file is damaged.


SCHEMA = "dune.scene-map/1"
ENDING = ".map.safetensors"


def cached_map(found: SceneMatches, folder: Path, seed: int) -> MappedSequence | None:
    """`map_scene` of the matches that lie in `folder`, kept there as `<scene>.map.safetensors`.

    JobFailed if it cannot be written.
    """
    path = folder / f"{found.scene}{ENDING}"
    made_of = f"{sha256_of(file_of(folder, found.scene))} {seed}"
    kept = _read_kept_maps(path, made_of, found)
    if kept is not None:
        return kept if len(kept.frames) else None
    mapped = map_scene(found, seed)
    whole = mapped or MappedSequence(np.zeros(0, np.int64), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), ())
    arrays = {"frames": whole.frames, "K": whole.K, "poses": whole.cam_from_world}
    arrays["points"] = np.concatenate([np.zeros(0, np.int64), *whole.points])
    try:
        write_cached(path, SCHEMA, made_of, arrays)
    except OSError as error:
        raise JobFailed(f"cannot write {path} ({error.strerror or error}); make room and run it again") from error
    return mapped


def _read_kept_maps(path: Path, made_of: str, found: SceneMatches) -> MappedSequence | None:
    """A kept map, of no frame where none could be placed. None without a whole file that is of these matches."""
    arrays = read_cached(path, SCHEMA, made_of)
    if arrays is None:
        return None
    try:
        return _mapped_of(arrays, found)
    except (KeyError, ValueError) as error:
        note_damaged(path, error)
        return None


def _mapped_of(arrays: dict[str, np.ndarray], found: SceneMatches) -> MappedSequence:
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
    return MappedSequence(frames, K, poses, tuple(np.split(points, np.cumsum(counts)[:-1])) if count else ())


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
