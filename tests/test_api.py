"""The functions of `from dune_cli import ...`: the README's lines run, results are those of the commands, files are
saved, mistakes are one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dune_cli
from dune_cli import api, console
from dune_cli.cli import main
from dune_cli.errors import DuneError
from dune_cli.progress import Progress, listening
from support import ROOT

PHOTOS = ROOT / "examples" / "photos"
LEFT, RIGHT = PHOTOS / "motorcycle_left.png", PHOTOS / "motorcycle_right.png"
K = np.array(json.loads((PHOTOS / "motorcycle_intrinsics.json").read_text())[LEFT.name])
BASELINE_M = 0.193


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """A small photo as an array."""
    return np.asarray(Image.open(PHOTOS / "astronaut.png").convert("RGB").resize((160, 160)))


def test_depth_is_that_of_the_command(small: np.ndarray, tmp_path: Path) -> None:
    found = dune_cli.depth(small, fov_deg=60)
    assert found.depth.shape == (160, 160) and found.focal_source == "given" and found.scale == "metric"
    document = found.save(tmp_path / "depth.npz")
    assert json.loads((tmp_path / "depth.json").read_text())["schema"] == document["schema"] == "dune.depth/1"
    assert next(one["name"] for one in document["provenance"]["models"]) == "dune-depth"
    Image.fromarray(small).save(tmp_path / "photo.png")
    words = ["depth", str(tmp_path / "photo.png"), "-o", str(tmp_path / "same.npz"), "--fov-deg", "60"]
    assert CliRunner().invoke(main, words).exit_code == 0
    with np.load(tmp_path / "same.npz") as same:
        np.testing.assert_array_equal(same["depth"], found.depth)
    with pytest.raises(DuneError, match="exists already"):
        found.save(tmp_path / "depth.npz")
    found.save(tmp_path / "depth.npz", overwrite=True)


def test_classes_segments_features(small: np.ndarray, tmp_path: Path) -> None:
    scores = dune_cli.classify(small, top=3)
    assert len(scores) == 3 and scores[0].score >= scores[1].score and scores[0].name
    map_of = dune_cli.segment(small)
    assert map_of.classes.shape == (160, 160) and "person" in map_of.names
    assert map_of.save(tmp_path / "classes.png")["schema"] == "dune.classmap/1"
    features = dune_cli.encode(small, size=160)
    assert features.patches.shape == (10, 10, 256) and features.cls.shape == (256,)
    assert features.save(tmp_path / "features.npz")["grid"] == [10, 10]


def test_people(tmp_path: Path) -> None:
    found = dune_cli.people(PHOTOS / "astronaut.png", "dune-people", heights=[1.7])
    assert len(found.people) == 1 and found.assumed_height is not None and found.assumed_height.given
    document = found.save(tmp_path / "people.obj")
    assert document["schema"] == "dune.human/1" and (tmp_path / "people.obj").stat().st_size > 10_000
    found.save_overlay(tmp_path / "overlay.png")
    assert Image.open(tmp_path / "overlay.png").size == (512, 512)


def test_pairs_match_and_relocalize() -> None:
    pairs = dune_cli.match(LEFT, RIGHT, "sift")
    rows = np.abs(pairs.points1[:, 1] - pairs.points2[:, 1])  # rectified: partners lie in one row
    assert len(pairs.points1) > 100 and (rows < 2).mean() > 0.9
    pose = dune_cli.relocalize(RIGHT, LEFT, "sift", intrinsics=K, baseline=BASELINE_M)
    assert pose.success and pose.scale == "metric" and pose.rotation_deg < 0.2
    np.testing.assert_allclose(pose.ref_from_query[:3, 3], [BASELINE_M, 0, 0], atol=0.003)
    depth_m = np.full((500, 741), 3.0, np.float32)
    with pytest.raises(DuneError, match="give one of them"):
        dune_cli.relocalize(RIGHT, LEFT, "sift", ref_depth=depth_m, baseline=1.0)
    with pytest.raises(DuneError, match=r"ref_depth has the shape \(5, 5\)"):
        dune_cli.relocalize(RIGHT, LEFT, "sift", ref_depth=np.ones((5, 5)))


def test_reconstruct(tmp_path: Path) -> None:
    scene = dune_cli.reconstruct([LEFT, RIGHT], "sift", intrinsics=K, baseline=BASELINE_M, dense=False)
    assert scene.scale == "metric" and len(scene.registered) == 2 and scene.paths == (LEFT, RIGHT)
    document = scene.save(tmp_path / "scene.ply", colmap=tmp_path / "model")
    assert document["points"]["count"] > 100 and (tmp_path / "model" / "images.bin").exists()
    assert {one["path"] for one in document["provenance"]["inputs"]} == {str(LEFT), str(RIGHT)}
    with pytest.raises(DuneError, match="two photos are needed, got 1"):
        dune_cli.reconstruct(LEFT)


def test_masks_and_people_of_a_scene(tmp_path: Path) -> None:
    given = {"intrinsics": K, "baseline": BASELINE_M, "dense": False}
    scene = dune_cli.reconstruct([LEFT, RIGHT], "sift", masks=["person"], people=1.7, **given)
    assert "dune-segment" in {source.name for source in scene.sources}
    document = scene.save(tmp_path / "scene.glb")
    assert document["people"] == [] and document["assumed_height"]["given"]
    for wrong, message in (
        ({"masks": ["unicorn"]}, "unicorn"),
        ({"masks": tmp_path / "none"}, "none"),
        ({"texture": True}, "texture needs a surface"),
        ({"crs": "enu"}, "fewer than three of the 2 photos have a GPS position"),
    ):
        with pytest.raises(DuneError, match=message):
            dune_cli.reconstruct([LEFT, RIGHT], "sift", **given | wrong)


def test_progress_goes_to_the_caller(small: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Progress] = []
    dune_cli.reconstruct([LEFT, RIGHT], "sift", intrinsics=K, dense=False, progress=told.append)
    assert len(told) > 3 and all(isinstance(one, Progress) and one.step for one in told)
    assert any("match" in one.step for one in told)
    with listening(told.append):
        told.clear()
        assert list(console.progress([1, 2], "count", 2, "thing")) == [1, 2]
    assert told == [Progress("count", done, 2, "thing") for done in (0, 1, 2)]

    def stop(one: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dune_cli.reconstruct([LEFT, RIGHT], "sift", intrinsics=K, dense=False, progress=stop)
    assert "\r" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_photo(array: np.ndarray) -> None:
    with pytest.raises(DuneError, match="a photo as an array is"):
        dune_cli.depth(array)


def test_intrinsics_of_another_shape(small: np.ndarray) -> None:
    with pytest.raises(DuneError, match="intrinsics as an array are a matrix"):
        dune_cli.depth(small, intrinsics=np.ones(4))


def test_models_stay_in_memory(small: np.ndarray) -> None:
    dune_cli.depth(small)
    hits = api._network.cache_info().hits
    dune_cli.depth(small)
    assert api._network.cache_info().hits == hits + 1


def test_the_readmes_names_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (api.__doc__ or "")
    for line in re.findall(r"from dune_cli import (.+)", text):
        for name in line.split(","):
            assert hasattr(dune_cli, name.strip()), name
