"""`dune eval mapping`: `dune reconstruct` beside pycolmap's own pipeline on folders of photos, each run in a process of
its own: what they place, how exactly, and what it costs.

`python -m dune_cli.evaluation.mapping PHOTOS OUT THREADS` is pycolmap's process: SIFT, exhaustive matching and
incremental mapping with its default options; it writes the largest model into OUT.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import UserError
from dune_cli.evaluation.metrics import camera_errors, extent
from dune_cli.geometry.poses import inverse
from dune_cli.io.camera_checks import rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.safe_read import read_json
from dune_cli.sfm.verification import quiet_pycolmap

DUNE, CONTROL = "dune", "pycolmap"
TRUTH, POSE_KEYS = "cameras.json", ("T_cam_to_world", "world_from_cam")
MESSAGE_CHARACTERS = 300  # of what a failed process says


@dataclass(frozen=True)
class MappedSet:
    """A `method`'s result on a set of photos.

    `points`, `observations` and the mean `reprojection_error_px` of the largest model. `rotation_deg`, and
    `centre_share` of the extent of the true cameras: medians over the registered photos after a similarity fit; NaN
    without truth. `apart_deg`, `apart_share`: the same from the control's cameras. `seconds`, `processor_seconds` (user
    and system, all threads) and `memory_bytes` (largest resident size) of the process. `reason`: of a failed run.
    """

    set_name: str
    method: str
    photos: int
    registered: int
    points: int
    observations: int
    reprojection_error_px: float
    rotation_deg: float
    centre_share: float
    apart_deg: float
    apart_share: float
    seconds: float
    processor_seconds: float
    memory_bytes: int
    reason: str | None


@dataclass(frozen=True)
class PhotoFolder:
    """A set: its `photos`, and the true poses of those that have one, by file name."""

    folder: Path
    photos: tuple[Path, ...]
    truth: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.folder.name


def read_folder(folder: Path, photos: Sequence[Path]) -> PhotoFolder:
    """The set of these photos of a folder, with the poses of its cameras.json, in which a frame has `T_cam_to_world` or
    `world_from_cam` or neither. UserError where two photos have one name, for fewer than three photos, and for a
    damaged file."""
    if len(photos) < 3 or len({photo.name for photo in photos}) < len(photos):
        raise UserError(f"{folder} needs three photos or more with different names, to be mapped; it has {len(photos)}")
    return PhotoFolder(folder, tuple(photos), _true_poses(folder / TRUTH) if (folder / TRUTH).is_file() else {})


def _true_poses(file: Path) -> dict[str, np.ndarray]:
    """The poses of the frames that have one, by file name."""
    poses = {}
    for frame in Fields(read_json(file), str(file)).objects("frames"):
        given = [frame[key] for key in POSE_KEYS if frame.get(key) is not None]
        if given:
            poses[Path(frame.text("file")).name] = rigid_pose(given[0], frame.where)
    return poses


def map_folder(given: PhotoFolder, options: Sequence[str], threads: int, seed: int) -> Iterator[MappedSet]:
    """The rows of a set, the control's first. `options`: more words for `dune reconstruct`."""
    with scratch_folder(prefix="dune-mapping-") as scratch, only_processors(threads):
        photos = scratch / "photos"
        photos.mkdir()
        for photo in given.photos:
            (photos / photo.name).symlink_to(photo.absolute())
        model = scratch / CONTROL
        model.mkdir()
        words = ["-m", __name__, photos, model, threads, seed]
        control = _run(words, threads)
        yield _scored(given, CONTROL, model, control, {})
        own, work, scene = scratch / DUNE, scratch / "work", scratch / "scene.ply"
        words = ["-m", "dune_cli.cli", "reconstruct", photos, "-o", scene, "--work", work, "--colmap", own]
        words += ["--no-dense", "--quiet", "--seed", seed, *options]
        done = _run(words, threads)
        yield _scored(given, DUNE, own, done, _poses(model)[0])


@dataclass(frozen=True)
class _Process:
    seconds: float
    processor_seconds: float
    memory_bytes: int
    failure: str | None


def _run(words: Sequence[Any], threads: int) -> _Process:
    """A Python process of these arguments, to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stderr is not None
    with process.stderr as messages:
        said = messages.read().decode(errors="replace").strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    failure = None
    if process.returncode:
        failure = said[-MESSAGE_CHARACTERS:] or f"exit code {process.returncode}"
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - start
    return _Process(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, failure)


@contextmanager
def only_processors(count: int) -> Iterator[None]:
    """Processes that are started use `count` of the processors, where the system can tell them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _poses(model: Path) -> tuple[dict[str, np.ndarray], Any]:
    """`world_from_cam` by name of a COLMAP model's images, and the model; nothing where there is none."""
    pycolmap = quiet_pycolmap()
    if not any((model / f"images.{end}").is_file() for end in ("bin", "txt")):
        return {}, None
    reconstruction = pycolmap.Reconstruction(model)
    poses = {}
    for image_id in sorted(reconstruction.reg_image_ids()):
        image = reconstruction.image(image_id)
        poses[image.name] = inverse(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
    return poses, reconstruction


def _scored(
    given: PhotoFolder, method: str, model: Path, process: _Process, control: Mapping[str, np.ndarray]
) -> MappedSet:
    poses, reconstruction = _poses(model)
    points = observations = 0
    error = float("nan")
    if reconstruction is not None:
        reconstruction.update_point_3d_errors()
        points, observations = reconstruction.num_points3D(), reconstruction.compute_num_observations()
        error = reconstruction.compute_mean_reprojection_error()
    return MappedSet(
        given.name,
        method,
        len(given.photos),
        len(poses),
        points,
        observations,
        error,
        *_medians(given.truth, poses),
        *_medians(control, poses),
        process.seconds,
        process.processor_seconds,
        process.memory_bytes,
        process.failure,
    )


def _medians(reference: Mapping[str, np.ndarray], poses: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """The median rotation in degrees and distance, in extents of the reference, of cameras from it."""
    both = [name for name in poses if name in reference]
    if len(both) < 3:
        return float("nan"), float("nan")
    true, found = (np.stack([cameras[name] for name in both]) for cameras in (reference, poses))
    if not min(extent(true), extent(found)) > 0:
        return float("nan"), float("nan")
    errors = camera_errors(true, found)
    return float(np.median(errors.rotation_deg)), float(np.median(errors.centre)) / extent(true)


def run_control(photos: Path, output: Path, threads: int, seed: int) -> None:
    """pycolmap's pipeline on a folder of photos, which share a camera where they have one size."""
    from PIL import Image

    pycolmap = quiet_pycolmap()
    sizes = set()
    for path in photos.iterdir():
        with Image.open(path) as photo:
            sizes.add(photo.size)
    mode = pycolmap.CameraMode.SINGLE if len(sizes) == 1 else pycolmap.CameraMode.AUTO
    with scratch_folder(prefix="dune-pycolmap-") as scratch:
        database = scratch / "database.db"
        extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
        extraction.num_threads = matching.num_threads = threads
        extraction.use_gpu = matching.use_gpu = False
        pycolmap.set_random_seed(seed)
        pycolmap.extract_features(database, photos, camera_mode=mode, extraction_options=extraction)
        pycolmap.match_exhaustive(database, matching_options=matching)
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads = threads
        models = pycolmap.incremental_mapping(database, photos, scratch, options).values()
    if models:
        largest = max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()))
        largest.write_binary(output)


if __name__ == "__main__":
    run_control(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
