"""Structure from motion on a teacher's matches (pycolmap): poses of a scene's frames and which points they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli import optional
from dune_cli.io.atomic import scratch_folder
from dune_cli.training.matcher.teacher_matches import SceneMatches

FOCAL_GUESS = 1.1  # long sides
LEAST_FRAMES = 4


@dataclass(frozen=True)
class Mapped:
    """The frames of a scene that were placed. frames (R,) int; K (R, 3, 3) for pixels with centres at integers;
    cam_from_world (R, 4, 4); points: per frame (T,) int64, the 3-D point of each of its keypoints, -1 for none."""

    frames: np.ndarray
    K: np.ndarray
    cam_from_world: np.ndarray
    points: tuple[np.ndarray, ...]


def map_scene(found: SceneMatches, seed: int) -> Mapped | None:
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


def _read(model: object, found: SceneMatches) -> Mapped:
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
    return Mapped(np.array(frames), np.array(Ks), np.array(poses), tuple(points))
