"""`dune eval multiview`: reconstructions of photo sets with known cameras: how many are registered, and how well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.evaluation.metrics import camera_errors, extent, pair_errors_deg, scale_errors
from dune_cli.evaluation.posed_sets import PosedSet
from dune_cli.geometry.epipolar import pose_auc
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.matchers.matcher import Matcher
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.scene import Scene
from dune_cli.sfm.verification import quiet_pycolmap
from dune_cli.tasks.reconstruct import matches, pointmaps
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig, PointmapsConfig

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel

AUC_DEG = (5, 10, 30)
SIFT_METHOD = "pycolmap-sift"
RELAXED_DEG, RELAXED_INLIERS = 2.0, 50  # of the control's first pair, in its second attempt
Method = Callable[[PosedSet, bool], np.ndarray]  # (N, 4, 4) world_from_cam, NaN where not registered


@dataclass(frozen=True)
class SetScore:
    """A method on a set; NaN where there is nothing to measure.

    completeness: share of registered photos. rotation_deg, centre (in the set's unit), centre_share (of its extent):
    medians over registered cameras after a similarity fit. pair_*: medians over pairs of them. auc*: area under the
    recall curve over all pairs, with 180 degrees where a photo is missing. scale_error: of a set in metres, the
    relative error of lengths when the distance of the first two registered photos is given. scale_error_neighbours: the
    median over all neighbouring two. reason: of a failed reconstruction.
    """

    set_name: str
    method: str
    photos: int
    registered: int
    completeness: float
    rotation_deg: float
    centre: float
    centre_share: float
    pair_rotation_deg: float
    pair_direction_deg: float
    auc5: float
    auc10: float
    auc30: float
    scale_error: float
    scale_error_neighbours: float
    seconds: float
    processor_seconds: float
    reason: str | None


def run_method(posed: PosedSet, name: str, method: Method, known_intrinsics: bool) -> SetScore:
    """Reconstructs the set's photos without its poses and scores the cameras; a failed job registers none."""
    start, processor = time.perf_counter(), time.process_time()
    reason = None
    try:
        estimated = method(posed, known_intrinsics)
    except JobFailed as error:
        console.note(f"{posed.name}, {name}: {error}")
        estimated, reason = np.full((len(posed.map.images), 4, 4), np.nan), str(error)
    seconds = time.perf_counter() - start, time.process_time() - processor
    return score(posed, name, estimated, *seconds, reason)


def score(
    posed: PosedSet,
    name: str,
    estimated: np.ndarray,
    seconds: float,
    processor_seconds: float = float("nan"),
    reason: str | None = None,
) -> SetScore:
    """The score of cameras (N, 4, 4) `world_from_cam` in any world and scale, NaN where not registered."""
    true = posed.world_from_cam
    registered = np.flatnonzero(np.isfinite(estimated).all((1, 2)))
    nan = float("nan")
    rotation = centre = share = first = neighbours = pair_rotation = pair_direction = nan
    if len(registered) >= 2 and extent(estimated[registered]) > 0:
        errors = camera_errors(true[registered], estimated[registered])
        rotation, centre = float(np.median(errors.rotation_deg)), float(np.median(errors.centre))
        share = centre / extent(true)
        rotations, directions = pair_errors_deg(true[registered], estimated[registered])
        pair_rotation, pair_direction = float(np.median(rotations)), float(np.median(directions))
        if posed.metric:
            first, neighbours = scale_errors(true[registered], estimated[registered], errors.scale)
    auc5, auc10, auc30 = pose_auc(np.maximum(*pair_errors_deg(true, estimated)), AUC_DEG)
    return SetScore(
        set_name=posed.name,
        method=name,
        photos=len(true),
        registered=len(registered),
        completeness=len(registered) / len(true),
        rotation_deg=rotation,
        centre=centre,
        centre_share=share,
        pair_rotation_deg=pair_rotation,
        pair_direction_deg=pair_direction,
        auc5=auc5,
        auc10=auc10,
        auc30=auc30,
        scale_error=first,
        scale_error_neighbours=neighbours,
        seconds=seconds,
        processor_seconds=processor_seconds,
        reason=reason,
    )


# --- methods ---


def matcher_method(matcher: Matcher, config: MatchesConfig, fallback: Callable[[], Matcher] | None = None) -> Method:
    """`dune reconstruct --method matches` without a cache."""

    def method(posed: PosedSet, known_intrinsics: bool) -> np.ndarray:
        paths = [image.file for image in posed.map.images]
        cameras = cameras_of(posed, known_intrinsics)
        run = Run(config.seed)
        return poses_of(matches.reconstruct(paths, cameras, matcher, config, run, fallback=fallback))

    return method


def pointmap_method(model: TwoViewModel, config: PointmapsConfig) -> Method:
    """`dune reconstruct --method pointmap` without a cache."""

    def method(posed: PosedSet, known_intrinsics: bool) -> np.ndarray:
        paths = [image.file for image in posed.map.images]
        cameras = cameras_of(posed, known_intrinsics)
        return poses_of(pointmaps.reconstruct(paths, cameras, model, config, Run(config.seed)))

    return method


def sift_method(seed: int) -> Method:
    """The control: pycolmap's SIFT, matching and incremental mapping."""

    def method(posed: PosedSet, known_intrinsics: bool) -> np.ndarray:
        infos = [read_photo(image.file).info for image in posed.map.images]
        cameras = share_cameras(cameras_of(posed, known_intrinsics)(infos))
        return map_by_sift([photo.path for photo in infos], cameras, seed)

    return method


def cameras_of(posed: PosedSet, known: bool) -> CamerasOf:
    """The true camera of each photo with its distortion, or what EXIF and the default field of view give."""

    def of(infos: Sequence[PhotoInfo]) -> Sequence[PhotoCamera]:
        if known:
            return [PhotoCamera(image.camera, "given", lens_known=True) for image in posed.map.images]
        return resolve_cameras(infos, None, None)

    return of


def poses_of(scene: Scene) -> np.ndarray:
    """(N, 4, 4) `world_from_cam`, NaN for photos that are not registered."""
    return np.stack([v.world_from_cam if v.registered else np.full((4, 4), np.nan) for v in scene.views])


def map_by_sift(paths: Sequence[Path], cameras: PhotoCameras, seed: int) -> np.ndarray:
    """(N, 4, 4) `world_from_cam` of the photos in pycolmap's largest model, NaN of the others.

    All pairs are matched. Cameras are those of `dune reconstruct` (shared, fixed where known). Options are pycolmap's
    defaults. Where these give no model, a second attempt allows a first pair with forward motion, 2 degrees of
    triangulation angle and 50 inliers.
    """
    pycolmap = quiet_pycolmap()
    world_from_cam = np.full((len(paths), 4, 4), np.nan)
    with scratch_folder(prefix="dune-sift-") as scratch:
        folder, database = scratch / "photos", scratch / "database.db"
        folder.mkdir()
        names = [f"{index:08d}{path.suffix}" for index, path in enumerate(paths)]
        for name, path in zip(names, paths):
            (folder / name).symlink_to(path.absolute())
        pycolmap.set_random_seed(seed)
        pycolmap.extract_features(database, folder, names, pycolmap.CameraMode.PER_IMAGE, device=pycolmap.Device.cpu)
        fixed = set()
        with pycolmap.Database.open(database) as opened:
            for index, name in enumerate(names):
                image = opened.read_image_with_name(name)
                camera = cameras.of(index).to_colmap()
                camera.camera_id = image.camera_id
                opened.update_camera(camera)
                if cameras.of(index).fixed:
                    fixed.add(image.camera_id)
        pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
        options = pycolmap.IncrementalPipelineOptions()
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = seed
        options.constant_cameras = fixed
        options.min_model_size = 3
        output = scratch / "models"
        output.mkdir()
        models = pycolmap.incremental_mapping(database, folder, output, options).values()
        if not models:  # such as cameras that only move forward
            options.mapper.init_max_forward_motion = 1.0
            options.mapper.init_min_tri_angle = RELAXED_DEG
            options.mapper.init_min_num_inliers = RELAXED_INLIERS
            models = pycolmap.incremental_mapping(database, folder, output, options).values()
        if not models:
            console.note(f"{SIFT_METHOD}: no model")
            return world_from_cam
        largest = max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()))
        for image_id in largest.reg_image_ids():
            image = largest.image(image_id)
            index = names.index(image.name)
            world_from_cam[index, :3] = image.cam_from_world().inverse().matrix()
            world_from_cam[index, 3] = 0, 0, 0, 1
    return world_from_cam
