"""What lengths are taken from: copies, cameras that stand still, and poses that share a centre set no unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import JobFailed, UserError
from dune_cli.evaluation import metrics
from dune_cli.geometry.sim3 import scale_of, similarity_from_poses
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Run
from dune_cli.sfm import scale
from dune_cli.sfm.scene import Scene, SparsePoints, View
from dune_cli.tasks.reconstruct import matches
from dune_cli.tasks.reconstruct.config import MatchesConfig
from support import many_photos
from support.many_photos import K, arc, write


def reconstruct(paths: list[Path], work: Path, poses=None, **settings) -> Scene:
    matcher = Sift(working_size_px=320, max_keypoints=1500)
    cameras = [PhotoCamera.of_matrix(K, "given", many_photos.WIDTH, many_photos.HEIGHT)] * len(paths)
    config = MatchesConfig(**settings)
    return matches.reconstruct(paths, lambda infos: cameras, matcher, config, Run(), WorkFolder(work), None, poses)


@pytest.fixture(scope="module")
def with_copies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two re-saved copies of the first photo, then the camera moves."""
    folder = tmp_path_factory.mktemp("still")
    write(folder, [0, 1, 2, 3], prefix="q")
    for quality in (88, 93):
        Image.fromarray(many_photos.picture(0)).save(folder / f"p{quality}.jpg", quality=quality)
    return sorted(folder.iterdir())


def test_copies_set_no_unit_and_are_named(with_copies: list[Path], tmp_path: Path) -> None:
    scene = reconstruct(with_copies, tmp_path / "work")
    centres = np.stack([view.world_from_cam[:3, 3] for view in scene.views])
    assert scene.registered == list(range(6))
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    np.testing.assert_allclose(steps[2:], 1, rtol=0.1)
    assert steps[:2].max() < 0.05
    note = next(note for note in scene.notes if "in one place" in note)
    assert "p93.jpg as p88.jpg" in note and "q0.png as p88.jpg" in note


def test_a_baseline_between_copies_is_refused(with_copies: list[Path], tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"p88\.jpg and p93\.jpg were taken in one place; name two others first"):
        reconstruct(with_copies, tmp_path / "work", baseline=0.25)


def test_known_poses_of_one_centre_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path / "photos", range(3))
    there = np.array([4000.0, 5000.0, 100.0])
    known = {}
    for index, path in enumerate(paths):
        known[path] = arc(index).copy()
        known[path][:3, 3] = there + 1e-7 * index
    with pytest.raises(UserError, match="all 3 centres of --poses are in one place"):
        reconstruct(paths, tmp_path / "work", known)


def _scene(centres: list[float], depth: float) -> Scene:
    """Cameras at these x, all of which see ten points at one depth."""
    points = np.column_stack([np.linspace(-1, 1, 10), np.zeros(10), np.full(10, depth)])
    views = []
    for x in centres:
        pose = np.eye(4)
        pose[0, 3] = x
        views.append(View(f"{x}.jpg", 320, 240, K, "given", pose))
    sparse = SparsePoints.from_full_tracks(
        points, np.zeros((10, 3), np.uint8), np.ones(10), [np.zeros((10, 2))] * len(views)
    )
    return Scene("matches", tuple(views), (), sparse, "arbitrary", "note", 0.5, 1.0, ())


def test_a_video_that_begins_on_the_spot_has_the_unit_of_its_steps() -> None:
    still = [0.0, 1e-4, -2e-4, 1.5e-4, 0.0, 1e-4]
    scene = scale.scale_by_motion(_scene([*still, 0.3, 0.6, 0.9], depth=5.0), 1.0)
    centres = [view.world_from_cam[0, 3] for view in scene.views]
    assert centres[-1] - centres[-2] == pytest.approx(1)


def test_tiny_steps_that_add_up_are_a_unit() -> None:
    scene = scale.scale_by_motion(_scene([0.0, 1e-3, 2e-3, 3e-3], depth=5.0), 1.0)
    centres = np.array([view.world_from_cam[0, 3] for view in scene.views])
    assert 2 < np.ptp(centres) < 4
    with pytest.raises(JobFailed, match="stand in one place"):
        scale.scale_by_motion(_scene([0.0, 0.0, 0.0], depth=5.0), 1.0)


def test_a_baseline_of_less_than_the_matches_can_tell_is_refused() -> None:
    assert scale.scale_by_baseline(_scene([0.0, 0.3, 0.6], depth=5.0), 2.0, 1.0).baseline() == pytest.approx(2)
    with pytest.raises(JobFailed, match="taken in one place"):
        scale.scale_by_baseline(_scene([0.0, 0.02, 0.6], depth=5.0), 2.0, 1.0)


def test_still_cameras_do_not_set_the_scale_of_an_alignment() -> None:
    rng = np.random.default_rng(0)
    true = np.tile(np.eye(4), (8, 1, 1))
    true[6, 0, 3], true[7, 0, 3] = 1.0, 2.0
    found = true.copy()
    found[:, :3, 3] = 3 * true[:, :3, 3]
    true[:6, :3, 3] += 1e-4 * rng.standard_normal((6, 3))
    found[:6, :3, 3] += 1e-2 * rng.standard_normal((6, 3))
    assert scale_of(similarity_from_poses(true, found)) == pytest.approx(1 / 3, rel=0.02)
    # and directions between them are none
    rotations, _ = metrics.pair_errors_deg(true, found)
    assert len(rotations) == 13
