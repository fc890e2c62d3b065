"""Mapping: structure from motion by pycolmap on verified matches, incremental or global, then calibration.

Pixels have their centres at integers; COLMAP's half pixel is added on the way in and subtracted on the way out.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console, runtime
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.poses import (
    add_world_offset,
    from_rotation_translation,
    inverse,
    nearest_rotation,
    subtract_world_offset,
)
from dune_cli.io.outputs import scratch_folder
from dune_cli.sfm.calibration import calibrate, implausible_cameras, initial_camera
from dune_cli.sfm.cameras import PhotoCameras, to_colmap
from dune_cli.sfm.colmap_models import colmap_rigs, image_name, in_unit_of_rigs, read_model, rig_id_of, write_images
from dune_cli.sfm.joined_models import joined_poses, same_poses
from dune_cli.sfm.lookalikes import Judge
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.thinned_matches import MANY_INLIERS, thinned
from dune_cli.sfm.verification import MIN_INLIERS, VerifiedPairs, quiet_pycolmap

InitialPair = tuple[float, float]
INITIAL_PAIRS = ((16.0, 0.95), (4.0, 0.95), (8.0, 1.0))  # least angle in degrees, most forward motion: tried in turn
COMPLETE_SHARE, GOOD_ERROR = 0.95, 0.8  # of the photos, of a matched pixel: then no other initial pair is tried
SAME_ERROR = 0.02  # difference of the errors of two models from other initial pairs, that find the same then
FEW = 50  # photos: of so few the points that only two of them see are needed
CONTRADICTED = 0.01  # of the inliers of all pairs, from which on a model of few photos is doubted
CALIBRATION_ROUNDS = 3
SETTLED = 0.01  # change of the logarithm of a focal length, below which the model is not mapped again
ONE_THREAD_UP_TO = 200  # photos: above, several threads make results differ in their last digits
MIN_PHOTOS = 3  # of an incremental model; of rigs, frames
# growth of a model of many photos between two adjustments of all of it. COLMAP's 1.1 took 12 s longer on 224 frames,
# for points and errors that differ by less than 1 %; with 1.3, one set of 36 photos was bent by 5 degrees
GLOBAL_ADJUSTMENT_RATIO = 1.3
ADJUSTED = 1e-6  # relative change of the cost, at which a bundle adjustment of joined models ends


@dataclass(frozen=True)
class MappingConfig:
    """`mapper` incremental | global. `seed` of every random choice. `fixed_poses`: known poses are kept; else their
    positions are priors."""

    mapper: str = "incremental"
    seed: int = 0
    fixed_poses: bool = True


@dataclass(frozen=True)
class Draft:
    """The `models` of one run of the mapper, with the cameras that COLMAP calibrates, largest first; the
    `initial_pairs` to try the next time: those of the best result; and whether they have a part of the points only
    (`is_thin`)."""

    models: list[SfmModel]
    initial_pairs: Sequence[InitialPair]
    is_thin: bool = False


def map_photos(
    correspondences: Correspondences,
    verified: VerifiedPairs,
    cameras: PhotoCameras,
    config: MappingConfig,
    scratch: Path,
    known_poses: Mapping[int, np.ndarray] | None = None,
    draft: Draft | None = None,
) -> list[SfmModel]:
    """The models of the connected components, largest first. `known_poses`: photo -> `world_from_cam`. `scratch` is an
    existing folder for temporary files. `draft`: what `map_once` gave.

    COLMAP adjusts the focal lengths while a model grows. In a ring of few photos they can drift so far that it does not
    close. So where pairs of few photos contradict the model, these are mapped with the focal lengths from before as
    well, and the better of both models counts.
    """
    rounds = _CalibrationRounds(correspondences, verified, cameras, config, scratch, known_poses or {})
    models = rounds.run({}, draft)
    few = len(cameras.ids) <= FEW and config.mapper == "incremental" and not known_poses
    if not few or not models or all(camera.fixed for camera in cameras.shared):
        return models
    judge = Judge(models[0], correspondences, verified, cameras)
    if judge.share(judge.contradicted) < CONTRADICTED:
        return models
    other = rounds.run({n: initial_camera(camera) for n, camera in enumerate(cameras.shared)})
    return max(models, other, key=lambda found: _size(found[0], correspondences.pixel_size) if found else (0, 0.0))


@dataclass(frozen=True)
class _CalibrationRounds:
    """Mapping and calibration in turns; see `map_photos`."""

    correspondences: Correspondences
    verified: VerifiedPairs
    cameras: PhotoCameras
    config: MappingConfig
    scratch: Path
    known_poses: Mapping[int, np.ndarray]

    def run(self, calibrated: Mapping[int, Camera], draft: Draft | None = None) -> list[SfmModel]:
        """The models, of which the first has cameras that are calibrated with priors (`calibrate`); the `calibrated`
        ones are kept before.

        Where that changes a focal length, all is mapped again with it, because the points were selected with the one
        that COLMAP had drifted to. Of many photos, and where all were placed, only the points are made again.
        """
        cameras, known_poses = self.cameras, self.known_poses
        fixed_poses = known_poses if self.config.fixed_poses else {}
        centres = {} if self.config.fixed_poses else {index: pose[:3, 3] for index, pose in known_poses.items()}
        centre_sd = float(np.sqrt(_prior_variance(known_poses))) if centres else 1.0
        fits = False  # the model to the calibrated cameras
        is_thin = False  # the first model, which has a part of the points
        models: list[SfmModel] = []
        initial_pairs: Sequence[InitialPair] = INITIAL_PAIRS
        for _ in range(CALIBRATION_ROUNDS):
            now = replace(cameras, rigs=cameras.rigs.fitted(models[0].world_from_cam)) if models else cameras
            mapping = _Mapping(
                self.correspondences, self.verified, now, self.config, known_poses, calibrated, initial_pairs
            )
            if fits and (is_thin or _is_kept(models[0], len(cameras.ids))) and not known_poses:
                again, is_thin = [mapping.with_new_points(models[0], self.scratch), *models[1:]], False
            else:
                found, draft = draft or mapping.first(self.scratch), None
                again, initial_pairs, is_thin = found.models, found.initial_pairs, found.is_thin
            if models and (not again or len(again[0].world_from_cam) < len(models[0].world_from_cam)):
                break
            models = again
            if not models:
                break
            if not calibrated and (reset := implausible_cameras(models[0].cameras, cameras.shared)):
                calibrated = reset
                continue
            held = {*fixed_poses, *cameras.rigs.mounts}  # what fixes photos to one another is not adjusted twice
            better = calibrate(models[0], self.correspondences, cameras, held, centres, centre_sd)
            if better is None:
                break
            before, models = models[0], [better, *models[1:]]
            calibrated, fits = better.cameras, True
            if not is_thin and all(_is_settled(before.cameras[n], camera) for n, camera in calibrated.items()):
                break
        if models and is_thin:
            models = [mapping.with_all_points(models[0], self.scratch), *models[1:]]
        return models


def map_once(
    correspondences: Correspondences,
    verified: VerifiedPairs,
    cameras: PhotoCameras,
    config: MappingConfig,
    scratch: Path,
    all_points: bool = True,
) -> Draft:
    """One run of the mapper; of photos with many matches with a part of the points, unless `all_points` are made."""
    mapping = _Mapping(correspondences, verified, cameras, config, {}, {}, INITIAL_PAIRS)
    draft = mapping.first(scratch)
    if not (draft.is_thin and all_points):
        return draft
    return Draft([mapping.with_all_points(draft.models[0], scratch), *draft.models[1:]], draft.initial_pairs)


def _is_kept(model: SfmModel, photos: int) -> bool:
    """Whether a model's poses are good enough that a change of its lens asks for new points only."""
    placed = len(model.world_from_cam)
    return placed > FEW or placed >= COMPLETE_SHARE * photos


def _is_settled(before: Camera, after: Camera) -> bool:
    """Whether a camera hardly changed: about the same focal length, and pixels that moved less than SETTLED of the
    distance from the middle to the border, apart from what a rotation of the camera does as well: a principal point and
    tangential distortion are hardly another camera."""
    focal = after.params[0] / before.params[0]
    if abs(np.log(focal)) >= SETTLED:
        return False
    size = np.array([after.width, after.height])
    pixels = np.stack(np.meshgrid([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]), -1).reshape(-1, 2) * size
    before = before.with_focal(focal)
    rays = np.stack([camera.unproject(pixels) for camera in (before, after)])
    seen = np.isfinite(rays).all((0, 2))
    rotation = nearest_rotation(rays[0, seen].T @ rays[1, seen])
    moved = before.project(rays[1, seen] @ rotation.T) - pixels[seen]
    return bool(np.linalg.norm(moved, axis=1).max() < SETTLED * size.max() / 2)


def _prior_variance(known_poses: Mapping[int, np.ndarray]) -> float:
    """The square of a hundredth of the spread of the positions: how far a position prior may be off."""
    centres = np.stack([pose[:3, 3] for pose in known_poses.values()])
    return max(float(0.01 * np.linalg.norm(centres.std(axis=0))) ** 2, 1e-12)


@dataclass(frozen=True)
class _Mapping:
    """One run of COLMAP's mapper. The `calibrated` cameras, by their index, are kept. `initial_pairs` are tried in
    turn."""

    correspondences: Correspondences
    verified: VerifiedPairs
    cameras: PhotoCameras
    config: MappingConfig
    known_poses: Mapping[int, np.ndarray]
    calibrated: Mapping[int, Camera]
    initial_pairs: Sequence[InitialPair]

    @cached_property
    def pycolmap(self) -> Any:
        return quiet_pycolmap()

    @property
    def threads(self) -> int:
        return 1 if len(self.cameras.ids) <= ONE_THREAD_UP_TO else runtime.available_threads()

    def first(self, scratch: Path) -> Draft:
        """The models; of photos with many matches with a part of the points."""
        if self.known_poses and self.config.fixed_poses:
            return Draft(self._on_known_poses(scratch), self.initial_pairs)
        fewer = None if self.config.mapper == "global" or self.known_poses else thinned(self.verified)
        if fewer is not None:
            draft = replace(self, verified=fewer)._mapped(scratch)
            if draft.models:
                return replace(draft, is_thin=True)
        return self._mapped(scratch)

    def _mapped(self, scratch: Path) -> Draft:
        if self.config.mapper == "global":
            return Draft(self._largest_first(self._by_global_mapper()), self.initial_pairs)
        with self._database_file(scratch, self.known_poses) as database:
            return self._incremental(database, scratch)

    def with_new_points(self, model: SfmModel, scratch: Path) -> SfmModel:
        """The model with its cameras and poses, its points triangulated again, and photos that these register."""
        fixed = replace(self, config=replace(self.config, fixed_poses=True), known_poses=model.world_from_cam)
        again = fixed._on_known_poses(scratch)
        return again[0] if again else model

    def _incremental(self, database: Path, scratch: Path) -> Draft:
        """Incremental mapping from several initial pairs until a model is complete and accurate, or agrees with another
        one, or of many photos has half of them; else the result with the highest score.

        A pair with a wide baseline that sees a plane has two poses, and the wrong one can distort the whole model. A
        camera that moves along its optical axis has no pair that COLMAP would begin with by default. In a model of many
        photos the first pair is of little weight.
        """
        best: list[SfmModel] = []
        best_pair: Sequence[InitialPair] = self.initial_pairs
        pixel_size = self.correspondences.pixel_size
        for min_angle_deg, forward_motion in self.initial_pairs:
            options = self._incremental_options()
            options.mapper.init_min_tri_angle, options.mapper.init_max_forward_motion = min_angle_deg, forward_motion
            options.use_prior_position = bool(self.known_poses)
            models = self._largest_first(self._by_incremental_mapper(options, database))
            models = self._joined(models, scratch)
            agree = bool(models and best) and _agree(models[0], best[0])
            if models and (not best or models[0].score(pixel_size) > best[0].score(pixel_size)):
                best, best_pair = models, ((min_angle_deg, forward_motion),)
            share = len(best[0].world_from_cam) / len(self.cameras.ids) if best else 0.0
            if share >= COMPLETE_SHARE and (agree or best[0].error_px < GOOD_ERROR * pixel_size):
                break
            if share >= 0.5 and len(self.cameras.ids) > FEW:
                break
        return Draft(best, best_pair)

    def _joined(self, models: list[SfmModel], scratch: Path) -> list[SfmModel]:
        """The models, the largest with the photos of those that share photos with it, where that explains more."""
        poses = joined_poses(models) if len(models) > 1 and not self.known_poses else {}
        if not poses or len(poses) == len(models[0].world_from_cam):
            return models
        largest = self._adjusted(poses, models[0].cameras, scratch)
        pixel_size = self.correspondences.pixel_size
        if largest.score(pixel_size) <= models[0].score(pixel_size):
            return models
        return [largest, *(other for other in models[1:] if not other.world_from_cam.keys() <= poses.keys())]

    def with_all_points(self, model: SfmModel, scratch: Path) -> SfmModel:
        """A model of fewer matches with the points of all, which a calibration adjusts."""
        return replace(self, calibrated=model.cameras).with_new_points(model, scratch)

    def _adjusted(self, poses: Mapping[int, np.ndarray], cameras: Mapping[int, Camera], scratch: Path) -> SfmModel:
        """The model with these poses and cameras after a bundle adjustment, with new points before and after it."""
        fixed = replace(self, calibrated=cameras)
        with fixed._database_file(scratch) as path:
            model = fixed._triangulated(path, poses)
            self._adjust(model)
            return read_model(fixed._with_points(model, path))

    def _by_global_mapper(self) -> list[SfmModel]:
        manager = self.pycolmap.ReconstructionManager()
        with self.pycolmap.Database.open(":memory:") as database:
            self._fill(database, self.known_poses)
            self.pycolmap.GlobalPipeline(self._global_options(), database, manager).run()
        return self._read([manager.get(index) for index in range(manager.size())])

    def _by_incremental_mapper(self, options: Any, database: Path) -> list[SfmModel]:
        """Other threads work on meanwhile, as pycolmap's `incremental_mapping`, unlike its pipeline, lets them."""
        bars: list[console.Counter] = []  # one for each model that is begun
        count = len(self.cameras.rigs.moments(len(self.cameras.ids)))

        def begin() -> None:
            while bars:
                bars.pop().close()
            bars.append(console.bar(count, "mapping", "photo"))
            bars[0].update(2)

        def next_photo() -> None:
            for counter in bars:
                counter.update()

        try:
            with scratch_folder(database.parent, "models-") as folder:
                found = self.pycolmap.incremental_mapping(
                    database,
                    database.parent,
                    folder,
                    options,
                    initial_image_pair_callback=begin,
                    next_image_callback=next_photo,
                )
        finally:
            for counter in bars:
                counter.close()
        return self._read([found[index] for index in sorted(found)])

    def _read(self, models: Sequence[Any]) -> list[SfmModel]:
        return [in_unit_of_rigs(read_model(model), self.cameras.rigs) for model in models]

    def _on_known_poses(self, scratch: Path) -> list[SfmModel]:
        """Points triangulated with the known poses, which are kept, then the other photos registered to them."""
        middle = np.mean([pose[:3, 3] for pose in self.known_poses.values()], axis=0)
        centred = {index: subtract_world_offset(pose, middle) for index, pose in self.known_poses.items()}
        with self._database_file(scratch) as path:
            models = [read_model(model) for model in self._triangulate_and_extend(path, centred)]
        in_world = []
        for model in models:
            model = _align_to_known_poses(model, centred)
            poses = {
                index: self.known_poses.get(index, add_world_offset(pose, middle))
                for index, pose in model.world_from_cam.items()
            }
            in_world.append(replace(model, world_from_cam=poses, points_world=model.points_world + middle))
        return self._largest_first(in_world)

    @contextmanager
    def _database_file(self, scratch: Path, positions: Mapping[int, np.ndarray] | None = None) -> Iterator[Path]:
        """A database, in a folder of its own, with the `positions` of poses as priors."""
        with scratch_folder(scratch, ".mapping-") as folder:
            self._check_free_space(folder)
            path = folder / "database.db"
            with self.pycolmap.Database.open(path) as database:
                self._fill(database, positions or {})
            yield path

    def _triangulate_and_extend(self, database: Path, known_poses: Mapping[int, np.ndarray]) -> list[Any]:
        model = self._triangulated(database, known_poses)
        if model.num_reg_frames() == len(self.cameras.rigs.moments(len(self.cameras.ids))):
            return [model]
        triangulated, extended = (database.parent / name for name in ("triangulated", "extended"))
        triangulated.mkdir()
        extended.mkdir()
        model.write(triangulated)
        options = self._incremental_options()
        options.fix_existing_frames = options.mapper.fix_existing_frames = True
        options.multiple_models = False
        return list(
            self.pycolmap.incremental_mapping(
                database, database.parent, extended, options, input_path=triangulated
            ).values()
        )

    def _triangulated(self, database: Path, known_poses: Mapping[int, np.ndarray]) -> Any:
        """A pycolmap.Reconstruction of the photos with known poses, with points."""
        model, rigs, ids = self.pycolmap.Reconstruction(), self.cameras.rigs, self.cameras.ids
        cameras = [self._colmap_camera(number) for number in range(len(self.cameras.shared))]
        for camera in cameras:
            model.add_camera(camera)
        for rig in colmap_rigs(cameras, ids, rigs):
            model.add_rig(rig)
        for photos in rigs.moments(len(ids)):
            posed = [index for index in photos if index in known_poses]
            if not posed:
                continue
            frame = self.pycolmap.Frame(frame_id=photos[0] + 1, rig_id=rig_id_of(photos[0], ids, rigs))
            images = []
            for index in photos:
                image = self.pycolmap.Image(
                    name=image_name(index),
                    keypoints=self.correspondences.keypoints[index] + HALF_PIXEL,
                    camera_id=ids[index] + 1,
                    image_id=index + 1,
                )
                image.frame_id = frame.frame_id
                frame.add_data_id(image.data_id)
                images.append(image)
            mount = rigs.mounts.get(posed[0])
            own = np.eye(4) if mount is None else inverse(mount.sensor_from_rig)
            frame.rig_from_world = self.pycolmap.Rigid3d((own @ inverse(known_poses[posed[0]]))[:3])
            model.add_frame(frame)
            for image in images:
                model.add_image(image)
            model.register_frame(frame.frame_id)
        return self._with_points(model, database)

    def _with_points(self, model: Any, database: Path) -> Any:
        """A pycolmap.Reconstruction with its points triangulated anew."""
        refine = any(not camera.fixed and n not in self.calibrated for n, camera in enumerate(self.cameras.shared))
        with scratch_folder(database.parent, "points-") as folder:
            return self.pycolmap.triangulate_points(
                model,
                database,
                database.parent,
                folder,
                options=self._incremental_options(),
                refine_intrinsics=refine,
            )

    def _fill(self, database: Any, positions: Mapping[int, np.ndarray]) -> None:
        """Cameras, images, keypoints, verified matches, and the `positions` of poses as priors."""
        pycolmap = self.pycolmap
        with pycolmap.DatabaseTransaction(database):
            cameras = [self._colmap_camera(number) for number in range(len(self.cameras.shared))]
            write_images(database, cameras, self.cameras.ids, self.correspondences.keypoints, self.cameras.rigs)
            for index, pose in positions.items():
                prior = pycolmap.PosePrior()
                prior.corr_data_id = database.read_image(index + 1).data_id
                prior.position = pose[:3, 3]
                prior.position_covariance = np.eye(3) * _prior_variance(positions)
                prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
                database.write_pose_prior(prior)
            for (i, j), geometry in self.verified.geometry.items():
                database.write_matches(i + 1, j + 1, self.correspondences.matches[i, j])
                database.write_two_view_geometry(i + 1, j + 1, geometry)

    def _colmap_camera(self, number: int) -> Any:
        shared = self.cameras.shared[number]
        camera = shared.to_colmap()
        camera.camera_id = number + 1
        if number in self.calibrated and not (shared.fixed and shared.lens_known):
            camera = to_colmap(self.calibrated[number])
            camera.camera_id = number + 1
            camera.has_prior_focal_length = True
        return camera

    def _constant_cameras(self) -> set[int]:
        return {n for n, camera in enumerate(self.cameras.shared) if camera.fixed or n in self.calibrated}

    def _constant_rigs(self) -> set[int]:
        """COLMAP's numbers of the rigs whose cameras' poses are given."""
        rigs, ids = self.cameras.rigs, self.cameras.ids
        moving = {rig for rig, _ in rigs.estimated}
        return {rig_id_of(photo, ids, rigs) for photo, mount in rigs.mounts.items() if mount.rig not in moving}

    def _incremental_options(self) -> Any:
        options = self.pycolmap.IncrementalPipelineOptions()
        options.min_model_size = 2 if self.cameras.rigs.mounts else MIN_PHOTOS
        options.ba_refine_sensor_from_rig = bool(self.cameras.rigs.estimated)
        options.constant_rigs = self._constant_rigs()
        options.extract_colors = False
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = self.config.seed
        options.num_threads = options.mapper.num_threads = self.threads
        options.constant_cameras = {number + 1 for number in self._constant_cameras()}
        inliers = sum(len(geometry.inlier_matches) for geometry in self.verified.geometry.values())
        options.mapper.ba_global_ignore_redundant_points3D = inliers > MANY_INLIERS
        if len(self.cameras.ids) > FEW:
            options.ba_global_frames_ratio = options.ba_global_points_ratio = GLOBAL_ADJUSTMENT_RATIO
        options.mapper.abs_pose_min_num_inliers = MIN_INLIERS
        options.triangulation.ignore_two_view_tracks = len(self.cameras.ids) > FEW
        pixel_size = self.correspondences.pixel_size
        options.mapper.init_max_error *= pixel_size
        options.mapper.abs_pose_max_error *= pixel_size
        options.mapper.filter_max_reproj_error *= pixel_size
        options.triangulation.merge_max_reproj_error *= pixel_size
        options.triangulation.complete_max_reproj_error *= pixel_size
        return options

    def _adjust(self, model: Any) -> None:
        """Bundle adjustment of a pycolmap.Reconstruction, with the cameras and rigs that are not given."""
        config = self.pycolmap.BundleAdjustmentConfig()
        for image_id in model.reg_image_ids():
            config.add_image(image_id)
        for number in self._constant_cameras():
            config.set_constant_cam_intrinsics(number + 1)
        config.fix_gauge(self.pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        options = self.pycolmap.BundleAdjustmentOptions()
        options.print_summary = False
        options.refine_sensor_from_rig = bool(self.cameras.rigs.estimated) and not self._constant_rigs()
        options.ceres.solver_options.num_threads = self.threads
        options.ceres.solver_options.function_tolerance = ADJUSTED
        self.pycolmap.create_default_bundle_adjuster(options, config, model).solve()

    def _global_options(self) -> Any:
        options = self.pycolmap.GlobalPipelineOptions()
        options.random_seed = options.mapper.random_seed = self.config.seed
        options.num_threads = options.mapper.num_threads = self.threads
        options.mapper.bundle_adjustment.refine_sensor_from_rig = bool(self.cameras.rigs.estimated)
        if len(self._constant_cameras()) == len(self.cameras.shared):
            options.mapper.bundle_adjustment.refine_focal_length = False
            options.mapper.bundle_adjustment.refine_extra_params = False
        return options

    def _check_free_space(self, folder: Path) -> None:
        """OSError of a full disk, which pycolmap would not tell from other failures."""
        keypoints, matches = self.correspondences.keypoints, self.correspondences.matches.values()
        if shutil.disk_usage(folder).free < 100 * sum(map(len, keypoints)) + 24 * sum(map(len, matches)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    def _largest_first(self, models: Sequence[SfmModel]) -> list[SfmModel]:
        found = (model for model in models if len(model.world_from_cam) >= 2)
        return sorted(found, key=lambda model: _size(model, self.correspondences.pixel_size), reverse=True)


def _size(model: SfmModel, pixel_size: float) -> tuple[int, float]:
    """The number of photos, and of two models with as many the score."""
    return len(model.world_from_cam), model.score(pixel_size)


def _agree(one: SfmModel, other: SfmModel) -> bool:
    """Whether two models place the same photos at the same places, or as accurately."""
    if one.world_from_cam.keys() != other.world_from_cam.keys():
        return False
    return abs(one.error_px - other.error_px) <= SAME_ERROR * other.error_px or same_poses(one, other)


def _align_to_known_poses(model: SfmModel, known_poses: Mapping[int, np.ndarray]) -> SfmModel:
    """The model in the world of the known poses: pycolmap translates and scales the models that it extends."""
    shared = [index for index in model.world_from_cam if index in known_poses]
    own, known = (np.stack([poses[i][:3, 3] for i in shared]) for poses in (model.world_from_cam, known_poses))
    own_spread, known_spread = (float(np.linalg.norm(c - c.mean(axis=0))) for c in (own, known))
    scale = known_spread / own_spread if min(own_spread, known_spread) > 0 else 1.0
    rotation = known_poses[shared[0]][:3, :3] @ model.world_from_cam[shared[0]][:3, :3].T
    shift = known.mean(axis=0) - scale * rotation @ own.mean(axis=0)
    poses = {
        index: known_poses.get(
            index, from_rotation_translation(rotation @ pose[:3, :3], scale * rotation @ pose[:3, 3] + shift)
        )
        for index, pose in model.world_from_cam.items()
    }
    return replace(model, world_from_cam=poses, points_world=scale * model.points_world @ rotation.T + shift)
