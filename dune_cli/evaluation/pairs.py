"""Relative pose of photo pairs with ground truth: the yardstick of matchers and two-view models.

Layout: under a root, each `pairs.json` is a set: {"name", "pairs": [{"id", "image_a", "image_b" (relative to the
file), "K_a", "K_b" (3x3), "T_a2b" (4x4, X_b = T_a2b X_a)}]}; OpenCV axes, pixel centres at integers.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry import epipolar
from dune_cli.geometry.epipolar import pose_auc
from dune_cli.io.intrinsics import pinhole_matrix, rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.photos import read_photo
from dune_cli.io.safe_read import is_file, read_json, shown
from dune_cli.matchers.matcher import Matcher, resize
from dune_cli.sfm.relative_pose import CameraImage, MatcherBackend, SolverConfig, relocalize

THRESHOLDS_DEG = (5, 10, 20)
FAILED_DEG = 180.0
CONFIDENCE_BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the confidence
HARD_SETS = frozenset({"wide"})  # left out of the aggregate "easy"


@dataclass(frozen=True)
class PosedPair:
    """Two photos, their intrinsics (3, 3) in original pixels, and the true `cam2_from_cam1` (4, 4)."""

    set_name: str
    id: str
    image1: Path
    image2: Path
    K1: np.ndarray
    K2: np.ndarray
    cam2_from_cam1: np.ndarray


@dataclass(frozen=True)
class PairScore:
    """One method on one pair. Errors are 180 degrees where no pose was found."""

    set_name: str
    id: str
    size_px: int
    matches: int
    inliers: int
    rotation_deg: float
    translation_deg: float
    success: bool
    seconds_matching: float
    seconds_pose: float

    @property
    def error_deg(self) -> float:
        return max(self.rotation_deg, self.translation_deg)


@dataclass(frozen=True)
class PairSummary:
    """One method on one set at one size: areas under the recall curve, medians over its pairs, failures."""

    auc5: float
    auc10: float
    auc20: float
    rotation_deg: float
    translation_deg: float
    matches: float
    inliers: float
    failures: int
    seconds_matching: float
    seconds_total: float


def read_pairs(root: str | Path) -> list[PosedPair]:
    """The pairs under `root` that have a truth, sorted by file, in the files' order.

    Those without true intrinsics, without a true pose, or with one that moves nothing are left out with a note a file.
    UserError where none is left, and for any that is broken.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder above the pairs.json files")
    files = sorted(root.rglob("pairs.json"))
    if not files:
        raise UserError(f"no pairs.json in {root} or the folders below it")
    pairs, left_out = [], []
    for file in files:
        found, reasons = _read_set(file)
        pairs += found
        left_out += reasons
        if reasons:
            more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            console.note(f"left out, for there is no truth to score it by: {reasons[0]}{more}")
    if not pairs and left_out:
        raise UserError(f"no pair under {root} has a truth to score it by: {left_out[0]}")
    missing = sorted({str(p) for pair in pairs for p in (pair.image1, pair.image2) if not is_file(p)})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{len(missing)} photos named by pairs.json files are missing: {', '.join(map(shown, missing[:3]))}{more}"
        )
    return pairs


def select_pairs(pairs: Sequence[PosedPair], sets: Sequence[str], limit: int | None) -> list[PosedPair]:
    """The pairs of `sets` ("easy": all but wide; none named: all), at most `limit` of each set."""
    have = list(dict.fromkeys(pair.set_name for pair in pairs))
    unknown = [name for name in sets if name not in have and name != "easy"]
    if unknown:
        raise UserError(f"unknown set {', '.join(unknown)}; this folder has: {', '.join(have)}, and easy")
    wanted = {name for name in have if not sets or name in sets or ("easy" in sets and name not in HARD_SETS)}
    chosen: list[PosedPair] = []
    for name in have:
        if name in wanted:
            chosen += [pair for pair in pairs if pair.set_name == name][:limit]
    return chosen


def score_pair(
    matchers: Mapping[str, Matcher], pair: PosedPair, sizes_px: Sequence[int], threshold_px: float, seed: int
) -> Iterator[tuple[str, PairScore]]:
    """Each matcher's name and score at each size: matches, MAGSAC with the true intrinsics, errors.

    `sizes_px`: both photos are first reduced to this long side (0: as they are; never enlarged); the matcher then works
    at its own size. `threshold_px` counts in pixels of the matched images. Seconds leave out decoding and reducing.
    """
    photos = [(read_photo(path).rgb, K) for path, K in ((pair.image1, pair.K1), (pair.image2, pair.K2))]
    for size_px in sizes_px:
        (rgb1, K1), (rgb2, K2) = (_reduced(rgb, K, size_px) for rgb, K in photos)
        for name, matcher in matchers.items():
            start = time.perf_counter()
            found = matcher.match(rgb1, rgb2)
            matched = time.perf_counter()
            thresholds_px = threshold_px * found.pixel_size1, threshold_px * found.pixel_size2
            pose = epipolar.estimate_relative_pose(found.points1, found.points2, K1, K2, thresholds_px, seed)
            end = time.perf_counter()
            rotation_deg = translation_deg = FAILED_DEG
            if pose is not None:
                errors = epipolar.pose_error(pose.cam2_from_cam1, pair.cam2_from_cam1)
                rotation_deg, translation_deg = np.degrees(errors).tolist()
            yield (
                name,
                PairScore(
                    set_name=pair.set_name,
                    id=pair.id,
                    size_px=size_px,
                    matches=len(found.points1),
                    inliers=0 if pose is None else int(pose.inliers.sum()),
                    rotation_deg=rotation_deg,
                    translation_deg=translation_deg,
                    success=pose is not None,
                    seconds_matching=matched - start,
                    seconds_pose=end - matched,
                ),
            )


@dataclass(frozen=True)
class ConfidenceSample:
    """A pose as `dune reloc` would give it out, with its `confidence`, and how far it is off (`error_deg`)."""

    set_name: str
    id: str
    confidence: float
    error_deg: float


@dataclass(frozen=True)
class ConfidenceBin:
    """Poses with a confidence from `low` up to `high` (left out): how many, and the shares within 5 and 10 degrees."""

    low: float
    high: float
    poses: int
    within5: float
    within10: float


def confidence_samples(
    matchers: Mapping[str, Matcher], pair: PosedPair, seed: int
) -> Iterator[tuple[str, ConfidenceSample]]:
    """Each matcher's name and pose by `dune reloc` with the true intrinsics, as far as it gives one out."""
    shots = [CameraImage(read_photo(path), K, "given") for path, K in ((pair.image1, pair.K1), (pair.image2, pair.K2))]
    for name, matcher in matchers.items():
        backend = MatcherBackend(matcher)
        matches = backend.match(*(backend.extract(shot) for shot in shots))
        found = relocalize(matches, SolverConfig("essential", seed=seed))
        if found.query_from_ref is not None:
            errors = np.degrees(epipolar.pose_error(found.query_from_ref, pair.cam2_from_cam1))
            yield name, ConfidenceSample(pair.set_name, pair.id, found.confidence, float(max(errors)))


def confidence_calibration(poses: Sequence[ConfidenceSample]) -> list[ConfidenceBin]:
    """The poses in bins of their confidence, and in one from 0.9 on."""
    bins = []
    for low, high in (*itertools.pairwise(CONFIDENCE_BINS), (0.9, 1.0)):
        errors = np.array([pose.error_deg for pose in poses if low <= pose.confidence < high])
        shares = [float((errors < limit).mean()) if len(errors) else float("nan") for limit in (5, 10)]
        bins.append(ConfidenceBin(low, high, len(errors), *shares))
    return bins


def random_poses(pairs: Sequence[PosedPair], size_px: int, seed: int, draws: int = 200) -> list[list[PairScore]]:
    """The control: no rotation, and a translation direction drawn at random; `draws` runs over all pairs."""
    rng = np.random.default_rng(seed)
    runs = []
    for _ in range(draws):
        run = []
        for pair in pairs:
            guess = np.eye(4)
            guess[:3, 3] = rng.normal(size=3)
            rotation, translation = np.degrees(epipolar.pose_error(guess, pair.cam2_from_cam1)).tolist()
            run.append(PairScore(pair.set_name, pair.id, size_px, 0, 0, rotation, translation, True, 0.0, 0.0))
        runs.append(run)
    return runs


def summarise(runs: Iterable[Sequence[PairScore]]) -> PairSummary:
    """Mean area over runs (one run for a matcher), medians over all pairs of all runs."""
    runs = [list(run) for run in runs]
    scores = [score for run in runs for score in run]
    areas = np.mean([pose_auc([score.error_deg for score in run], THRESHOLDS_DEG) for run in runs], axis=0).tolist()

    def median(values: Iterable[float]) -> float:
        return float(np.median(list(values)))

    return PairSummary(
        *areas,
        rotation_deg=median(s.rotation_deg for s in scores),
        translation_deg=median(s.translation_deg for s in scores),
        matches=median(s.matches for s in scores),
        inliers=median(s.inliers for s in scores),
        failures=sum(not s.success for s in scores),
        seconds_matching=median(s.seconds_matching for s in scores),
        seconds_total=median(s.seconds_matching + s.seconds_pose for s in scores),
    )


def set_groups(pairs: Sequence[PosedPair]) -> dict[str, list[str]]:
    """Row name -> names of the sets in it: each set, and "easy" (all but wide) where that is more than one set."""
    names = list(dict.fromkeys(pair.set_name for pair in pairs))
    rows = {name: [name] for name in names}
    easy = [name for name in names if name not in HARD_SETS]
    if len(easy) > 1:
        rows["easy"] = easy
    return rows


def as_dict(score: PairScore) -> dict[str, Any]:
    """A pair's score as plain numbers, rounded, for JSON."""
    numbers = asdict(score) | {"error_deg": score.error_deg}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}


def _reduced(rgb: np.ndarray, K: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    if size_px == 0 or max(rgb.shape[:2]) <= size_px:
        return rgb, K
    small = resize(rgb, size_px)
    sx, sy = (1 / scale for scale in small.original_per_pixel)
    return small.rgb, np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]]) @ K


def _read_set(file: Path) -> tuple[list[PosedPair], list[str]]:
    """The pairs of a file, and why others have no truth."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("pairs"), list):
        raise UserError(f'{file} is not a set of pairs: it needs an object with a list "pairs"')
    name = Fields(content, str(file)).text("name", None) or file.parent.name
    read = [_read_pair(file, name, index, entry) for index, entry in enumerate(content["pairs"])]
    pairs = [pair for pair in read if isinstance(pair, PosedPair)]
    twice = [id for id, count in Counter(pair.id for pair in pairs).items() if count > 1]
    if twice:
        raise UserError(f"{file} has the pair {shown(twice[0])} twice; give each its own id")
    return pairs, [reason for reason in read if isinstance(reason, str)]


def _read_pair(file: Path, set_name: str, index: int, value: Any) -> PosedPair | str:
    """The pair, or why it has no truth."""
    entry = Fields(value, f"{file}, pair {index}")
    lacks = [key for key in ("image_a", "image_b") if entry.get(key) is None]
    if lacks:
        raise UserError(f"{entry.where} lacks {', '.join(lacks)}")
    unknown = [key for key in ("K_a", "K_b", "T_a2b") if entry.get(key) is None]
    if unknown:
        return f"{entry.where} lacks {', '.join(unknown)}"
    images = [file.parent / entry.text(key) for key in ("image_a", "image_b")]
    K1, K2 = (pinhole_matrix(entry["K_" + of], f"{entry.where}: K_{of}") for of in "ab")
    pose = rigid_pose(entry["T_a2b"], f"{entry.where}: T_a2b")
    if np.linalg.norm(pose[:3, 3]) == 0:
        return f"{entry.where}: T_a2b has no translation, so its direction cannot be scored"
    id = entry.get("id", index)
    if not isinstance(id, (str, int)):
        raise UserError(f"{entry.where}: its id is neither a text nor a whole number")
    return PosedPair(set_name, str(id), *images, K1, K2, pose)
