"""`dune depth` and `dune reconstruct` with Depth Anything 3, by files in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli import load_depth, load_multiview
from dune_cli.cli import main
from dune_cli.io.bounded_resize import bounded_resize
from dune_cli.io.preprocess import to_photo
from dune_cli.sfm.multiview import K_to_centres
from support import EXAMPLE_PHOTOS
from support.da3_files import shared_da3
from support.posed_sets import write_set

PHOTO = EXAMPLE_PHOTOS / "coffee.png"  # 600 x 400, without EXIF
SIZE_PX = 126


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu", "--dtype", "float32"])


def depth_of(folder: Path, name: str, *arguments: object) -> tuple[np.ndarray, dict[str, Any], str]:
    """The depth, the JSON and the notes."""
    file = folder / "depth.npz"
    done = run("depth", PHOTO, "-o", file, "--overwrite", "--size", SIZE_PX, "--model", shared_da3(name), *arguments)
    assert done.exit_code == 0, done.output
    with np.load(file) as arrays:
        return arrays["depth"], json.loads(file.with_suffix(".json").read_text()), done.stderr


def prepared() -> tuple[torch.Tensor, np.ndarray]:
    with Image.open(PHOTO) as opened:
        one = bounded_resize(np.asarray(opened.convert("RGB")), SIZE_PX, 14)
    return torch.from_numpy(one.image)[None], one.network_from_image


def test_metres_where_the_focal_length_is_known(tmp_path: Path) -> None:
    images, to_image = prepared()
    with torch.inference_mode():
        raw = load_depth(shared_da3("da3_metric_mini"))(images)[0].numpy()
    expected = to_photo(raw, to_image, 600, 400)
    depth, document, notes = depth_of(tmp_path, "da3_metric_mini", "--intrinsics", "500,520,300,200")
    focal_px = (500 * 126 / 600 + 520 * 84 / 400) / 2
    assert np.allclose(depth, expected * focal_px / 300, rtol=1e-4)
    assert (document["scale"], document["unit"], document["focal_source"]) == ("metric", "metre", "given")
    assert 0 < document["sky"] < 1 and document["network"]["width"] == 126 and "relative" not in notes
    depth, document, notes = depth_of(tmp_path, "da3_metric_mini")
    assert np.allclose(depth, expected / np.median(expected), rtol=1e-4)
    assert (document["scale"], document["unit"], document["focal_source"]) == ("relative", None, "default")
    assert "coffee.png has no focal length in EXIF: its depth is relative; give --intrinsics or --fov-deg" in notes


def test_exif_makes_metres(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35  # millimetres on 35 mm film
    with Image.open(PHOTO) as opened:
        opened.convert("RGB").save(tmp_path / "exif.jpg", exif=exif)
    file = tmp_path / "depth.png"
    done = run("depth", tmp_path / "exif.jpg", "-o", file, "--size", 56, "--model", shared_da3("da3_metric_mini"))
    assert done.exit_code == 0, done.output
    document = json.loads(file.with_suffix(".json").read_text())
    assert (document["scale"], document["focal_source"]) == ("metric", "exif")


def test_relative_depth(tmp_path: Path) -> None:
    images, to_image = prepared()
    depth, document, notes = depth_of(tmp_path, "da3_mono_mini", "--fov-deg", 60, "--flip")
    assert np.median(depth) == pytest.approx(1, rel=1e-6) and "give --intrinsics" not in notes
    assert (document["scale"], document["focal_source"], document["sky"]) == ("relative", "given", 0)
    depth, document, _ = depth_of(tmp_path, "da3_small")
    with torch.inference_mode():
        out = load_multiview(shared_da3("da3_small"))(images)
    expected = to_photo(out.depth[0].numpy(), to_image, 600, 400)
    assert np.allclose(depth, expected / np.median(expected), rtol=1e-4)
    K = np.linalg.inv(to_image) @ K_to_centres(out.K[0].double().numpy())
    assert np.allclose(document["K"], K, rtol=1e-5) and np.allclose(K[:2, 2], [299.5, 199.5])
    assert (document["scale"], document["focal_source"]) == ("relative", "estimated") and "sky" not in document
    with np.load(tmp_path / "depth.npz") as arrays:
        assert arrays["confidence"].min() > 1


def test_depth_refuses(tmp_path: Path) -> None:
    done = run("depth", PHOTO, "-o", tmp_path / "d.png", "--model", shared_da3("da3_mono_mini"), "--depth-range", "1,2")
    assert done.exit_code == 2 and "a depth range belongs to a DINOv2 depth head; a monocular model" in done.stderr


def test_reconstruct(tmp_path: Path) -> None:
    """Deterministic weights are noise: the scene is one in form only."""
    folder = write_set(tmp_path) / "made"
    photos = [folder / f"{view}.png" for view in range(3)]
    words = ["--overwrite", "--size", SIZE_PX, "--model", shared_da3("da3_small"), "--no-dense", "--min-confidence", 1]
    scene = tmp_path / "scene.ply"
    done = run("reconstruct", *photos, "-o", scene, *words, "--depths", tmp_path / "depths")
    assert done.exit_code == 0, done.output
    document = json.loads(scene.with_suffix(".json").read_text())
    assert [camera["focal_source"] for camera in document["cameras"]] == ["estimated"] * 3
    assert (document["scale"], document["method"], len(document["pairs"])) == ("arbitrary", "pointmap", 3)
    with torch.inference_mode():
        model = load_multiview(shared_da3("da3_small"))
        rgb = [np.asarray(Image.open(photo).convert("RGB")) for photo in photos]
        images = np.stack([bounded_resize(one, SIZE_PX, 14).image for one in rgb])
        out = model(torch.from_numpy(images))
    first = out.cam_from_world.double()
    expected = (first[0] @ torch.linalg.inv(first[1])).numpy()
    found = np.array(document["cameras"][1]["world_from_cam"])
    assert np.abs(found[:3, :3] - expected[:3, :3]).max() < 1e-5
    metric = run("reconstruct", *photos, "-o", scene, *words, "--metric-model", shared_da3("da3_metric_mini"))
    assert metric.exit_code == 0, metric.output
    document = json.loads(scene.with_suffix(".json").read_text())
    assert document["scale"] == "metric" and len(document["provenance"]["models"]) == 2
    posed = run("reconstruct", *photos, "-o", scene, *words, "--poses", folder / "cameras.json", "--fov-deg", 60)
    assert posed.exit_code == 0, posed.output
    document = json.loads(scene.with_suffix(".json").read_text())
    true = json.loads((folder / "cameras.json").read_text())["frames"][2]["T_cam_to_world"]
    assert np.abs(np.array(document["cameras"][2]["world_from_cam"]) - true).max() < 1e-5
    assert document["cameras"][2]["focal_source"] == "given"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric-model", "da3_metric_mini"], "--metric-model goes with a multi-view --model"),
        (["--model", "da3_mono_mini"], "it holds a monocular model of Depth Anything 3"),
        (["--model", "da3_small", "--metric-model", "da3_mono_mini"], "is no metric model of Depth Anything 3"),
        (["--model", "da3_small", "--encoder", "da3_small"], "has its own encoder; leave --encoder out"),
        (["--model", "da3_small", "--fov-deg", "60", "--poses"], "2 given poses do not determine"),
    ],
)
def test_reconstruct_refuses(tmp_path: Path, words: list[str], message: str) -> None:
    folder = write_set(tmp_path) / "made"
    words = [str(shared_da3(word)) if word.startswith("da3_") else word for word in words]
    if words[-1] == "--poses":
        words.append(str(folder / "cameras.json"))
    photos = [folder / "0.png", folder / "1.png"]
    done = run("reconstruct", *photos, "-o", tmp_path / "scene.ply", "--size", "70", *words)
    assert done.exit_code == 2 and message in done.stderr
    assert [line.startswith("dune: ") for line in done.stderr.splitlines()].count(True) == 1
