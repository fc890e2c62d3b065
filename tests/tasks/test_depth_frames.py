"""Depth of a video's frames: one camera for all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tasks.test_depth import FlatGround, default, photo

from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.photos import Photo
from dune_cli.io.video import Frame
from dune_cli.tasks import depth as task


class Zooming(FlatGround):
    """Unsure of its first frame; then the focal length differs from frame to frame."""

    def __init__(self) -> None:
        super().__init__(100.0, confidence=1.2)
        self.seen = 0

    def points(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += 1
        self.focal_px, self.certainty = 100.0 + 10 * self.seen, 1.2 if self.seen == 1 else 3.0
        return super().points(images)


def shots(count: int) -> Iterator[tuple[Frame, Photo]]:
    for k in range(count):
        picture = photo(128, 96)
        yield Frame(k, k / 10, picture.rgb), picture


def test_the_first_focal_length_that_is_found_stays(capsys: pytest.CaptureFixture[str]) -> None:
    results = list(task.predict_frames(Zooming(), shots(4), default(photo(128, 96))))
    assert [frame.index for frame, _ in results] == [0, 1, 2, 3]
    assert [result.focal_source for _, result in results] == ["default", *["estimated"] * 3]
    assert results[1][1].K[0, 0] == pytest.approx(120, rel=1e-4)
    assert all(np.array_equal(result.K, results[1][1].K) for _, result in results[2:])
    assert (
        capsys.readouterr().err
        == "no focal length fits the points of 1 of the frames of p.png: theirs is the default\n"
    )


def test_a_known_camera_stays() -> None:
    K = K_from_focal(77.0, 128, 96)
    for _, result in task.predict_frames(Zooming(), shots(2), (K, "given")):
        assert np.array_equal(result.K, K)
        assert result.focal_source == "given"


def test_frames_come_one_by_one() -> None:
    drawn = []

    def watched() -> Iterator[tuple[Frame, Photo]]:
        for shot in shots(5):
            drawn.append(shot[0].index)
            yield shot

    results = task.predict_frames(FlatGround(110.0), watched(), default(photo(128, 96)))
    next(results)
    assert drawn == [0]
    next(results)
    assert drawn == [0, 1]
