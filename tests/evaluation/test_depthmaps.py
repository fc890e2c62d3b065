"""Depth errors worked by hand, depth read beside cameras.json, and the dense part on a made-up set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.evaluation import depthmaps as benchmark
from dune_cli.evaluation import metrics
from dune_cli.evaluation.posed_sets import read_posed_sets
from dune_cli.geometry import cameras, poses
from dune_cli.matchers.sift import Sift
from dune_cli.sfm.scene import PointMap, View
from support.posed_sets import POSES, SIZE, VIEWS, K, write_set

NAN = float("nan")


def test_a_map_is_looked_up_at_the_photo_s_pixels() -> None:
    """A map of half the size: each of its pixels covers four of the photo's; what it does not cover is NaN."""
    depth = np.arange(1.0, 13.0).reshape(3, 4)
    image_from_map = np.linalg.inv(cameras.resize_transform(0.5))
    half = cameras.resize_transform(0.5) @ cameras.K_from_focal(10.0, 8, 6)
    pose = POSES[3]
    points = poses.transform_points(pose, cameras.backproject(cameras.pixel_grid(3, 4), depth, half))
    valid = np.ones((3, 4), bool)
    valid[0, 1] = False
    dense = PointMap(points, np.ones((3, 4)), valid, np.zeros((3, 4, 3), np.uint8), image_from_map)
    view = View("a", 9, 6, cameras.K_from_focal(10.0, 8, 6), "given", pose, dense=dense)
    estimated = benchmark.at_photo_pixels(view)
    expected = np.repeat(np.repeat(np.where(valid, depth, NAN), 2, 0), 2, 1)
    np.testing.assert_allclose(estimated[:, :8], expected)
    assert np.isnan(estimated[:, 8]).all()


def test_depth_is_read_in_metres(tmp_path: Path) -> None:
    (posed,) = read_posed_sets(write_set(tmp_path, depth=True))
    depths = benchmark.true_depths(posed)
    assert len(depths) == VIEWS and depths[0].shape == SIZE[::-1]
    assert 2 < np.median(depths[0]) < 9


@pytest.mark.parametrize(
    ("damage", "message"),
    [("one", "no depth was measured: 2.png"), ("scale", "is not metric"), ("size", "its photo 320 x 240")],
)
def test_what_has_no_depth_is_left_out_and_what_is_broken_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, message: str
) -> None:
    file = write_set(tmp_path, depth=True) / "made" / "cameras.json"
    document = json.loads(file.read_text())
    if damage == "one":
        del document["frames"][2]["depth"]
    elif damage == "scale":
        document["scale"] = "arbitrary"
    else:
        Image.fromarray(np.ones((5, 5), np.uint16)).save(file.parent / "0_depth.png")
    file.write_text(json.dumps(document))
    (posed,) = read_posed_sets(tmp_path)
    if damage == "size":
        with pytest.raises(UserError, match=message):
            benchmark.true_depths(posed)
        return
    depths = benchmark.true_depths(posed)
    assert message in capsys.readouterr().err
    if damage == "scale":
        assert depths is None
    else:
        assert [depth is None for depth in depths] == [False, False, True, False, False]


def test_photos_without_a_pose_take_no_other_s_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_set(tmp_path, depth=True) / "made" / "cameras.json"
    document = json.loads(file.read_text())
    whole = benchmark.true_depths(read_posed_sets(tmp_path)[0])
    del document["frames"][1]["T_cam_to_world"]
    file.write_text(json.dumps(document))
    (posed,) = read_posed_sets(tmp_path)
    assert "frame 1 lacks T_cam_to_world" in capsys.readouterr().err
    assert [image.name for image in posed.map.images] == [f"{i}.png" for i in (0, 2, 3, 4)]
    for depth, index in zip(benchmark.true_depths(posed), (0, 2, 3, 4), strict=True):
        np.testing.assert_array_equal(depth, whole[index])


def test_sets_without_depth_are_left_out(tmp_path: Path) -> None:
    (posed,) = read_posed_sets(write_set(tmp_path))
    assert benchmark.true_depths(posed) is None
    assert not list(benchmark.score_set(posed, Sift(320, 1500), ["low"], "cpu", 0))


@pytest.mark.usefixtures("quick_dense")
def test_the_dense_part_beats_its_controls(tmp_path: Path) -> None:
    (posed,) = read_posed_sets(write_set(tmp_path, depth=True))
    by_method = {name: scores for name, _, scores in benchmark.score_set(posed, Sift(320, 1500), ["low"], "cpu", 0)}
    assert list(by_method) == [benchmark.MEDIAN, benchmark.NEAREST, "dense low"]
    mean = {name: metrics.mean_depth_errors([score.errors for score in scores]) for name, scores in by_method.items()}
    assert mean["dense low"].close > max(mean[benchmark.MEDIAN].close, mean[benchmark.NEAREST].close)
    assert mean["dense low"].abs_rel < 0.05
    assert mean[benchmark.MEDIAN].completeness == 1
    assert len(by_method["dense low"]) == VIEWS
    assert K[0, 0] == posed.map.images[0].camera.K[0, 0]
