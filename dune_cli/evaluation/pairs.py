"""`dune eval pairs`: relative pose of photo pairs with ground truth, and how well its confidence is calibrated.

Each `pairs.json` under a root is a set (docs/file-formats.md): {"name", "pairs": [{"id", "image_a", "image_b" (relative
to the file), "K_a", "K_b" (3 x 3), "T_a2b" (4 x 4, X_b = T_a2b X_a)}]}. OpenCV axes, pixel centres at integers.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.evaluation.metrics import FAILED_DEG, median
from dune_cli.geometry import epipolar
from dune_cli.geometry.cameras import scale_intrinsics
from dune_cli.geometry.epipolar import pose_auc
from dune_cli.io.camera_checks import pinhole_matrix, rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.photos import read_photo
from dune_cli.io.safe_read import is_file, read_json, shown
from dune_cli.matchers.matcher import Matcher, resize
from dune_cli.sfm.relative_pose import CameraImage, MatcherBackend, SolverConfig, relocalize

THRESHOLDS_DEG = (5, 10, 20)
CONFIDENCE_BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)  # edges
HARD_SETS = frozenset({"wide"})  # left out of the aggregate "easy"


@dataclass(frozen=True)
class PosedPair:
    """Two photos, their intrinsics (3, 3) in the photos' pixels, and the true `cam2_from_cam1` (4, 4)."""

    set_name: str
    id: str
    image1: Path
    image2: Path
    K1: np.ndarray
    K2: np.ndarray
    cam2_from_cam1: np.ndarray


@dataclass(frozen=True)
class PairScore:
    """One method on one pair, reduced to `size_px`. Errors are 180 degrees without a pose."""

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
        """The larger of both errors."""
        return max(self.rotation_deg, self.translation_deg)


@dataclass(frozen=True)
class PairSummary:
    """One method on one set at one size: areas under the recall curve, medians over its pairs, number of failures."""

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
    """The pairs under `root` that have a ground truth, sorted by file, in the files' order.

    Pairs without true intrinsics, without a true pose, or with one without translation are left out, with a note a
    file. UserError where none is left, for a damaged file, and for a missing photo.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder above the pairs.json files")
    files = sorted(root.rglob("pairs.json"))
    if not files:
        raise UserError(f"no pairs.json in {root} or the folders below it")
    pairs, reasons = [], []
    for file in files:
        pairs_of_file, reasons_of_file = _read_set(file)
        pairs += pairs_of_file
        reasons += reasons_of_file
        if reasons_of_file:
            more = f" and {len(reasons_of_file) - 1} more" if len(reasons_of_file) > 1 else ""
            console.note(f"left out, for there is no truth to score it by: {reasons_of_file[0]}{more}")
    if not pairs and reasons:
        raise UserError(f"no pair under {root} has a truth to score it by: {reasons[0]}")
    missing = sorted({str(p) for pair in pairs for p in (pair.image1, pair.image2) if not is_file(p)})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{len(missing)} photos named by pairs.json files are missing: {', '.join(map(shown, missing[:3]))}{more}"
        )
    return pairs


def select_pairs(pairs: Sequence[PosedPair], sets: Sequence[str], limit: int | None) -> list[PosedPair]:
    """The pairs of `sets` ("easy": all but wide; empty: all), at most `limit` of each. UserError for an unknown set."""
    available = list(dict.fromkeys(pair.set_name for pair in pairs))
    unknown = [name for name in sets if name not in available and name != "easy"]
    if unknown:
        raise UserError(f"unknown set {', '.join(unknown)}; this folder has: {', '.join(available)}, and easy")
    selected: list[PosedPair] = []
    for name in available:
        if not sets or name in sets or ("easy" in sets and name not in HARD_SETS):
            selected += [pair for pair in pairs if pair.set_name == name][:limit]
    return selected


def score_pair(
    matchers: Mapping[str, Matcher], pair: PosedPair, sizes_px: Sequence[int], threshold_px: float, seed: int
) -> Iterator[tuple[str, PairScore]]:
    """Each matcher's name and score at each size: matches, the pose of `dune reloc` (the best of eight runs of
    MAGSAC) with the true intrinsics, errors.

    sizes_px: long sides that both photos are reduced to (0: not reduced; never enlarged); the matcher then works at its
    own size. threshold_px: of inliers, in pixels of the matched images. Seconds leave out decoding and reducing.
    """
    photos = [(read_photo(path).rgb, K) for path, K in ((pair.image1, pair.K1), (pair.image2, pair.K2))]
    for size_px in sizes_px:
        (rgb1, K1), (rgb2, K2) = (_downscale(rgb, K, size_px) for rgb, K in photos)
        for name, matcher in matchers.items():
            start = time.perf_counter()
            matches = matcher.match(rgb1, rgb2)
            matched = time.perf_counter()
            thresholds_px = threshold_px * matches.pixel_size1, threshold_px * matches.pixel_size2
            pose, _ = epipolar.best_relative_pose(matches.points1, matches.points2, K1, K2, thresholds_px, seed)
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
                    matches=len(matches.points1),
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
    """The confidence of a pose of `dune reloc`, and the larger of its rotation and translation direction errors."""

    set_name: str
    id: str
    confidence: float
    error_deg: float


@dataclass(frozen=True)
class ConfidenceBin:
    """Poses with a confidence in [low, high): how many, and the shares with errors below 5 and 10 degrees."""

    low: float
    high: float
    poses: int
    within5: float
    within10: float


def confidence_samples(
    matchers: Mapping[str, Matcher], pair: PosedPair, seed: int
) -> Iterator[tuple[str, ConfidenceSample]]:
    """Each matcher's name and sample: the pose of `dune reloc` with the true intrinsics, if there is one."""
    images = [CameraImage(read_photo(path), K, "given") for path, K in ((pair.image1, pair.K1), (pair.image2, pair.K2))]
    for name, matcher in matchers.items():
        backend = MatcherBackend(matcher)
        matches = backend.match(*backend.extract_all(images))
        result = relocalize(matches, SolverConfig("essential", seed=seed))
        if result.query_from_ref is not None:
            errors = np.degrees(epipolar.pose_error(result.query_from_ref, pair.cam2_from_cam1))
            yield name, ConfidenceSample(pair.set_name, pair.id, result.confidence, float(max(errors)))


def confidence_calibration(samples: Sequence[ConfidenceSample]) -> list[ConfidenceBin]:
    """The samples in bins of their confidence, and in one bin from 0.9 on."""
    bins = []
    for low, high in (*itertools.pairwise(CONFIDENCE_BINS), (0.9, 1.0)):
        errors = np.array([sample.error_deg for sample in samples if low <= sample.confidence < high])
        shares = [float((errors < limit).mean()) if len(errors) else float("nan") for limit in (5, 10)]
        bins.append(ConfidenceBin(low, high, len(errors), *shares))
    return bins


def random_poses(pairs: Sequence[PosedPair], size_px: int, seed: int, draws: int = 200) -> list[list[PairScore]]:
    """The control: no rotation and a random translation direction; `draws` runs over all pairs."""
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
    """Mean areas over runs (a matcher has one run), medians over all pairs of all runs."""
    runs = [list(run) for run in runs]
    scores = [score for run in runs for score in run]
    areas = np.mean([pose_auc([score.error_deg for score in run], THRESHOLDS_DEG) for run in runs], axis=0).tolist()
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
    """Group name -> names of its sets: each set, and "easy" (all but wide) where that is more than one set."""
    names = list(dict.fromkeys(pair.set_name for pair in pairs))
    easy = [name for name in names if name not in HARD_SETS]
    return {name: [name] for name in names} | ({"easy": easy} if len(easy) > 1 else {})


def _downscale(rgb: np.ndarray, K: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    if size_px == 0 or max(rgb.shape[:2]) <= size_px:
        return rgb, K
    small = resize(rgb, size_px)
    sx, sy = (1 / scale for scale in small.original_per_pixel)
    return small.rgb, scale_intrinsics(K, sx, sy)


def _read_set(file: Path) -> tuple[list[PosedPair], list[str]]:
    """The pairs of a file, and the reasons why others have no ground truth."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("pairs"), list):
        raise UserError(f'{file} is not a set of pairs: it needs an object with a list "pairs"')
    name = Fields(content, str(file)).text("name", None) or file.parent.name
    entries = [_read_pair(file, name, index, entry) for index, entry in enumerate(content["pairs"])]
    pairs = [entry for entry in entries if isinstance(entry, PosedPair)]
    repeated = [id for id, count in Counter(pair.id for pair in pairs).items() if count > 1]
    if repeated:
        raise UserError(f"{file} has the pair {shown(repeated[0])} twice; give each its own id")
    return pairs, [entry for entry in entries if isinstance(entry, str)]


def _read_pair(file: Path, set_name: str, index: int, value: Any) -> PosedPair | str:
    """The pair, or the reason why it has no ground truth."""
    entry = Fields(value, f"{file}, pair {index}")
    missing = [key for key in ("image_a", "image_b") if entry.get(key) is None]
    if missing:
        raise UserError(f"{entry.where} lacks {', '.join(missing)}")
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
