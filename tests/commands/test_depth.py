"""`dune depth`: real photos to files that other programs open; what is refused, in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.geometry.cameras import project
from dune_cli.io.depth_files import read_depth
from dune_cli.io.formats.ply import read_ply
from support.dinov2_head_files import write_small_set

HEAD, KITTI = "dinov2_vits14_nyu_dpt_head.pth", "dinov2_vits14_kitti_linear_head.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_set(tmp_path_factory.mktemp("head-weights"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A landscape, a portrait and a larger photo, all real ones."""
    folder = tmp_path_factory.mktemp("photos")
    coffee = Image.open(Path(__file__).parents[2] / "examples" / "photos" / "coffee.png").convert("RGB")
    coffee.resize((150, 100)).save(folder / "landscape.png")
    coffee.rotate(90, expand=True).resize((99, 151)).save(folder / "portrait.png")
    coffee.resize((301, 200)).save(folder / "large.png")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["depth", *map(str, arguments), "--device", "cpu", "--dtype", "float32"])


def good(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def document(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("name, size", [("landscape.png", (150, 100)), ("portrait.png", (99, 151))])
def test_png_npz_exr_and_ply_say_the_same(
    weights: Path, photos: Path, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    for kind in ("png", "npz", "exr", "ply"):
        result = good(photos / name, "--model", weights / HEAD, "-o", tmp_path / f"{kind}.{kind}", "--fov-deg", 60)
        assert result.stdout == f"{tmp_path / f'{kind}.{kind}'}\n"
    with np.load(tmp_path / "npz.npz") as arrays:
        depth, K = arrays["depth"], arrays["K"]
    assert depth.dtype == np.float32
    assert depth.shape == size[::-1]
    assert K[0, 0] == pytest.approx(max(size) / 2 / np.tan(np.radians(30)))
    facts = document(tmp_path / "png.png")
    assert (facts["schema"], facts["scale"], facts["unit"]) == ("dune.depth/1", "metric", "metre")
    assert (facts["png_scale"], facts["invalid"], facts["focal_source"]) == (1000.0, 0, "given")
    assert facts["K"] == K.tolist()
    assert facts["min"] == pytest.approx(depth.min())
    assert facts["max"] == pytest.approx(depth.max())
    assert 0.001 - 1e-6 <= facts["min"] < facts["max"] <= 10
    names = [model["name"] for model in facts["provenance"]["models"]]
    assert names == ["dinov2-vits14-nyu-dpt", "dinov2-vits14"]
    picture = Image.open(tmp_path / "png.png")
    assert picture.mode.startswith("I")
    assert np.abs(np.asarray(picture) / 1000 - depth).max() < 0.00101
    cloud = read_ply(tmp_path / "ply.ply")
    points = np.stack([cloud[axis] for axis in "xyz"], -1)
    pixels = project(points, K)
    x, y = np.rint(pixels).astype(int).T
    assert len(points) == depth.size
    assert np.abs(pixels - np.rint(pixels)).max() < 1e-3
    assert np.array_equal(
        np.stack([cloud[c] for c in ("red", "green", "blue")], -1), np.asarray(Image.open(photos / name))[y, x]
    )
    assert np.allclose(cloud["z"], depth[y, x])
    assert document(tmp_path / "ply.ply")["points"]["count"] == depth.size
    assert document(tmp_path / "exr.exr")["invalid"] == "NaN"


def test_a_folder_with_colours_and_json_on_stdout(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = good(photos, "--model", weights / KITTI, "-o", out, "--colormap", "--json")
    documents = json.loads(result.stdout)
    assert [entry["file"] for entry in documents] == ["landscape.png", "large.png", "portrait.png"]
    assert documents[0]["colormap"]["file"] == "landscape_color.png"
    assert len(list(out.iterdir())) == 9
    assert Image.open(out / "large_color.png").size == (301, 200)
    assert documents[0]["max"] > 10  # KITTI's range
    assert documents[0]["focal_source"] == "default"


def test_a_large_photo_is_reduced_for_the_network_only(weights: Path, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "cloud.ply"
    good(photos / "large.png", "--model", weights / HEAD, "-o", target, "--size", 150)
    facts = document(target)
    assert (facts["network"]["width"], facts["network"]["height"]) == (150, 100)
    assert facts["points"]["stride_px"] == 2
    assert facts["points"]["count"] == 151 * 100
    cloud = read_ply(target)
    pixels = project(np.stack([cloud[axis] for axis in "xyz"], -1), np.array(facts["K"]))
    assert np.abs(pixels / 2 - np.rint(pixels / 2)).max() < 1e-3


def test_flip_and_range_change_the_result(weights: Path, photos: Path, tmp_path: Path) -> None:
    results = []
    for index, more in enumerate([[], ["--flip"], ["--depth-range", "0.2,0.6"]]):
        target = tmp_path / f"{index}.npz"
        good(photos / "landscape.png", "--model", weights / HEAD, "-o", target, *more)
        results.append(np.load(target)["depth"])
    assert not np.allclose(results[0], results[1])
    assert results[2].min() >= 0.2 - 1e-6
    assert results[2].max() <= 0.6 + 1e-6


def test_a_two_view_file_gives_metric_depth(weights: Path, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "depth.npz"
    good(photos / "landscape.png", "--model", weights / "two_view.pth", "-o", target, "--size", 96)
    facts = document(target)
    assert facts["scale"] == "metric"
    assert facts["focal_source"] in ("estimated", "default")
    assert (facts["network"]["width"], facts["network"]["height"]) == (96, 64)
    with np.load(target) as arrays:
        assert arrays["confidence"].shape == (100, 150)
        assert np.isfinite(arrays["depth"]).all()


def test_the_default_model_and_its_licence(
    weights: Path,
    photos: Path,
    tmp_path: Path,
    dune: Callable[..., CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DUNE_WEIGHTS", str(weights))
    done = dune("depth", photos / "landscape.png", "-o", tmp_path / "d.png", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'd.png'}\n"
    *pins, licence = done.stderr.splitlines()
    assert licence == "dinov2-vits14-nyu-dpt, licence of the weights: Apache-2.0"
    assert all("trusted on first use" in line for line in pins)  # none where an earlier test has used them
    quiet = dune(
        "depth", photos / "landscape.png", "-o", tmp_path / "d.png", "--quiet", "--overwrite", "--device", "cpu"
    )
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_without_downloads_the_bundled_head_is_taken(
    example_photos: Path, tmp_path: Path, dune: Callable[..., CompletedProcess[str]]
) -> None:
    done = dune("depth", example_photos / "coffee.png", "-o", tmp_path / "d.png")
    assert done.returncode == 0, done.stderr
    licence, expected = done.stderr.splitlines()
    assert licence == "dune-depth, licence of the weights: Apache-2.0"
    assert re.fullmatch(r"dune-depth, experimental: metres of \d+ photos indoors were \d+% off on average", expected)
    document = json.loads((tmp_path / "d.json").read_text())
    assert document["scale"] == "metric" and document["expected_error"]["setting"] == "indoor"
    assert [model["name"] for model in document["provenance"]["models"]] == ["dune-depth", "dune-mini", "dune-segment"]
    depth = read_depth(tmp_path / "d.png")
    height = depth.shape[0]
    assert 0.3 < np.median(depth) < 10 and np.median(depth[: height // 4]) > np.median(depth[-height // 4 :])


def test_weights_that_are_named_and_missing(
    photos: Path, tmp_path: Path, dune: Callable[..., CompletedProcess[str]]
) -> None:
    named = dune("depth", photos / "landscape.png", "-o", tmp_path / "d.png", "--model", "mast3r-vitl")
    assert named.returncode == 3
    assert "dune weights pull mast3r-vitl" in named.stderr
    assert "non-commercial" in named.stderr
    assert not list(tmp_path.glob("d.*"))


def test_a_head_whose_encoder_is_missing(weights: Path, photos: Path, tmp_path: Path) -> None:
    alone = shutil.copy(weights / HEAD, tmp_path / HEAD)
    result = run(photos / "landscape.png", "--model", alone, "-o", tmp_path / "d.png")
    assert result.exit_code == 3
    assert "needs its encoder" in result.stderr
    assert "dune weights pull dinov2-vits14'" in result.stderr
    good(
        photos / "landscape.png",
        "--model",
        alone,
        "--encoder",
        weights / "dinov2_vits14_pretrain.pth",
        "-o",
        tmp_path / "d.png",
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "dinov2_vits14_pretrain.pth"], "a DINOv2 encoder"),
        (["--model", "dinov2_vits14_linear_head.pth"], "load_classifier \\(dune classify --model\\) takes it"),
        (["--model", HEAD, "--encoder", KITTI], "not an encoder model"),
        (["--model", HEAD, "--depth-range", "5"], "give MIN,MAX"),
        (["--model", HEAD, "--intrinsics", "1,2,3,4", "--fov-deg", "60"], "give one of them"),
        (["--model", HEAD, "--intrinsics", "1,2,3,4;1,2,3,4"], "2 cameras for 1 images"),
        (["--model", HEAD, "--format", "ply"], "contradicts the output"),
        (["--model", "two_view.pth", "--depth-range", "0.1,5"], "a two-view model has none"),
        (["--model", "two_view.pth", "--encoder", HEAD], "leave encoder"),
        (["--model", "dinov2_vitx14_nyu_dpt_head.pth"], "no such file"),
    ],
)
def test_bad_input_is_one_sentence(
    weights: Path, photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [weights / word if (weights / word).exists() else word for word in arguments]
    result = run(photos / "landscape.png", "-o", tmp_path / "d.png", *given)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not list(tmp_path.iterdir())


def test_outputs_are_checked_before_the_work(photos: Path, tmp_path: Path) -> None:
    for name, message in (("d.tiff", "allowed: .png .exr .npz .ply, or a folder"), ("d.png", "d.json exists already")):
        (tmp_path / "d.json").write_text("{}")
        result = run(photos / "landscape.png", "--model", "missing.pth", "-o", tmp_path / name)
        assert result.exit_code == 2
        assert message in result.stderr
    assert (tmp_path / "d.json").read_text() == "{}"
