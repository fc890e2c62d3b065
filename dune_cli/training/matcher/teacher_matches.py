"""A teacher's matches (ALIKED + LightGlue) between the frames of a scene, computed once and cached on disk.

Features are extracted once a frame, whatever the number of its pairs.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.io.cache import note_damaged, read_cached, text_array, text_of, write_cached
from dune_cli.io.photos import read_photo
from dune_cli.io.safe_read import parse_json
from dune_cli.matchers.matcher import FeatureMatcher
from dune_cli.provenance import sha256_of
from dune_cli.training.matcher.scenes import TrainingScene

FRAMES = 10  # of a scene, evenly spaced: the fewer, the wider the baselines
OFFSETS = (1, 2, 4)  # of the pairs that are matched, in selected frames
SCHEMA = "dune.teacher-matches/1"
ENDING = ".matches.safetensors"
RAGGED = {"points": (2, np.float32), "matches": (2, np.int32), "scores": (1, np.float32)}  # columns, dtype


@dataclass(frozen=True)
class SceneMatches:
    """Keypoints of N frames and matches of P pairs.

    names: the frames' file names. sizes (N, 2) int32: width, height. points: per frame (K, 2) float32 in the photo's
    pixels, centres at integers. pairs (P, 2) int32 into the frames. matches: per pair (M, 2) int32 into the frames'
    points, and scores (M,) float32.
    """

    scene: str
    names: tuple[str, ...]
    sizes: np.ndarray
    points: tuple[np.ndarray, ...]
    pairs: np.ndarray
    matches: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]


def match_scene(scene: TrainingScene, teacher: FeatureMatcher, frames: int = FRAMES) -> SceneMatches:
    """Matches of a scene's selected frames, each with those 1, 2 and 4 places on."""
    photos = select_frames(scene, frames)
    features, sizes = [], []
    for path in photos:
        rgb = read_photo(path).rgb
        sizes.append((rgb.shape[1], rgb.shape[0]))
        features.append(teacher.extract(rgb))
    pairs = [(i, i + step) for step in OFFSETS for i in range(len(photos) - step)]
    results = [teacher.match_indices(features[i], features[j]) for i, j in pairs]
    return SceneMatches(
        scene=scene.name,
        names=tuple(path.name for path in photos),
        sizes=np.array(sizes, dtype=np.int32),
        points=tuple(f.photo.to_original(f.points).astype(np.float32) for f in features),
        pairs=np.array(pairs, dtype=np.int32).reshape(-1, 2),
        matches=tuple(np.stack([index1, index2], axis=1).astype(np.int32) for index1, index2, _ in results),
        scores=tuple(scores for _, _, scores in results),
    )


def match_scenes(
    scenes: Sequence[TrainingScene], teacher: FeatureMatcher, folder: Path, minutes: float = math.inf
) -> int:
    """Writes a file into `folder` for each of `scenes`, in order; returns how many it wrote.

    It stops after `minutes`. JobFailed when a file cannot be written.
    """
    started, written = time.monotonic(), 0
    for scene in console.progress(scenes, "teacher", unit="scene"):
        if time.monotonic() - started > 60 * minutes:
            break
        write_matches(folder, scene, match_scene(scene, teacher))
        written += 1
    return written


def matches_file(folder: Path, scene: str) -> Path:
    """The file of a scene's matches."""
    return folder / f"{scene}{ENDING}"


def labelled_scenes(folder: Path) -> list[str]:
    """The names of the scenes with matches in `folder`."""
    return sorted(path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}"))


def select_frames(scene: TrainingScene, frames: int = FRAMES) -> list[Path]:
    """The evenly spaced photos of a scene that the teacher matches."""
    selected = np.unique(np.linspace(0, len(scene.photos) - 1, frames).round().astype(int))
    return [scene.photos[i] for i in selected]


def content_hash(scene: TrainingScene) -> str:
    """A hash of what a scene's matches depend on: the selected photos' names and contents, and the pairs."""
    digest = hashlib.sha256(json.dumps([scene.name, OFFSETS]).encode())
    for path in select_frames(scene):
        digest.update(json.dumps([path.name, sha256_of(path)]).encode())
    return digest.hexdigest()


def write_matches(folder: Path, scene: TrainingScene, matches: SceneMatches) -> None:
    """The matches of a scene in their file, whole or not at all, with a checksum. JobFailed if it cannot be written."""
    arrays = {"names": text_array(json.dumps(matches.names)), "sizes": matches.sizes, "pairs": matches.pairs}
    for name, (columns, dtype) in RAGGED.items():
        rows = getattr(matches, name)
        arrays[f"{name}_counts"] = np.array([len(row) for row in rows], dtype=np.int64)
        shape = (0, columns) if columns > 1 else (0,)
        arrays[name] = np.concatenate([np.zeros(shape, dtype), *rows]).astype(dtype)
    path = matches_file(folder, scene.name)
    try:
        write_cached(path, SCHEMA, content_hash(scene), arrays)
    except OSError as error:
        raise JobFailed(f"cannot write {path} ({error.strerror or error}); make room and run it again") from error


def read_matches(folder: Path, scene: TrainingScene) -> SceneMatches | None:
    """What `write_matches` wrote of the same photos; None, with a note, for a file that is damaged or something else.

    None without a note where there is no file, or one of other photos.
    """
    path = matches_file(folder, scene.name)
    arrays = read_cached(path, SCHEMA, content_hash(scene))
    if arrays is None:
        return None
    try:
        return _checked_matches(arrays, scene)
    except (KeyError, ValueError) as error:
        note_damaged(path, error)
        return None


def _checked_matches(arrays: dict[str, np.ndarray], scene: TrainingScene) -> SceneMatches:
    """ValueError or KeyError for arrays that are no matches of the scene's photos."""
    names = parse_json(text_of(arrays["names"]), "the list of names")
    if names != [path.name for path in select_frames(scene)]:
        raise ValueError("its photos are not those of the scene")
    frames = len(names)
    sizes = _checked_array(arrays, "sizes", np.int32, (frames, 2))
    pairs = _checked_array(arrays, "pairs", np.int32, (None, 2))
    if (sizes < 1).any():
        raise ValueError("sizes below 1 pixel")
    if ((pairs < 0) | (pairs >= frames)).any() or (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError("pairs of photos that do not exist")
    ragged: dict[str, tuple[np.ndarray, ...]] = {}
    for name, (columns, dtype) in RAGGED.items():
        rows = _checked_array(arrays, name, dtype, (None, columns) if columns > 1 else (None,))
        counts = _checked_array(arrays, f"{name}_counts", np.int64, (frames if name == "points" else len(pairs),))
        if (counts < 0).any() or (counts > len(rows)).any() or counts.sum() != len(rows):
            raise ValueError(f"the counts of {name} do not add up")
        ragged[name] = tuple(np.split(rows, np.cumsum(counts)[:-1])) if len(counts) else ()
    matches = SceneMatches(scene.name, tuple(names), sizes, pairs=pairs, **ragged)
    for (i, j), indices, scores in zip(pairs, matches.matches, matches.scores):
        limits = len(matches.points[i]), len(matches.points[j])
        if len(indices) != len(scores) or (indices < 0).any() or (indices >= limits).any():
            raise ValueError("matches of keypoints that do not exist")
    return matches


def _checked_array(arrays: dict[str, np.ndarray], name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    array = arrays[name]
    fits = array.ndim == len(shape) and all(length in (None, own) for length, own in zip(shape, array.shape))
    if array.dtype != dtype or not fits or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise ValueError(f"{name} is {array.dtype} of the shape {array.shape}, or not finite")
    return array
