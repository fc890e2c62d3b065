"""`dune reconstruct` of folders, videos and many photos: what is written, kept, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner
from PIL import Image

from dune_cli.cli import main
from dune_cli.io.formats.ply import read_ply
from dune_cli.mvs import densify
from support.command_line import QUICK_SIFT
from support.many_photos import INTRINSICS, arc, picture, write
from support.video_files import write_video

Dune = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("quick_sift", "quick_dense")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    write(place, range(5))
    return place


@pytest.fixture(scope="module")
def work(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which all photos and pairs are done."""
    place = tmp_path_factory.mktemp("done")
    done = CliRunner().invoke(main, words(folder, place / "scene.ply", "--no-dense"), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return place / "scene.work"


@pytest.fixture(scope="module")
def depth_maps() -> list[Any]:
    return []


@pytest.fixture
def dense_once(depth_maps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The depth maps of `folder` at `--quality low` are estimated by the first test that needs them."""
    estimate = densify.estimate_depth_maps

    def once(*arguments: Any) -> Any:
        if not depth_maps:
            depth_maps.append(estimate(*arguments))
        return depth_maps[0]

    monkeypatch.setattr(densify, "estimate_depth_maps", once)


def words(photos: Path, target: Path, *more: object) -> list[str]:
    return list(map(str, ["reconstruct", photos, "-o", target, "--matcher", "sift", "--intrinsics", INTRINSICS, *more]))


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(word) for word in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.usefixtures("dense_once")
def test_a_folder_gives_a_scene_and_all_that_was_asked_for(folder: Path, work: Path, tmp_path: Path) -> None:
    more = ("--colmap", tmp_path / "model", "--transforms", tmp_path / "t.json", "--depths", tmp_path / "depths")
    code, out, err = run(*words(folder, tmp_path / "scene.ply", "--work", work, "--quality", "low", *more))
    assert code == 0, err
    assert out.split() == [str(tmp_path / name) for name in ("scene.ply", "scene.json", "model", "t.json", "depths")]
    assert "5 of 5 photos registered" in err and "0 photos and 0 pairs were computed" in err
    scene = json.loads((tmp_path / "scene.json").read_text())
    assert scene["quality"]["registered"] == scene["quality"]["total"] == 5 and len(scene["pairs"]) == 10
    assert scene["world"] == "camera 0" and "unregistered" not in scene
    assert scene["provenance"]["work"] == {"folder": str(work), "computed": {}}
    assert scene["points"]["fields"][:6] == ["x", "y", "z", "nx", "ny", "nz"]
    cloud = read_ply(tmp_path / "scene.ply")
    assert len(cloud["x"]) == scene["points"]["count"] > 5000
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert model.num_reg_images() == 5 and model.compute_mean_track_length() > 1
    transforms = json.loads((tmp_path / "t.json").read_text())
    assert len(transforms["frames"]) == 5 and transforms["ply_file_path"] == "scene.ply"
    assert (tmp_path / transforms["frames"][0]["file_path"]).resolve() == (folder / "p0.png").resolve()
    depths = json.loads((tmp_path / "depths" / "depths.json").read_text())["depths"]
    assert {entry["image"] for entry in depths} <= {f"p{i}.png" for i in range(5)} and len(depths) >= 3
    for entry in depths:
        values = np.asarray(Image.open(tmp_path / "depths" / entry["file"]))
        assert values.dtype == np.uint16 and values.shape == (entry["height"], entry["width"])
    # the depth of a map means the same place as the cloud
    entry = depths[0]
    z = np.asarray(Image.open(tmp_path / "depths" / entry["file"])) / entry["png_scale"]
    true_step = np.linalg.norm(arc(1)[:3, 3] - arc(0)[:3, 3])
    assert 2.5 < np.median(z[z > 0]) * true_step < 8


@pytest.mark.usefixtures("dense_once")
@pytest.mark.parametrize("ending", ["glb", "obj", "npz"])
def test_the_other_endings(folder: Path, work: Path, tmp_path: Path, ending: str) -> None:
    texture = ["--texture"] if ending == "obj" else []
    code, out, err = run(*words(folder, tmp_path / f"scene.{ending}", "--work", work, "--quality", "low", *texture))
    assert code == 0, err
    scene = json.loads((tmp_path / "scene.json").read_text())
    if ending == "npz":
        arrays = np.load(tmp_path / "scene.npz")
        assert arrays["view4_world_from_cam"].shape == (4, 4) and arrays["sparse_pixels3"].shape[1] == 2
        assert arrays["sparse_index3"].max() < len(arrays["sparse_points"])
    else:
        assert scene["mesh"]["faces"] > 1000 and scene["mesh"]["groups"] == ["surface"]
    if texture:
        assert scene["mesh"]["texture"]["file"] == "scene.png" and "scene.mtl" in out
        with Image.open(tmp_path / "scene.png") as image:
            assert image.size == (scene["mesh"]["texture"]["width"], scene["mesh"]["texture"]["height"])


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_writes_the_same_bytes(folder: Path, work: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUICK_SIFT, *words(folder, tmp_path / "a" / "scene.ply", "--no-dense")]
    kept = tmp_path / "a" / "scene.work" / "matches"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(kept.glob("*/[!.]*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(kept.glob("*/[!.]*.safetensors")))
    assert 1 <= done < 10 and not (tmp_path / "a" / "scene.ply").exists()
    code, _, err = run(*command[3:])
    assert code == 0 and f"0 photos and {10 - done} pairs were computed" in err
    code, _, _ = run(*words(folder, tmp_path / "b" / "scene.ply", "--no-dense", "--work", work))
    assert (tmp_path / "a" / "scene.ply").read_bytes() == (tmp_path / "b" / "scene.ply").read_bytes()
    scenes = [json.loads((tmp_path / name / "scene.json").read_text()) for name in "ab"]
    assert scenes[0]["cameras"] == scenes[1]["cameras"] and scenes[0]["quality"] == scenes[1]["quality"]


@pytest.mark.parametrize(
    "more, code, said",
    [
        (("--ray-address", "host:6379"), 2, "--ray-address belongs to --engine ray"),
        (("--engine", "ray", "--ray-address", "host"), 2, "'host' is no address; give HOST:PORT"),
        (("--engine", "ray", "--ray-address", "127.0.0.1:1"), 1, "no Ray cluster answers at 127.0.0.1:1 within 5 s"),
        (("--workers", 2, "--matcher", "auto", "--model", "mast3r-vitl"), 2, "--workers belongs to --method matches"),
        (("--engine", "ray"), 4, "--engine ray needs the package ray, which is not installed; run: pip install"),
    ],
)
def test_engines_that_cannot_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], code: int, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("dune_cli.commands.reconstruct.weights", lambda *_: None)
    found, out, err = run(*words(folder, tmp_path / "scene.ply", "--no-dense", *more))
    assert (found, out) == (code, "") and said in err.splitlines()[-1]


@pytest.mark.slow
def test_a_video_gives_a_scene_of_its_sharpest_frames(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "walk.avi", [picture(i // 2) for i in range(10)])
    target = tmp_path / "scene.ply"
    code, _, err = run(*words(clip, target, "--fps", "5", "--no-dense", "--transforms", tmp_path / "t.json"))
    assert code == 0, err
    scene = json.loads(target.with_suffix(".json").read_text())
    assert scene["quality"] == scene["quality"] | {"registered": 5, "total": 5}
    assert scene["cameras"][0]["image"].startswith("walk_00000")
    frames = [tmp_path / f["file_path"] for f in json.loads((tmp_path / "t.json").read_text())["frames"]]
    assert all(frame.exists() for frame in frames)


def test_known_poses_are_kept_and_named_in_the_json(folder: Path, work: Path, tmp_path: Path) -> None:
    (tmp_path / "poses.json").write_text(json.dumps({f"p{i}.png": arc(i).tolist() for i in range(4)}))
    more = ("--work", work, "--no-dense", "--poses", tmp_path / "poses.json")
    code, _, err = run(*words(folder, tmp_path / "scene.ply", *more))
    assert code == 0, err
    assert "has no pose for 1 of 5 photos, which are estimated: p4.png" in err
    scene = json.loads((tmp_path / "scene.json").read_text())
    assert scene["world"] == "that of --poses" and scene["provenance"]["units"] == "those of --poses"
    for index in range(5):
        np.testing.assert_allclose(
            scene["cameras"][index]["world_from_cam"], arc(index), atol=1e-9 if index < 4 else 0.02
        )


def test_without_open3d_a_surface_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    code, _, err = run("reconstruct", folder, "-o", tmp_path / "s.glb")
    assert code == 4 and "a surface of several photos (not their points: -o scene.ply) needs the package open3d" in err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_leaves_no_work_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{broken")
    for option in ("--poses", "--rig"):
        code, _, err = run("reconstruct", folder, "-o", tmp_path / "s.ply", option, tmp_path / "broken.json")
        assert code == 2 and "is not a JSON file" in err
        assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


def test_two_photos_stay_a_pair_and_say_what_they_have_no_use_for(folder: Path, tmp_path: Path) -> None:
    pair = [folder / "p0.png", folder / "p2.png"]
    rest = ["--matcher", "sift", "--intrinsics", INTRINSICS]
    code, _, err = run("reconstruct", *pair, "-o", tmp_path / "a.ply", *rest)
    assert code == 0 and not (tmp_path / "a.work").exists()
    code, _, err = run("reconstruct", *pair, "-o", tmp_path / "b.ply", *rest, "--pairs", "all", "--no-dense")
    assert code == 0 and "two photos do not use --pairs, --no-dense" in err
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_the_preflight_prints_and_stops(folder: Path, tmp_path: Path) -> None:
    code, out, err = run(*words(folder, tmp_path / "scene.ply", "--preflight"))
    assert code == 0, err
    estimate = json.loads(out)
    assert estimate["photos"] == 5 and estimate["pairs"] == 10 and estimate["minutes"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words_of_it"),
    [
        (("--mesh", "tsdf", "-o", "scene.npz"), ("--mesh makes a surface, which scene.npz does not hold",)),
        (("--texture", "-o", "scene.ply"), ("--texture gives a picture, which scene.ply does not hold",)),
        (("--texture", "--no-dense", "-o", "scene.glb"), ("--texture needs a surface, which --no-dense leaves out",)),
        (("--pairs", "absent.txt"), ("cannot read the pairs file absent.txt",)),
        (("--poses", "absent.json"), ("absent.json",)),
        (("--poses", "@poses", "--baseline", "1"), ("--poses and --baseline both set the scale",)),
        (("--poses", "@strange"), ("has a pose for none of the 5 images",)),
        (("--fps", "3"), ("no video was named",)),
        (("--work", "@file"), ("the work folder", "another one with --work")),
        (("--transforms", "@scene"), ("is where the scene's own JSON goes",)),
        (("--retrieval-model", "absent.pth", "--pairs", "retrieval"), ("absent.pth",)),
        (("--matcher", "mast3r"), ("mast3r needs a two-view model",)),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    folder: Path, tmp_path: Path, more: tuple[str, ...], words_of_it: tuple[str, ...]
) -> None:
    (tmp_path / "poses.json").write_text(json.dumps({f"p{i}.png": arc(i).tolist() for i in range(5)}))
    (tmp_path / "strange.json").write_text(json.dumps({"x.png": arc(0).tolist()}))
    (tmp_path / "file").write_text("")
    names = {"@poses": "poses.json", "@strange": "strange.json", "@file": "file", "@scene": "scene.json"}
    asked = [str(tmp_path / names[word]) if word in names else word for word in more]
    code, out, err = run(*words(folder, tmp_path / "scene.ply", *asked))
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err and len(err.strip().splitlines()) <= 2
    for word in words_of_it:
        assert word in err
    assert not (tmp_path / "scene.ply").exists()


def test_photos_that_are_too_few_or_all_one(folder: Path, tmp_path: Path, dune: Dune) -> None:
    done = dune("reconstruct", folder / "p0.png", "-o", tmp_path / "scene.ply")
    assert done.returncode == 2 and "two photos are needed, got 1 (p0.png)" in done.stderr
    place = tmp_path / "copies"
    for index in range(3):
        write(place, (0,), prefix=f"copy{index}_")
    code, out, err = run(*words(place, tmp_path / "scene.ply"))
    assert (code, out) == (1, "") and "all 3 photos are the same picture" in err
    assert not (tmp_path / "scene.json").exists()
