"""A teacher's matches (ALIKED + LightGlue) between the frames of a scene: computed once, kept on disk.

The teacher looks at every frame once, whatever the number of its pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.atomic import atomic_path
from dune_cli.io.photos import read_photo
from dune_cli.matchers.base import FeatureMatcher
from dune_cli.training.matcher.scenes import Scene

FRAMES = 10  # of a scene, evenly chosen: the fewer, the wider the baselines
OFFSETS = (1, 2, 4)  # in the chosen frames, of the pairs that are matched


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


def match_scene(scene: Scene, teacher: FeatureMatcher, frames: int = FRAMES) -> SceneMatches:
    """Matches of a scene's evenly chosen frames, each with those 1, 2 and 4 places on."""
    chosen = np.unique(np.linspace(0, len(scene.photos) - 1, frames).round().astype(int))
    photos = [scene.photos[i] for i in chosen]
    features, sizes = [], []
    for path in photos:
        rgb = read_photo(path).rgb
        sizes.append((rgb.shape[1], rgb.shape[0]))
        features.append(teacher.extract(rgb))
    pairs = [(i, i + step) for step in OFFSETS for i in range(len(photos) - step)]
    found = [teacher.match_indices(features[i], features[j]) for i, j in pairs]
    return SceneMatches(
        scene=scene.name,
        names=tuple(path.name for path in photos),
        sizes=np.array(sizes, dtype=np.int32),
        points=tuple(f.photo.to_original(f.points).astype(np.float32) for f in features),
        pairs=np.array(pairs, dtype=np.int32).reshape(-1, 2),
        matches=tuple(np.stack(one[:2], axis=1).astype(np.int32) for one in found),
        scores=tuple(one[2] for one in found),
    )


def match_scenes(scenes: Iterable[Scene], teacher: FeatureMatcher, folder: Path, minutes: float = math.inf) -> int:
    """Fills `folder` with a file a scene, in order, going on where an earlier call stopped; returns how many it made.

    It stops after `minutes`. JobFailed when a file cannot be written.
    """
    import time

    began, made = time.monotonic(), 0
    for scene in console.progress([s for s in scenes if not file_of(folder, s.name).exists()], "teacher", "scene"):
        if time.monotonic() - began > 60 * minutes:
            break
        write_matches(file_of(folder, scene.name), match_scene(scene, teacher))
        made += 1
    return made


def file_of(folder: Path, scene: str) -> Path:
    """Where a scene's matches lie."""
    return folder / f"{scene}.matches.npz"


def write_matches(path: Path, found: SceneMatches) -> None:
    """One .npz file, whole or not at all."""
    arrays = {"names": np.array(found.names), "sizes": found.sizes, "pairs": found.pairs}
    arrays["scene"] = np.array(found.scene)
    for key in ("points", "matches", "scores"):
        values = getattr(found, key)
        arrays[f"{key}_counts"] = np.array([len(value) for value in values], dtype=np.int64)
        arrays[key] = np.concatenate(values) if values else np.zeros(0)
    try:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **arrays)
    except OSError as error:
        raise JobFailed(f"cannot write {path} ({error.strerror or error}); make room and run it again") from error


def read_matches(path: Path) -> SceneMatches:
    """What `write_matches` wrote. UserError for a file that is none of its."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {
                key: tuple(np.split(file[key], np.cumsum(file[f"{key}_counts"])[:-1]))
                for key in ("points", "matches", "scores")
            }
            return SceneMatches(
                scene=str(file["scene"]), names=tuple(file["names"].tolist()), sizes=file["sizes"], pairs=file["pairs"],
                **parts,
            )  # fmt: skip
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no teacher's matches ({error}); delete it and label again") from error
