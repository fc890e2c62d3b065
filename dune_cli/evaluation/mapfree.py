"""`dune eval mapfree`: the official scores of the Map-free relocalization benchmark, single-frame track.

Source: Arnold et al., "Map-free Visual Relocalization: Metric Pose Relative to a Single Image", ECCV 2022, and the
rules of its evaluation script (docs/models/relocalization.md). Frames are keyed by the five digits before the ending.
Ground truth keeps every fifth entry in file order. K and the recall of the AUC are rounded to float32; everything else
is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.poses import rotation_from_quaternion
from dune_cli.io.safe_read import MIB, open_zip, read_member, read_text

EVERY_NTH_FRAME = 5  # of the single-frame track
MAX_TRANSLATION_ERROR_M = 0.25
MAX_ROTATION_ERROR_DEG = 5.0
MAX_VCRE_PX = 90.0
MAX_VALUE = 1e9  # metres, pixels and parts of a quaternion
MAX_NOTES = 5  # of skipped lines of a file
DATA_LIMIT_BYTES = 64 * MIB  # of a text file
SUBMISSION_LIMIT_BYTES = 256 * MIB
_FIELDS = "frame qw qx qy qz tx ty tz"


@dataclass(frozen=True)
class FramePose:
    """A camera: unit quaternion (w, x, y, z) from camera to world, centre (3,) in metres, confidence of an estimate."""

    quaternion: np.ndarray
    centre: np.ndarray
    confidence: float = 0.0


@dataclass(frozen=True)
class FrameIntrinsics:
    """Pinhole parameters (3, 3), rounded to float32 as the official script does."""

    K: np.ndarray


@dataclass(frozen=True)
class SceneErrors:
    """Errors of one scene: arrays with an entry per estimated frame, and the number of frames without estimate."""

    translation: np.ndarray  # metres
    rotation_deg: np.ndarray
    vcre_px: np.ndarray
    confidence: np.ndarray
    failures: int


def read_poses(lines: Iterable[str], with_confidence: bool, where: str) -> dict[int, FramePose]:
    """Poses by frame number, in file order; a later line of a frame replaces the earlier one at its place.

    As in the official script, lines that are no pose (NaN, infinity, wrong number of fields, text for a number, zero
    quaternion) are skipped with a note. A negative confidence raises UserError. where: the file, for messages.
    """
    poses: dict[int, FramePose] = {}
    skipped = 0
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fields = line.split(" ")
        try:
            key, values = _parse(fields, 9 if with_confidence else 8)
        except ValueError as error:
            skipped += 1
            if skipped <= MAX_NOTES:
                console.note(f"{where}, line {number} is skipped: {error}")
            continue
        if with_confidence and values[7] < 0:
            raise UserError(f"{where}, line {number}: confidence {values[7]} is negative; it must be 0 or more")
        quaternion = np.array(values[:4]) / np.linalg.norm(values[:4])
        centre = -rotation_from_quaternion(quaternion).T @ np.array(values[4:7])
        inverse = quaternion * [1, -1, -1, -1]
        poses[key] = FramePose(inverse, centre, values[7] if with_confidence else 0.0)
    if skipped > MAX_NOTES:
        console.note(f"{where}: {skipped} lines are skipped in all")
    return poses


def _parse(fields: list[str], count: int) -> tuple[int, list[float]]:
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields instead of {count} ({_FIELDS}{' confidence' if count == 9 else ''})")
    try:
        values = [float(field) for field in fields[1:]]
        frame = _frame_number(fields[0])
    except ValueError:
        raise ValueError(f"a text stands for a number in {' '.join(fields)[:80]!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    if max(map(abs, values)) > MAX_VALUE:
        raise ValueError(f"a value is larger than {MAX_VALUE:g}")
    if np.linalg.norm(values[:4]) <= 1e-8:
        raise ValueError("a zero quaternion is no rotation")
    return frame, values


def _frame_number(name: str) -> int:
    return int(name[-9:-4])


def read_intrinsics(lines: Iterable[str], where: str) -> tuple[dict[int, FrameIntrinsics], int, int]:
    """Intrinsics by frame number, and width and height in pixels of the file's last line."""
    intrinsics: dict[int, FrameIntrinsics] = {}
    width = height = 0
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fields = line.split()
        try:
            values = [float(field) for field in fields[1:7]]
            fx, fy, cx, cy = values[:4]
            if not all(abs(value) <= MAX_VALUE for value in values) or min(fx, fy) <= 0:
                raise ValueError("no camera")
            width, height = int(values[4]), int(values[5])
            if min(width, height) < 1:
                raise ValueError("no size")
            K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float32)
            intrinsics[_frame_number(fields[0])] = FrameIntrinsics(K.astype(np.float64))
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{where}, line {number}: expected 'frame fx fy cx cy W H' of a camera, got {line[:80]!r}"
            ) from error
    return intrinsics, width, height


def virtual_points() -> np.ndarray:
    """(196, 3) points in the query camera's frame: a 7 x 4 x 7 grid, 0.3 m apart, x and y centred, z from 1.8 m."""
    x = (np.arange(7) - 3) * 0.3
    y = (np.arange(4) - 1.5) * 0.3
    z = 1.8 + np.arange(7) * 0.3
    return np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)


def translation_error(estimate: FramePose, truth: FramePose) -> float:
    """Distance of the camera centres, metres."""
    return float(np.linalg.norm(estimate.centre - truth.centre))


def rotation_error_deg(estimate: FramePose, truth: FramePose) -> float:
    """2 asin of the vector part of q_est q_gt^-1, degrees."""
    w1, v1 = estimate.quaternion[0], estimate.quaternion[1:]
    w2, v2 = truth.quaternion[0], -truth.quaternion[1:]
    vector = w1 * v2 + w2 * v1 + np.cross(v1, v2)
    return float(np.degrees(2 * np.arcsin(min(np.linalg.norm(vector), 1.0))))


def vcre_px(estimate: FramePose, truth: FramePose, K: np.ndarray, width: int, height: int) -> float:
    """Virtual correspondence reprojection error: mean pixel distance of the virtual points, clamped to the image.

    Points behind the estimated camera are divided by their negative depth and clamped, as the official script does.
    """
    points_cam = virtual_points()
    points_world = points_cam @ rotation_from_quaternion(truth.quaternion).T + truth.centre
    points_estimated = (points_world - estimate.centre) @ rotation_from_quaternion(estimate.quaternion)

    def pixels(points: np.ndarray) -> np.ndarray:
        image = points @ K.T
        return np.clip(image[:, :2] / image[:, 2:], 0, [width, height])

    return float(np.linalg.norm(pixels(points_cam) - pixels(points_estimated), axis=1).mean())


def score_scene(folder: Path, estimates: dict[int, FramePose] | None) -> SceneErrors:
    """Errors of one scene's estimates against `<folder>/poses.txt` and `intrinsics.txt`; None: the scene is absent."""
    truth = read_poses(_lines(folder / "poses.txt"), with_confidence=False, where=str(folder / "poses.txt"))
    if estimates is None:
        return _no_estimates(failures=len(truth))
    where = str(folder / "intrinsics.txt")
    intrinsics, width, height = read_intrinsics(_lines(folder / "intrinsics.txt"), where)
    rows = []
    failures = 0
    for frame, true_pose in list(truth.items())[::EVERY_NTH_FRAME]:
        if frame not in estimates:
            failures += 1
            continue
        if frame not in intrinsics:
            raise UserError(f"{where}: no intrinsics for frame {frame:05d}, which poses.txt has")
        pose = estimates[frame]
        vcre = vcre_px(pose, true_pose, intrinsics[frame].K, width, height)
        rows.append((translation_error(pose, true_pose), rotation_error_deg(pose, true_pose), vcre, pose.confidence))
    if not rows:
        return _no_estimates(failures)
    return SceneErrors(*np.array(rows, dtype=np.float64).T, failures)


def _no_estimates(failures: int) -> SceneErrors:
    nothing = np.empty(0)
    return SceneErrors(nothing, nothing, nothing, nothing, failures)


def _lines(path: Path) -> list[str]:
    return read_text(path, "a text file of the data set", DATA_LIMIT_BYTES).splitlines()


def average_precision(correct: np.ndarray, confidence: np.ndarray, failures: int) -> float:
    """Area under precision over recall for falling confidence thresholds; recall is rounded to float32.

    correct (N,) bool and confidence (N,) of the estimates. failures: frames without one, which count in the recall.
    """
    order = np.argsort(-confidence, kind="stable")
    correct, confidence = correct[order], confidence[order]
    is_last_of_value = np.append(confidence[1:] != confidence[:-1], True)
    accepted = np.flatnonzero(is_last_of_value) + 1
    precision = np.cumsum(correct)[is_last_of_value] / accepted
    recall = (accepted / (len(correct) + failures)).astype(np.float32).astype(np.float64)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def aggregate(scenes: list[SceneErrors]) -> dict[str, float]:
    """The official table over scenes. Raises UserError where no scene has an estimate."""
    scored = [scene for scene in scenes if len(scene.translation)]
    if not scored:
        raise UserError("the submission has no estimate for any frame of this split; is it the right split?")
    failures = sum(scene.failures for scene in scenes)
    translation, rotation, vcre, confidence = (
        np.concatenate([getattr(scene, name) for scene in scored])
        for name in ("translation", "rotation_deg", "vcre_px", "confidence")
    )
    total = len(translation) + failures
    pose_ok = (translation < MAX_TRANSLATION_ERROR_M) & (rotation < MAX_ROTATION_ERROR_DEG)
    vcre_ok = vcre < MAX_VCRE_PX

    def median(name: str) -> float:
        return float(np.mean([np.median(getattr(scene, name)) for scene in scored]))

    return {
        "Average Median Translation Error": median("translation"),
        "Average Median Rotation Error": median("rotation_deg"),
        "Average Median Reprojection Error": median("vcre_px"),
        "Precision @ Pose Error < (25.0cm, 5deg)": float(pose_ok.sum() / total),
        "AUC @ Pose Error < (25.0cm, 5deg)": average_precision(pose_ok, confidence, failures),
        "Precision @ VCRE < 90px": float(vcre_ok.sum() / total),
        "AUC @ VCRE < 90px": average_precision(vcre_ok, confidence, failures),
        "Estimates for % of frames": len(translation) / total,
    }


def read_submission(path: Path) -> dict[str, dict[int, FramePose]]:
    """Estimates by scene of a ZIP of `pose_<scene>.txt` files; a note names other members.

    UserError for a file that is no ZIP, is damaged, or has member names that point out of it.
    """
    estimates: dict[str, dict[int, FramePose]] = {}
    ignored = []
    with open_zip(path, "a submission ZIP", SUBMISSION_LIMIT_BYTES, SUBMISSION_LIMIT_BYTES) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise UserError(f"{path}: refused, the member name {name[:80]!r} points out of the archive")
            if "/" in name or not (name.startswith("pose_") and name.endswith(".txt")):
                ignored.append(name)
                continue
            scene = name[len("pose_") : -len(".txt")]
            if scene in estimates:
                raise UserError(f"{path} holds {name[:80]!r} twice; keep one of them")
            lines = read_member(archive, name, DATA_LIMIT_BYTES).decode("utf-8").splitlines()
            estimates[scene] = read_poses(lines, True, where=f"{path}:{name}")
    if ignored:
        others = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
        console.note(f"{path}: ignoring {ignored[0][:80]!r}{others} (expected pose_<scene>.txt at the root)")
    return estimates


def score(split_folder: Path, submission: Path) -> dict[str, float]:
    """Official scores of a submission ZIP against `<root>/<split>`, a folder of scenes with poses.txt."""
    scenes = sorted(path.parent for path in split_folder.glob("*/poses.txt"))
    if not scenes:
        raise UserError(f"{split_folder} holds no scene (a folder with poses.txt); give <root> and --split train|val")
    estimates = read_submission(submission)
    for scene in sorted(set(estimates) - {folder.name for folder in scenes}):
        console.note(f"{submission}: the scene {scene} is not in {split_folder}; ignored")
    return aggregate([score_scene(folder, estimates.get(folder.name)) for folder in scenes])
