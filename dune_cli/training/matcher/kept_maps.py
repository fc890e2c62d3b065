"""Maps of training scenes on disk, so that structure from motion runs once a scene and every start trains on the same.

A map lies beside the teacher's matches that it was made of, and is made anew when they or the seed change.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.io.npz import write_npz
from dune_cli.provenance import sha256_of
from dune_cli.training.matcher.mapping import Mapped, map_scene
from dune_cli.training.matcher.teacher_matches import SceneMatches, file_of


def kept_map(found: SceneMatches, folder: Path, seed: int) -> Mapped | None:
    """`map_scene` of the matches that lie in `folder`, kept there as `<scene>.map.npz`. JobFailed if it cannot be."""
    path = folder / f"{found.scene}.map.npz"
    made_of = f"{sha256_of(file_of(folder, found.scene))} {seed}"
    kept = _read(path, made_of)
    if kept is not None:
        return kept if len(kept.frames) else None
    mapped = map_scene(found, seed)
    whole = mapped or Mapped(np.zeros(0, np.int64), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), ())
    arrays = {"made_of": np.array(made_of), "frames": whole.frames, "K": whole.K, "poses": whole.cam_from_world}
    arrays["counts"] = np.array([len(points) for points in whole.points], dtype=np.int64)
    arrays["points"] = np.concatenate(whole.points) if whole.points else np.zeros(0, np.int64)
    try:
        write_npz(path, **arrays)
    except OSError as error:
        raise JobFailed(f"cannot write {path} ({error.strerror or error}); make room and run it again") from error
    return mapped


def _read(path: Path, made_of: str) -> Mapped | None:
    """A kept map, of no frame where none could be placed. None without a whole file that is of these matches."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_of"]) != made_of:
                return None
            points = tuple(np.split(file["points"], np.cumsum(file["counts"])[:-1])) if len(file["counts"]) else ()
            return Mapped(file["frames"], file["K"], file["poses"], points)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
