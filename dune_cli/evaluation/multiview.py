"""Errors of cameras that are known up to a similarity: fitted, then per camera and per pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.evaluation.localization import PosedSet
from dune_cli.geometry.epipolar import pose_auc, pose_error
from dune_cli.geometry.poses import inverse, rotation_angle
from dune_cli.geometry.sim3 import move_poses, robust_similarity, scale_of, similarity_from_poses
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import resolve_intrinsics
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import PhotoFacts, read_photo
from dune_cli.matchers.matcher import Matcher
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.scene import Scene
from dune_cli.sfm.verification import quiet_pycolmap
from dune_cli.tasks.reconstruct import many, pointmaps

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel


FAILED_DEG = 180.0
TOLERANCE = 0.1  # of the extent: where a camera's pull in the fit begins to fade
ROUNDS = 100
MIN_MOTION = 1e-3  # of the extent: cameras that are nearer to each other stand in one place


@dataclass(frozen=True)
class CameraErrors:
    """After the fit `true_from_found` (4, 4): `rotation_deg` (N,) and `centre` (N,) in the truth's unit."""

    true_from_found: np.ndarray
    rotation_deg: np.ndarray
    centre: np.ndarray

    @property
    def scale(self) -> float:
        """By what the found lengths must be multiplied to be the true ones."""
        return float(scale_of(self.true_from_found))


def extent(world_from_cam: np.ndarray) -> float:
    """The largest distance between two cameras (N, 4, 4)."""
    centres = world_from_cam[:, :3, 3]
    return float(np.linalg.norm(centres[:, None] - centres, axis=-1).max()) if len(centres) else 0.0


def fit_cameras(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(4, 4) `true_from_found` between poses (N, 4, 4) `world_from_cam`: a robust Umeyama fit.

    A camera is its centre and the ends of its three axes, so that cameras in a row fix all rotations, too. The axes are
    as long as the extent of the true cameras, and as long in the found world as the fit's own scale makes that, which
    is repeated until it is so: the scale comes from the centres alone. Two cameras apart are the least (ValueError).
    """
    length = extent(true)
    if not (length > 0 and extent(found) > 0):
        raise ValueError("two cameras that stand apart are needed")
    fit = similarity_from_poses(true, found)
    weights, sizes = np.ones(4 * len(true)), np.full(4 * len(true), length)
    corners = _corners(true, length)
    for _ in range(ROUNDS):
        scale = float(scale_of(fit))
        fit = robust_similarity(corners, _corners(found, length / scale), weights, sizes, TOLERANCE, start=fit).a_from_b
        if abs(float(scale_of(fit)) / scale - 1) < 1e-9:
            break
    return fit


def camera_errors(true: np.ndarray, found: np.ndarray) -> CameraErrors:
    """Of poses (N, 4, 4) `world_from_cam`, N >= 2; ValueError where no two stand apart."""
    fit = fit_cameras(true, found)
    moved = move_poses(fit, found)
    turn = rotation_angle(np.swapaxes(moved[:, :3, :3], 1, 2) @ true[:, :3, :3])
    return CameraErrors(fit, np.degrees(turn), np.linalg.norm(moved[:, :3, 3] - true[:, :3, 3], axis=1))


def pair_errors_deg(true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation-direction errors in degrees of all pairs i < j of poses (N, 4, 4), which no similarity
    changes. A found pose of NaN makes its pairs 180; pairs whose true cameras stand in one place are left out."""
    rotations, directions, still = [], [], MIN_MOTION * extent(true)
    for i in range(len(true)):
        for j in range(i + 1, len(true)):
            truth = inverse(true[j]) @ true[i]
            if not np.linalg.norm(truth[:3, 3]) > still:
                continue
            if not (np.isfinite(found[i]).all() and np.isfinite(found[j]).all()):
                rotations.append(FAILED_DEG)
                directions.append(FAILED_DEG)
                continue
            turn, direction = np.degrees(pose_error(inverse(found[j]) @ found[i], truth)).tolist()
            rotations.append(turn)
            directions.append(direction)
    return np.array(rotations), np.array(directions)


def _corners(world_from_cam: np.ndarray, length: float) -> np.ndarray:
    """(4 N, 3) centres and ends of the axes."""
    centres, axes = world_from_cam[:, :3, 3], np.swapaxes(world_from_cam[:, :3, :3], 1, 2)
    return np.concatenate([centres[:, None], centres[:, None] + length * axes], axis=1).reshape(-1, 3)


# The control of `dune eval multiview`: pycolmap's own SIFT, matching and incremental mapping, as they come.


SIFT_METHOD = "pycolmap-sift"
RELAXED_DEG, RELAXED_INLIERS = 2.0, 50


def map_by_sift(paths: Sequence[Path], cameras: PhotoCameras, seed: int) -> np.ndarray:
    """(N, 4, 4) `world_from_cam` of the photos in the largest model, NaN of the others.

    All pairs are matched; cameras as in `dune reconstruct` (shared, fixed where known). Default options; where
    these find no pair to start from, once more with any direction of motion, 2 degrees and 50 matches allowed for it.
    """
    pycolmap = quiet_pycolmap()
    found = np.full((len(paths), 4, 4), np.nan)
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
        if not models:  # cameras that only go forward
            options.mapper.init_max_forward_motion = 1.0
            options.mapper.init_min_tri_angle = RELAXED_DEG
            options.mapper.init_min_num_inliers = RELAXED_INLIERS
            models = pycolmap.incremental_mapping(database, folder, output, options).values()
        if not models:
            console.note(f"{SIFT_METHOD}: no model")
            return found
        best = max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()))
        for number in best.reg_image_ids():
            image = best.image(number)
            found[names.index(image.name), :3] = image.cam_from_world().inverse().matrix()
            found[names.index(image.name), 3] = 0, 0, 0, 1
    return found


# Reconstructions of photos with known cameras: who is placed, and how well. Sets are `map_reloc.read_places`'.


AUC_DEG = (5, 10, 30)
Intrinsics = Sequence[tuple[np.ndarray, str]]
Method = Callable[[PosedSet, bool], np.ndarray]  # (N, 4, 4) world_from_cam, NaN where not registered


@dataclass(frozen=True)
class SetScore:
    """A method on a set. Medians over registered cameras after a similarity fit (`rotation_deg`, `centre` in the set's
    unit, `centre_share` of its extent) and over pairs of them (`pair_*`); areas over all pairs, 180 degrees where a
    photo is missing; `completeness`: the share of the photos that is registered.

    `scale_error`: of a set in metres, how far off all lengths are (a share) once the distance of the first two
    registered photos is given; `scale_error_neighbours`: the median over every neighbouring two. NaN where there is
    nothing to measure. `reason`: why there is no reconstruction.
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
    reason: str | None


def run_method(place: PosedSet, name: str, method: Method, known_intrinsics: bool) -> SetScore:
    """Reconstructs the set's photos from nothing and scores the cameras; a failed job is a score of no cameras."""
    start = time.perf_counter()
    reason = None
    try:
        found = method(place, known_intrinsics)
    except JobFailed as error:
        console.note(f"{place.name}, {name}: {error}")
        found, reason = np.full((len(place.map.images), 4, 4), np.nan), str(error)
    return score(place, name, found, time.perf_counter() - start, reason)


def score(place: PosedSet, name: str, found: np.ndarray, seconds: float, reason: str | None = None) -> SetScore:
    """Of cameras (N, 4, 4) `world_from_cam` in any world and scale, NaN where they are missing."""
    true = np.stack([image.world_from_cam for image in place.map.images])
    have = np.flatnonzero(np.isfinite(found).all((1, 2)))
    nan = float("nan")
    rotation = centre = share = first = neighbours = pair_rotation = pair_direction = nan
    if len(have) >= 2 and extent(found[have]) > 0:
        errors = camera_errors(true[have], found[have])
        rotation, centre = float(np.median(errors.rotation_deg)), float(np.median(errors.centre))
        share = centre / extent(true)
        turns, directions = pair_errors_deg(true[have], found[have])
        pair_rotation, pair_direction = float(np.median(turns)), float(np.median(directions))
        if place.metric:
            first, neighbours = _scale_errors(true[have], found[have], errors.scale)
    areas = pose_auc(np.maximum(*pair_errors_deg(true, found)), AUC_DEG)
    return SetScore(
        place.name,
        name,
        len(true),
        len(have),
        len(have) / len(true),
        rotation,
        centre,
        share,
        pair_rotation,
        pair_direction,
        *areas,
        first,
        neighbours,
        seconds,
        reason,
    )


def matcher_method(matcher: Matcher, config: many.ManyConfig) -> Method:
    """`dune reconstruct --method matches`, its work folder empty."""

    def method(place: PosedSet, known_intrinsics: bool) -> np.ndarray:
        with scratch_folder(prefix="dune-eval-") as folder:
            paths = [image.file for image in place.map.images]
            scene = many.reconstruct(
                paths, intrinsics_of(place, known_intrinsics), matcher, config, WorkFolder(folder), Run(config.seed)
            )
        return poses_of(scene)

    return method


def pointmap_method(model: TwoViewModel, config: pointmaps.ManyPointMapsConfig) -> Method:
    """`dune reconstruct --method pointmap`, its work folder empty."""

    def method(place: PosedSet, known_intrinsics: bool) -> np.ndarray:
        with scratch_folder(prefix="dune-eval-") as folder:
            paths = [image.file for image in place.map.images]
            of = intrinsics_of(place, known_intrinsics)
            scene = pointmaps.reconstruct(paths, of, model, config, WorkFolder(folder), Run(config.seed))
        return poses_of(scene)

    return method


def sift_method(seed: int) -> Method:
    """The control."""

    def method(place: PosedSet, known_intrinsics: bool) -> np.ndarray:
        facts = [read_photo(image.file).facts for image in place.map.images]
        cameras = share_cameras(facts, intrinsics_of(place, known_intrinsics)(facts))
        return map_by_sift([photo.path for photo in facts], cameras, seed)

    return method


def intrinsics_of(place: PosedSet, known: bool) -> Callable[[Sequence[PhotoFacts]], Intrinsics]:
    """The true K of each photo (without its distortion), or what the photos themselves tell."""

    def of(facts: Sequence[PhotoFacts]) -> Intrinsics:
        if known:
            return [(image.camera.K, "given") for image in place.map.images]
        return resolve_intrinsics(facts, None, None)

    return of


def poses_of(scene: Scene) -> np.ndarray:
    """(N, 4, 4), NaN for photos that are not registered."""
    return np.stack([v.world_from_cam if v.registered else np.full((4, 4), np.nan) for v in scene.views])


def as_dict(found: SetScore) -> dict[str, Any]:
    """Rounded, for JSON."""
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(found).items()}


def _scale_errors(true: np.ndarray, found: np.ndarray, scale: float) -> tuple[float, float]:
    """Shares by which lengths are off, with the first two cameras' distance given, and the median over neighbours."""
    steps = [np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) for poses in (true, found)]
    moved = steps[0] > MIN_MOTION * extent(true)
    off = np.full(len(moved), np.nan)
    with np.errstate(divide="ignore"):
        off[moved] = np.abs(steps[0][moved] / steps[1][moved] / scale - 1)
    return float(off[0]), float(np.nanmedian(off)) if moved.any() else float("nan")
