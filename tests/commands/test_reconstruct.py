"""`dune reconstruct` of two photos: what it writes and prints, that it repeats to the byte, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dune_cli.checkpoints import loader
from dune_cli.cli import main
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.preprocess import Prepared
from dune_cli.sfm import multiview
from dune_cli.tasks.reconstruct import pointmaps
from support.command_line import QUICK_SIFT
from support.exact_models import ExactTwoView
from support.published_files import Fixture, mast3r_tree, small_two_files
from support.two_photos import HEIGHT, INTRINSICS, POSES, WIDTH, K, write_photos

Dune = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("quick_sift")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"))


def arguments(photos: list[Path], target: Path, *more: object) -> list[str]:
    words = ["reconstruct", *photos, "-o", target, "--matcher", "sift", "--intrinsics", INTRINSICS, *more]
    return [str(word) for word in words]


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """One sentence on stderr with these words, nothing on stdout, this exit code."""
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_two_runs_write_the_same_bytes_and_the_scene_beside_them(
    dune: Dune, photos: list[Path], tmp_path: Path
) -> None:
    """One of them as a real process."""
    words = {name: arguments(photos, tmp_path / name / "scene.ply", "--seed", "7") for name in ("a", "b")}
    command = [sys.executable, "-c", QUICK_SIFT, *words["b"]]
    runs = [dune(*words["a"]), subprocess.run(command, capture_output=True, text=True, timeout=300)]
    for done, name in zip(runs, ("a", "b")):
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(tmp_path / name / f"scene.{end}") for end in ("ply", "json")]
    assert (tmp_path / "a/scene.ply").read_bytes() == (tmp_path / "b/scene.ply").read_bytes()
    scenes = [json.loads((tmp_path / name / "scene.json").read_text()) for name in ("a", "b")]
    assert scenes[0]["cameras"] == scenes[1]["cameras"] and scenes[0]["quality"] == scenes[1]["quality"]

    scene = scenes[0]
    assert scene["schema"] == "dune.scene/1" and scene["method"] == "matches" and scene["scale"] == "arbitrary"
    assert [camera["focal_source"] for camera in scene["cameras"]] == ["given", "given"]
    np.testing.assert_allclose(scene["cameras"][1]["K"], K)
    assert len(read_ply(tmp_path / "a/scene.ply")["x"]) == scene["points"]["count"] > 0.5 * WIDTH * HEIGHT
    provenance = scene["provenance"]
    assert provenance["seed"] == 7 and provenance["units"] == "baseline" and "OpenCV" in provenance["axes"]
    assert [Path(entry["path"]).name for entry in provenance["inputs"]] == ["one.png", "two.png"]
    assert {"match", "pose", "dense", "write"} <= set(provenance["seconds"])
    # the report: matches, inliers, error, parallax, points
    report = runs[0].stderr.strip().splitlines()[-1]
    for word in ("matches", "inliers", "reprojection error", "px", "parallax", "deg", "points", "dense", "scale"):
        assert word in report


def test_glb_in_metres_with_a_colmap_model_and_json_on_stdout(dune: Dune, photos: list[Path], tmp_path: Path) -> None:
    more = ("--baseline", "0.4", "--colmap", tmp_path / "model", "--colmap-format", "text", "--json", "--quiet")
    done = dune(*arguments(photos, tmp_path / "scene.glb", *more))
    assert (done.returncode, done.stderr) == (0, "")
    scene = json.loads(done.stdout)
    assert scene == json.loads((tmp_path / "scene.json").read_text())
    assert scene["scale"] == "metric" and "scale_note" not in scene and scene["mesh"]["faces"] > 10_000
    centre = np.array(scene["cameras"][1]["world_from_cam"])[:3, 3]
    assert abs(np.linalg.norm(centre) - 0.4) < 1e-9
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    for camera in scene["cameras"]:
        image = model.find_image_with_name(camera["image"])
        np.testing.assert_allclose(image.cam_from_world().matrix(), np.array(camera["cam_from_world"])[:3], atol=1e-6)
        np.testing.assert_allclose(model.camera(image.camera_id).calibration_matrix()[0, 0], 300)
    assert (tmp_path / "model/cameras.txt").exists()


@pytest.mark.parametrize("ending", ["obj", "npz"])
def test_the_other_endings(photos: list[Path], tmp_path: Path, ending: str) -> None:
    done = CliRunner().invoke(main, arguments(photos, tmp_path / f"scene.{ending}", "--size", "200"))
    assert done.exit_code == 0, done.output
    scene = json.loads((tmp_path / "scene.json").read_text())
    if ending == "obj":
        assert scene["mesh"]["faces"] > 1000 and scene["points"]["file"] is None
    else:
        arrays = np.load(tmp_path / "scene.npz")
        assert arrays["view0_depth"].shape == (150, 200)


def test_a_degenerate_pair_ends_with_one_sentence_and_no_file(dune: Dune, photos: list[Path], tmp_path: Path) -> None:
    done = dune(*arguments([photos[0], photos[0]], tmp_path / "scene.ply"))
    refused(done, 1, "same photo twice")
    rotation = cv2.Rodrigues(np.array([0.0, 0.1, 0.02]))[0]
    turned = cv2.warpPerspective(np.array(Image.open(photos[0])), K @ rotation @ np.linalg.inv(K), (WIDTH, HEIGHT))
    Image.fromarray(turned).save(tmp_path / "turned.png")
    done = dune(*arguments([photos[0], tmp_path / "turned.png"], tmp_path / "scene.ply"))
    refused(done, 1, "rotation alone")
    assert not (tmp_path / "scene.ply").exists() and not (tmp_path / "scene.json").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--method", "pointmap"), ("--method pointmap needs a two-view --model",)),
        (("--encoder", "x.pth"), ("--encoder goes with a two-view --model",)),
        (("--method", "pointmap", "--model", "x.pth", "--matcher", "sift"), ("--matcher sift goes with",)),
        (("--matcher", "sifft"), ("unknown matcher 'sifft'", "did you mean sift")),
        (("--intrinsics", "1,2,3"), ("--intrinsics '1,2,3'", "fx,fy,cx,cy")),
        (("--colmap", "x"), ("different image names", "twice")),
        (("--model", "no_such.pth"), ("no_such.pth",)),
        (("--baseline", "0"), ("--baseline",)),
        (("--fill", "--no-dense"), ("--fill fills dense depth maps", "--no-dense")),
        (("--fill", "--model", "x.pth"), ("--fill goes with --method matches",)),
    ],
)
def test_what_does_not_go_together_is_refused(
    photos: list[Path], tmp_path: Path, more: tuple[str, ...], words: tuple[str, ...]
) -> None:
    same = "--colmap" in more
    images = [photos[0], photos[0]] if same else photos
    done = CliRunner().invoke(
        main, ["reconstruct", *map(str, images), "-o", str(tmp_path / "scene.ply"), *more], catch_exceptions=False
    )
    assert done.exit_code == 2, done.output
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_outputs_and_photos_are_checked_before_the_work(dune: Dune, photos: list[Path], tmp_path: Path) -> None:
    refused(dune(*arguments(photos, tmp_path / "scene.xyz")), 2, ".xyz", ".ply .glb .las .laz .npz .obj")
    refused(dune(*arguments(photos[:1], tmp_path / "scene.ply")), 2, "two photos are needed, got 1")
    refused(dune(*arguments([photos[0], tmp_path / "none.png"], tmp_path / "scene.ply")), 2, "none.png")
    (tmp_path / "scene.json").write_text("mine")
    refused(dune(*arguments(photos, tmp_path / "scene.ply")), 2, "scene.json exists already", "--overwrite")
    assert (tmp_path / "scene.json").read_text() == "mine"
    refused(dune(*arguments(photos, tmp_path / "scene.json" / "scene.ply")), 2, "scene.json")


def test_a_terminated_run_unwinds_although_pycolmap_is_loaded() -> None:
    code = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
from dune_cli import optional
optional.import_pycolmap("this test")
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
finally:
    print("unwound")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "unwound\n", "")


def test_a_missing_pycolmap_is_named_before_the_work(photos: list[Path], tmp_path: Path) -> None:
    code = "import sys; sys.modules['pycolmap'] = None; from dune_cli.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments(photos, tmp_path / "scene.ply")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    refused(done, 4, "needs the package pycolmap", "pip install pycolmap")


def test_a_two_view_model_gives_a_metric_scene(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = ExactTwoView([K, K], POSES, [(WIDTH, HEIGHT)] * 2)
    asked = []
    monkeypatch.setattr(multiview, "load_scene_model", lambda *args: asked.append(args) or exact)
    model, encoder = tmp_path / "m.pth", tmp_path / "e.pth"
    for file in (model, encoder):
        file.write_bytes(b"weights")
    words = ["reconstruct", *map(str, photos), "-o", str(tmp_path / "scene.ply")]
    words += ["--model", str(model), "--encoder", str(encoder)]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert asked == [(str(model), str(encoder), None, "auto", "auto")]
    scene = json.loads((tmp_path / "scene.json").read_text())
    assert scene["method"] == "pointmap" and scene["scale"] == "metric"
    assert [camera["focal_source"] for camera in scene["cameras"]] == ["estimated", "estimated"]
    np.testing.assert_allclose(scene["cameras"][1]["world_from_cam"], POSES[1], atol=1e-3)
    assert scene["provenance"]["models"] == [{"name": "exact", "sha256": "ab" * 32, "licence": "none"}]
    assert scene["provenance"]["units"] == "metre"


@pytest.mark.parametrize("layout", ["mast3r", "dune + mast3r"])
def test_files_in_the_official_layouts_run_and_untrained_maps_give_no_pose(
    dune: Dune, photos: list[Path], tmp_path: Path, layout: str
) -> None:
    if layout == "mast3r":
        fixture = Fixture("mast3r_mini")
        torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
        files: tuple[str | Path, ...] = ("--model", tmp_path / "mini.pth")
    else:
        decoder, encoder = small_two_files(tmp_path)
        files = ("--model", decoder, "--encoder", encoder)
    words = ("--intrinsics", INTRINSICS, "--size", "160", "--min-confidence", "1", "--dtype", "float32")
    done = dune("reconstruct", *photos, "-o", tmp_path / "scene.ply", *files, *words)
    refused(done, 1, "no camera pose fits the model's points of two.png", "licence")
    assert not (tmp_path / "scene.ply").exists() and not (tmp_path / "scene.json").exists()


def test_the_scene_is_made_of_the_networks_own_maps(tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
    model = loader.load_two_view(tmp_path / "mini.pth", None, "cpu", "float32")
    seeds = fixture.config["image_seeds"]
    inputs = [Prepared(fixture.image(seed)[0].numpy(), np.eye(3)) for seed in seeds]
    maps, _ = pointmaps.predict(model, inputs, swapped=False)
    for view, one in enumerate(maps, start=1):
        expected = fixture.expected[f"pts3d_{view}"]
        error = np.linalg.norm(one.points[::2, ::2] - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert error.max() < 1e-3
        np.testing.assert_allclose(one.confidence[::2, ::2], fixture.expected[f"conf_{view}"], rtol=1e-3)
    # the swapped pair's first view is what swapped inputs give
    _, own = pointmaps.predict(model, inputs, swapped=True)
    swapped, _ = pointmaps.predict(model, inputs[::-1], swapped=False)
    np.testing.assert_allclose(own.points, swapped[0].points, rtol=1e-5, atol=1e-6)
