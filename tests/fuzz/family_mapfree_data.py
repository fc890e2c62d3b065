"""A Map-free data set's text files, and submission ZIPs against them."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.evaluation import mapfree, mapfree_submission
from fuzz.harness import Sample

NAMES = ["seq0/frame_00000.jpg", *(f"seq1/frame_{number:05d}.jpg" for number in range(12))]


def samples(folder: Path) -> Sequence[Sample]:
    cameras = ["# frame fx fy cx cy W H", *(f"{name} 590.25 590 269.5 359.5 540 720" for name in NAMES)]
    poses = [f"{name} 0.99619470 0.08715574 0 0 0.1 0.02 -{k}.25" for k, name in enumerate(NAMES)]
    estimates = [f"{pose} {10 * k}" for k, pose in enumerate(poses)]
    submission = io.BytesIO()
    with zipfile.ZipFile(submission, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pose_s00000.txt", "\n".join(estimates) + "\n")
        archive.writestr("pose_s00001.txt", "\n".join(estimates[:3]) + "\n")
        archive.writestr("notes.txt", "from a test")
    texts = {
        "val/s00000/intrinsics.txt": "\n".join(cameras).encode() + b"\n",
        "val/s00000/poses.txt": "\n".join(poses).encode() + b"\n",
    }
    photos = {f"val/s00000/{name}": b"a photo" for name in NAMES}
    scored = {**texts, "s.zip": submission.getvalue()}
    return [
        Sample(scored, lambda case: mapfree.score(case / "val", case / "s.zip"), _are_scores),
        Sample(scored, lambda case: mapfree.score(case / "val", case / "s.zip"), _are_scores, list(texts)),
        Sample({"s.zip": scored["s.zip"]}, lambda case: mapfree.read_submission(case / "s.zip"), _are_estimates),
        Sample(
            {**texts, **photos},
            lambda case: mapfree_submission.read_scenes(case / "val"),
            _are_scenes,
            ["val/s00000/intrinsics.txt"],
        ),
    ]


def _are_scores(scores: dict[str, float]) -> None:
    assert all(math.isfinite(value) and value >= 0 for value in scores.values())
    assert all(value <= 1 + 1e-6 for name, value in scores.items() if "@" in name or "%" in name)


def _are_estimates(scenes: dict[str, dict[int, mapfree.FramePose]]) -> None:
    for frames in scenes.values():
        for pose in frames.values():
            assert abs(np.linalg.norm(pose.quaternion) - 1) < 1e-9
            assert np.isfinite(pose.centre).all() and math.isfinite(pose.confidence) and pose.confidence >= 0


def _are_scenes(scenes: list[mapfree_submission.SceneFolder]) -> None:
    for scene in scenes:
        for name, camera in {**scene.queries, "seq0/frame_00000.jpg": scene.reference}.items():
            assert (scene.path / name).resolve().is_relative_to(scene.path.resolve())
            assert np.isfinite(camera.K).all() and camera.K[0, 0] > 0 and camera.K[1, 1] > 0
            assert camera.width >= 1 and camera.height >= 1
