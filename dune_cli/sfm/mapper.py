"""Structure from motion by pycolmap: verified matches through its database, incremental or global mapping.

Pixels here have their centres at integers; COLMAP's half pixel is added on the way in and taken off on the way out.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console, runtime
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.poses import add_world_offset, from_rotation_translation, inverse, subtract_world_offset
from dune_cli.io.outputs import scratch_folder
from dune_cli.sfm.calibration import calibrate, implausible_cameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.verification import MIN_INLIERS, SharedCamera, VerifiedPairs, colmap_camera, quiet_pycolmap

STARTS = ((16.0, 0.95), (4.0, 0.95), (8.0, 1.0))  # of the first pair: least angle in degrees, most forward motion
GOOD_SHARE, GOOD_ERROR = 0.95, 0.6  # of the photos, of a matched pixel: then no other start is tried
TWO_VIEW_TRACKS_UP_TO = 50  # photos: few photos need the points that only two of them see
CALIBRATION_ROUNDS = 3
SETTLED = 0.01  # of the logarithm of a focal length: then the points were chosen with the one that came out
ONE_THREAD_UP_TO = 200  # photos: above, several threads make results differ in their last digits


@dataclass(frozen=True)
class MappingConfig:
    """`mapper` incremental | global; `seed` of every random choice; `fixed_poses`: whether the known poses are kept as
    they are, or their positions are priors."""

    mapper: str = "incremental"
    seed: int = 0
    fixed_poses: bool = True


Held = Mapping[int, tuple[np.ndarray, float]]  # lens index -> (K, radial term)


@dataclass(frozen=True)
class SfmModel:
    """A reconstruction of some of the photos. `cameras`: lens index -> (K, radial term); `world_from_cam` by photo;
    `points_world` (M, 3), `errors_px` (M,), and of each photo the point indices and the keypoint indices (K,).
    `lens_sd`: lens index -> standard deviations of the logarithm of its focal length and of its radial term, where they
    were looked for; `modes` (M, 10) by photo, as in `Adjusted`."""

    cameras: dict[int, tuple[np.ndarray, float]]
    world_from_cam: dict[int, np.ndarray]
    points_world: np.ndarray
    errors_px: np.ndarray
    observations: dict[int, tuple[np.ndarray, np.ndarray]]
    lens_sd: dict[int, tuple[float, float]] = field(default_factory=dict)
    modes: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def error_px(self) -> float:
        """Root mean square over the points."""
        return float(np.sqrt(np.mean(self.errors_px**2))) if len(self.errors_px) else float("inf")

    def score(self, scale: float) -> float:
        """How many observations there are, each counting less the further its point is off."""
        weights = 1 / (1 + (self.errors_px / scale) ** 2)
        return float(sum(weights[index].sum() for index, _ in self.observations.values()))


def map_photos(
    found: Correspondences,
    verified: VerifiedPairs,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    config: MappingConfig,
    scale: float,
    scratch: Path,
    known_poses: Mapping[int, np.ndarray] | None = None,
) -> list[SfmModel]:
    """The reconstructions, largest first: one for each group of photos that hangs together. `known_poses`: photo ->
    `world_from_cam`. `scratch` is an existing folder for files that are removed again.

    The lenses of the first one are weighed against what was known of them before (`calibrated`). Where that moves a
    focal length, all is mapped again with it, for the points were chosen by the one that COLMAP had drifted to.
    """
    known_poses = known_poses or {}
    fixed = known_poses if config.fixed_poses else {}
    centres = {} if config.fixed_poses else {index: pose[:3, 3] for index, pose in known_poses.items()}
    centre_sd = float(np.sqrt(_prior_variance(known_poses))) if centres else 1.0
    held: dict[int, tuple[np.ndarray, float]] = {}
    models: list[SfmModel] = []
    for _ in range(CALIBRATION_ROUNDS):
        again = _map(found, verified, lenses, lens_of, config, scale, scratch, known_poses, held)
        if models and (not again or len(again[0].world_from_cam) < len(models[0].world_from_cam)):
            break
        models = again
        if not models or all(lens.fixed for lens in lenses):
            break
        if not held and (lost := implausible_cameras(models[0].cameras, lenses)):
            held = lost
            continue
        better = calibrate(models[0], found, lenses, lens_of, scale, fixed, centres, centre_sd)
        if better is None:
            break
        before, models = models[0], [better, *models[1:]]
        held = better.cameras
        drift = [abs(np.log(K[0, 0] / before.cameras[number][0][0, 0])) for number, (K, _) in held.items()]
        if max(drift) < SETTLED:
            break
    return models


def _map(
    found: Correspondences,
    verified: VerifiedPairs,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    config: MappingConfig,
    scale: float,
    scratch: Path,
    known_poses: Mapping[int, np.ndarray],
    held: Held,
) -> list[SfmModel]:
    """COLMAP's reconstructions; the lenses that are `held` stay as they are there."""
    pycolmap = quiet_pycolmap()
    threads = 1 if len(lens_of) <= ONE_THREAD_UP_TO else runtime.available_threads()
    if known_poses and config.fixed_poses:
        middle = np.mean([pose[:3, 3] for pose in known_poses.values()], axis=0)
        centred = {
            index: subtract_world_offset(pose, middle) for index, pose in known_poses.items()
        }  # wherever their origin is
        with scratch_folder(scratch, ".mapping-") as folder:
            _check_room(folder, found)
            path = folder / "database.db"
            with pycolmap.Database.open(path) as database:
                _fill(pycolmap, database, found, verified, lenses, lens_of, {}, held)
            models = _on_known_poses(pycolmap, path, found, lenses, lens_of, config, scale, threads, centred, held)
    else:
        with pycolmap.Database.open(":memory:") as database:
            _fill(pycolmap, database, found, verified, lenses, lens_of, known_poses, held)
            if config.mapper == "global":
                options = _global_options(pycolmap, lenses, config, threads, held)
                return _largest_first(_run(pycolmap, pycolmap.GlobalPipeline, options, database), scale)
            return _best_start(pycolmap, database, lenses, lens_of, config, scale, threads, bool(known_poses), held)
    placed = [_moved(_back_on(_read(model), centred), middle, known_poses) for model in models]
    return _largest_first(placed, scale)


def _best_start(
    pycolmap: Any,
    database: Any,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    config: MappingConfig,
    scale: float,
    threads: int,
    priors: bool,
    held: Held,
) -> list[SfmModel]:
    """Incremental mapping from several first pairs until one is good, else the result with the most sure observations.

    A pair far apart that sees a plane has two poses, and the wrong one can draw all others after it; a camera that
    moves along its line of backend has no pair that COLMAP would begin with by itself.
    """
    best: list[SfmModel] = []
    for angle_deg, forward in STARTS:
        options = _incremental_options(pycolmap, lenses, config, scale, threads, held)
        options.mapper.init_min_tri_angle, options.mapper.init_max_forward_motion = angle_deg, forward
        options.triangulation.ignore_two_view_tracks = len(lens_of) > TWO_VIEW_TRACKS_UP_TO
        options.use_prior_position = priors
        found = _largest_first(_run(pycolmap, pycolmap.IncrementalPipeline, options, database), scale)
        if found and (not best or found[0].score(scale) > best[0].score(scale)):
            best = found
        complete = best and len(best[0].world_from_cam) >= GOOD_SHARE * len(lens_of)
        if complete and best[0].error_px < GOOD_ERROR * scale:
            break
    return best


def _run(pycolmap: Any, pipeline: Any, options: Any, database: Any) -> list[SfmModel]:
    manager = pycolmap.ReconstructionManager()
    mapper = pipeline(options, database, manager)
    counter = None
    if pipeline is pycolmap.IncrementalPipeline:  # the global mapper places all photos at once
        counter = console.bar(database.num_images(), "mapping", "photo")
        events = pycolmap.IncrementalPipelineCallback
        mapper.add_callback(int(events.INITIAL_IMAGE_PAIR_REG_CALLBACK), lambda: counter.update(2))
        mapper.add_callback(int(events.NEXT_IMAGE_REG_CALLBACK), counter.update)
    try:
        mapper.run()
    finally:
        if counter is not None:
            counter.close()
    return [_read(manager.get(index)) for index in range(manager.size())]


def _largest_first(models: Sequence[SfmModel], scale: float) -> list[SfmModel]:
    usable = [model for model in models if len(model.world_from_cam) >= 2]
    return sorted(usable, key=lambda model: (len(model.world_from_cam), model.score(scale)), reverse=True)


def _fill(
    pycolmap: Any,
    database: Any,
    found: Correspondences,
    verified: VerifiedPairs,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    positions: Mapping[int, np.ndarray],
    held: Held,
) -> None:
    """Camera l becomes number l + 1, photo i image i + 1 of that name."""
    with pycolmap.DatabaseTransaction(database):
        for number, lens in enumerate(lenses, 1):
            camera = _camera(pycolmap, lens, number, held)
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=number)
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig, use_rig_id=True)
        for index, lens in enumerate(lens_of):
            image = pycolmap.Image(name=_name(index), camera_id=lens + 1, image_id=index + 1)
            database.write_image(image, use_image_id=True)
            frame = pycolmap.Frame(frame_id=index + 1, rig_id=lens + 1)
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
            database.write_keypoints(index + 1, (found.keypoints[index] + HALF_PIXEL).astype(np.float32))
            if index in positions:
                prior = pycolmap.PosePrior()
                prior.corr_data_id = image.data_id
                prior.position = positions[index][:3, 3]
                prior.position_covariance = np.eye(3) * _prior_variance(positions)
                prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
                database.write_pose_prior(prior)
        for (i, j), geometry in verified.geometry.items():
            database.write_matches(i + 1, j + 1, found.matches[i, j])
            database.write_two_view_geometry(i + 1, j + 1, geometry)


def _camera(pycolmap: Any, lens: SharedCamera, number: int, held: Held) -> Any:
    camera = colmap_camera(pycolmap, lens)
    camera.camera_id = number
    if number - 1 in held and not lens.fixed:
        K, radial = held[number - 1]
        camera.params = [K[0, 0], K[0, 2] + HALF_PIXEL, K[1, 2] + HALF_PIXEL, radial]
        camera.has_prior_focal_length = True
    return camera


def _prior_variance(positions: Mapping[int, np.ndarray]) -> float:
    """A hundredth of the spread of the positions, squared: how far a prior may be off."""
    centres = np.stack([pose[:3, 3] for pose in positions.values()])
    return max(float(0.01 * np.linalg.norm(centres.std(axis=0))) ** 2, 1e-12)


def _incremental_options(
    pycolmap: Any, lenses: Sequence[SharedCamera], config: MappingConfig, scale: float, threads: int, held: Held
) -> Any:
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = 3
    options.extract_colors = False
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = config.seed
    options.num_threads = options.mapper.num_threads = threads
    options.constant_cameras = {number for number, lens in enumerate(lenses, 1) if lens.fixed or number - 1 in held}
    options.mapper.init_max_error *= scale
    options.mapper.abs_pose_max_error *= scale
    options.mapper.abs_pose_min_num_inliers = MIN_INLIERS
    options.mapper.filter_max_reproj_error *= scale
    options.triangulation.merge_max_reproj_error *= scale
    options.triangulation.complete_max_reproj_error *= scale
    return options


def _global_options(
    pycolmap: Any, lenses: Sequence[SharedCamera], config: MappingConfig, threads: int, held: Held
) -> Any:
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = options.mapper.random_seed = config.seed
    options.num_threads = options.mapper.num_threads = threads
    if all(lens.fixed or number in held for number, lens in enumerate(lenses)):
        options.mapper.bundle_adjustment.refine_focal_length = False
        options.mapper.bundle_adjustment.refine_extra_params = False
    return options


def _check_room(folder: Path, found: Correspondences) -> None:
    """OSError of a full disk, which pycolmap would not tell from other failures."""
    needed = 100 * sum(map(len, found.keypoints)) + 24 * sum(map(len, found.matches.values()))
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _on_known_poses(
    pycolmap: Any,
    path: Path,
    found: Correspondences,
    lenses: Sequence[SharedCamera],
    lens_of: Sequence[int],
    config: MappingConfig,
    scale: float,
    threads: int,
    known_poses: Mapping[int, np.ndarray],
    held: Held,
) -> list[Any]:
    """Points triangulated from cameras that stay where they are, then the other photos placed against them."""
    model = pycolmap.Reconstruction()
    for number, lens in enumerate(lenses, 1):
        camera = _camera(pycolmap, lens, number, held)
        model.add_camera_with_trivial_rig(camera)
    for index in sorted(known_poses):
        image = pycolmap.Image(
            name=_name(index),
            keypoints=found.keypoints[index] + HALF_PIXEL,
            camera_id=lens_of[index] + 1,
            image_id=index + 1,
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(inverse(known_poses[index])[:3]))
    options = _incremental_options(pycolmap, lenses, config, scale, threads, held)
    options.triangulation.ignore_two_view_tracks = len(lens_of) > TWO_VIEW_TRACKS_UP_TO
    unsure = any(not lens.fixed and number not in held for number, lens in enumerate(lenses))
    folders = [path.parent / name for name in ("triangulated", "extended")]
    for folder in folders:
        folder.mkdir()
    model = pycolmap.triangulate_points(model, path, path.parent, folders[0], options=options, refine_intrinsics=unsure)
    if len(known_poses) == len(lens_of):
        return [model]
    model.write(folders[0])
    options.fix_existing_frames = options.mapper.fix_existing_frames = True
    options.multiple_models = False
    return list(pycolmap.incremental_mapping(path, path.parent, folders[1], options, input_path=folders[0]).values())


def _back_on(mapped: SfmModel, known_poses: Mapping[int, np.ndarray]) -> SfmModel:
    """The same in the world of the known poses: pycolmap moves and scales what it extends to a size of its own."""
    shared = [index for index in mapped.world_from_cam if index in known_poses]
    theirs, ours = (np.stack([poses[i][:3, 3] for i in shared]) for poses in (mapped.world_from_cam, known_poses))
    spread = [float(np.linalg.norm(centres - centres.mean(axis=0))) for centres in (theirs, ours)]
    scale = spread[1] / spread[0] if min(spread) > 0 else 1.0
    turn = known_poses[shared[0]][:3, :3] @ mapped.world_from_cam[shared[0]][:3, :3].T
    shift = ours.mean(axis=0) - scale * turn @ theirs.mean(axis=0)
    poses = {}
    for index, pose in mapped.world_from_cam.items():
        poses[index] = known_poses.get(
            index, from_rotation_translation(turn @ pose[:3, :3], scale * turn @ pose[:3, 3] + shift)
        )
    points = scale * mapped.points_world @ turn.T + shift
    return replace(mapped, world_from_cam=poses, points_world=points)


def _moved(mapped: SfmModel, shift: np.ndarray, known_poses: Mapping[int, np.ndarray]) -> SfmModel:
    """The same in a world whose coordinates are larger by `shift` (3,); known poses to the last digit."""
    poses = {
        index: known_poses.get(index, add_world_offset(pose, shift)) for index, pose in mapped.world_from_cam.items()
    }
    return replace(mapped, world_from_cam=poses, points_world=mapped.points_world + shift)


def _read(model: Any) -> SfmModel:
    cameras, poses, observations = {}, {}, {}
    ids = np.array(sorted(model.point3D_ids()), dtype=np.int64)
    place = {number: row for row, number in enumerate(ids.tolist())}
    for number in sorted(model.reg_image_ids()):
        image = model.image(number)
        index = int(image.name)
        poses[index] = inverse(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
        seen = [(place[p.point3D_id], k) for k, p in enumerate(image.points2D) if p.has_point3D()]
        rows = np.array(seen, dtype=np.int64).reshape(-1, 2)
        observations[index] = (rows[:, 0], rows[:, 1])
        camera = model.camera(image.camera_id)
        K = camera.calibration_matrix()
        K[:2, 2] -= HALF_PIXEL
        radial = float(camera.params[3]) if camera.model_name == "SIMPLE_RADIAL" else 0.0
        cameras[image.camera_id - 1] = (K, radial)
    points = [model.point3D(int(number)) for number in ids]
    return SfmModel(
        cameras,
        poses,
        np.array([point.xyz for point in points]).reshape(-1, 3),
        np.array([max(point.error, 0.0) for point in points]),
        observations,
    )


def _name(index: int) -> str:
    return f"{index:08d}"
