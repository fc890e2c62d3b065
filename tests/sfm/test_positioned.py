"""Flights that are adjusted to positions: drifting ones get straight, poor positions do no harm, and wrong ones are
named and have no part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.sim3 import move_poses, similarity_from_points
from dune_cli.io.crs import NamelessFrame
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.sfm.calibration import calibrate
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.georeference import CameraPositions, PositionPriors
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import PositionAdjustment, SfmModel

SIZE, MIDDLE, FOCAL = (1000, 750), (499.5, 374.5), 900.0
NOISE_PX = 0.7


@dataclass(frozen=True)
class Flight:
    """A model of photos as the mapper gives it, in axes and a unit of its own, and the true centres (V, 3)."""

    model: SfmModel
    correspondences: Correspondences
    cameras: PhotoCameras
    centres: np.ndarray

    def adjusted(
        self, positions: np.ndarray, sd_m: float, stated: bool = True
    ) -> tuple[SfmModel, PositionAdjustment | None, str]:
        """By positions (V, 3)."""
        indices = range(len(positions))
        given = CameraPositions(
            dict(zip(indices, positions)),
            {index: np.full(3, sd_m) for index in indices},
            stated,
            False,
            "table",
            {},
            NamelessFrame("that of a table"),
        )
        priors = PositionPriors(given)
        model, done, notes = priors.adjust(self.model, self.correspondences, self.cameras, seed=0)
        return model, done, " ".join(notes)

    def off(self, model: SfmModel, positions: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(V, 3) how far the cameras are off, the model laid over the right (V,) positions."""
        centres = np.stack([model.world_from_cam[index][:3, 3] for index in range(len(self.centres))])
        world_from_model = similarity_from_points(positions[right], centres[right])
        return poses.transform_points(world_from_model, centres) - self.centres


def flight(lines: int, photos: int, seed: int = 0, radial: float = 0.0) -> Flight:
    """A drone 80 m above hills of 8 m, whose lens is calibrated with the model."""
    rng = np.random.default_rng(seed)
    true = []
    for line in range(lines):
        for photo in range(photos):
            heading = 1.0 if line % 2 == 0 else -1.0
            x = 22.0 * (photo if heading > 0 else photos - 1 - photo)
            rotation = np.array([[0, heading, 0], [-heading, 0, 0], [0, 0, 1.0]]) @ np.diag([1.0, -1, -1])
            tilt = poses.rotation_from_rotvec(np.radians([2 * np.sin(photo), 3 * np.cos(line + photo), 0]))
            centre = np.array([x, 40.0 * line, 80 + 3 * np.sin(photo + 2.0 * line)])
            true.append(poses.from_rotation_translation(tilt @ rotation, centre))
    points = rng.uniform((-40, -40, 0), (22 * photos + 40, 40 * lines + 40, 8), (900, 3))
    lens = Camera("SIMPLE_RADIAL", (FOCAL, *MIDDLE, radial), *SIZE)
    keypoints, seen = [], []
    for pose in true:
        pixels = lens.project(poses.transform_points(poses.inverse(pose), points))
        seen.append(np.flatnonzero(((pixels > 0) & (pixels < SIZE)).all(-1)))
        keypoints.append(pixels[seen[-1]] + NOISE_PX * rng.standard_normal((len(seen[-1]), 2)))
    kept = np.bincount(np.concatenate(seen), minlength=len(points)) >= 2
    new_index = np.cumsum(kept) - 1
    observations = {
        index: (new_index[own[kept[own]]], np.flatnonzero(kept[own]).astype(np.int64)) for index, own in enumerate(seen)
    }
    model_from_world = np.eye(4)
    model_from_world[:3, :3] = 0.03 * poses.rotation_from_rotvec(rng.normal(size=3))
    model = SfmModel(
        {0: lens},
        dict(enumerate(move_poses(model_from_world, np.stack(true)))),
        poses.transform_points(model_from_world, points[kept]),
        np.zeros(int(kept.sum())),
        observations,
    )
    colors = tuple(np.zeros((len(pixels), 3), np.uint8) for pixels in keypoints)
    correspondences = Correspondences(tuple(keypoints), colors, (1.0,) * len(true), {})
    guess = PhotoCamera(Camera("PINHOLE", (FOCAL, FOCAL, *MIDDLE), *SIZE), "default")
    cameras = share_cameras([guess] * len(true))
    mapped = calibrate(model, correspondences, cameras, (), {}, 1.0)
    assert mapped is not None
    return Flight(mapped, correspondences, cameras, np.stack(true)[:, :3, 3])


def rms(off: np.ndarray) -> float:
    return float(np.sqrt((off**2).sum(axis=1).mean()))


@pytest.fixture(scope="module")
def strip() -> Flight:
    return flight(1, 40)


@pytest.fixture(scope="module")
def block() -> Flight:
    return flight(4, 9, seed=1, radial=-0.05)


def measured(flown: Flight, noise_m: float, wrong: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Positions (V, 3), and which of them are right (V,)."""
    rng = np.random.default_rng(seed)
    positions = flown.centres + noise_m * rng.normal(size=flown.centres.shape)
    right = np.ones(len(positions), bool)
    right[rng.choice(len(positions), wrong, replace=False)] = False
    positions[~right] += rng.choice([-1, 1], (wrong, 3)) * rng.uniform(12, 60, (wrong, 3))
    return positions, right


@pytest.mark.parametrize("wrong", [0, 7])
def test_a_strip_that_drifts_gets_straight_by_rtk(strip: Flight, wrong: int) -> None:
    positions, right = measured(strip, 0.05, wrong)
    model, done, note = strip.adjusted(positions, 0.05)
    assert done is not None
    assert rms(strip.off(strip.model, positions, right)) > 3  # of 860 m
    assert rms(strip.off(model, positions, right)[right]) < 0.12
    assert [index for index, agrees in done.agrees.items() if not agrees] == np.flatnonzero(~right).tolist()
    assert done.error_after_px < 1.15 * done.error_before_px  # less of the noise is fitted
    assert done.rms_after_m < 0.1 < 3 < done.rms_before_m and done.sigma == 1.0
    assert f"adjusted to {right.sum()} of 40 positions (table)" in note and f"-> {done.rms_after_m:.3g} m" in note


def test_two_metres_of_noise_do_no_harm(block: Flight) -> None:
    """The middle stays within sigma sqrt(3 / n) times two, and no camera is worse than before; the lens stays."""
    positions, right = measured(block, 2.0, 6)
    model, done, _ = block.adjusted(positions, 2.0)
    assert done is not None
    assert [index for index, agrees in done.agrees.items() if not agrees] == np.flatnonzero(~right).tolist()
    before, after = (block.off(one, positions, right) for one in (block.model, model))
    assert np.linalg.norm(after.mean(axis=0)) < 2 * 2.0 * np.sqrt(3 / right.sum())
    assert rms(after) < rms(before) + 0.05
    assert done.error_after_px < 1.05 * done.error_before_px
    assert model.cameras[0].distortion[0] == pytest.approx(-0.05, abs=0.005)


def test_what_is_stated_is_not_believed_where_the_residuals_contradict(block: Flight) -> None:
    positions, right = measured(block, 2.0, 0)
    boasting, done, _ = block.adjusted(positions, 0.02)
    assert done is not None and 60 < done.sigma < 140
    silent, own, _ = block.adjusted(positions, 1.0, stated=False)
    assert own is not None and own.sigma == pytest.approx(0.02 * done.sigma, rel=0.1)
    for model in (boasting, silent):
        assert rms(block.off(model, positions, right)) < rms(block.off(block.model, positions, right)) + 0.05


def test_few_positions_without_a_stated_error_are_not_taken_for_exact() -> None:
    """Six photos could follow six positions wherever these are."""
    few = flight(2, 3, seed=2)
    before, after = [], []
    for seed in range(4):
        positions, right = measured(few, 2.0, 0, seed)
        model, done, _ = few.adjusted(positions, 1.0, stated=False)
        assert model is not few.model
        assert done is not None and done.sigma > 0.7 and done.error_after_px < 1.1 * done.error_before_px
        shapes = (few.off(one, few.centres, right) for one in (few.model, model))
        for found, off in zip((before, after), shapes):
            found.append(rms(off))
    assert np.mean(after) < np.mean(before) + 0.1


def test_all_points_follow_and_the_result_is_the_same_again(block: Flight, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few observations decide, and the others fit as well."""
    from dune_cli.sfm import positioned

    monkeypatch.setattr(positioned, "MAX_OBSERVATIONS", 2000)
    positions, _ = measured(block, 0.05, 0)
    model, done, _ = block.adjusted(positions, 0.05)
    again, _, _ = block.adjusted(positions, 0.05)
    assert done is not None and model.points_world.tobytes() == again.points_world.tobytes()
    assert len(model.points_world) > 0.98 * len(block.model.points_world)
    assert done.error_after_px < 1.1 * done.error_before_px
    assert set(model.modes) == set(range(36)) and model.camera_sd.keys() == {0}


def test_positions_of_another_flight_change_nothing(block: Flight) -> None:
    rng = np.random.default_rng(4)
    model, done, _ = block.adjusted(rng.uniform(0, 200, block.centres.shape), 0.05)
    assert model is block.model and done is None
