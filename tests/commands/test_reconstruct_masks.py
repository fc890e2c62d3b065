"""`dune reconstruct --masks DIR --mask CLASS`: the left of each photo shows a scene that moves another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.evaluation.metrics import camera_errors, extent
from dune_cli.sfm import class_maps
from support.many_photos import HEIGHT, INTRINSICS, WIDTH, arc, picture

pytestmark = pytest.mark.usefixtures("quick_sift", "quick_dense")
PLACES = range(4)
MIDDLE = 140  # px: what moves is to the left


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["reconstruct", *map(str, words), "--matcher", "sift", "--intrinsics", INTRINSICS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and masks/; the photos' left sides are seen from the places in the other order."""
    root = tmp_path_factory.mktemp("masks")
    (root / "photos").mkdir()
    (root / "masks").mkdir()
    used = np.zeros((HEIGHT, WIDTH), np.uint8)
    used[:, MIDDLE:] = 255
    for place in PLACES:
        rgb = picture(place).copy()
        rgb[:, :MIDDLE] = picture(len(PLACES) - 1 - place)[:, :MIDDLE]
        Image.fromarray(rgb).save(root / "photos" / f"p{place}.png")
        Image.fromarray(used).save(root / "masks" / f"p{place}.png")
    return root


def test_what_moves_stays_out_of_cameras_points_and_the_undistorted_folder(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "scene.npz"
    words = (folder / "photos", "-o", target, "--quality", "low", "--masks", folder / "masks")
    done = run(*words, "--work", folder / "work", "--undistort", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    scene: dict[str, Any] = json.loads(done.stdout)
    off = camera_errors(np.stack([arc(i) for i in PLACES]), np.array([c["world_from_cam"] for c in scene["cameras"]]))
    assert off.rotation_deg.max() < 0.5 and off.centre.max() < 0.03 * extent(np.stack([arc(i) for i in PLACES]))
    masks = scene["masks"]
    assert 0 < masks["masked"] < masks["keypoints"] and masks["by"] == {"--masks": masks["masked"]}
    assert f"{masks['masked']} of {masks['keypoints']} keypoints are masked" in done.stderr
    arrays = np.load(target)
    valid = 0
    for index in PLACES:
        assert (arrays[f"sparse_pixels{index}"][:, 0] >= MIDDLE - 0.5).all()
        if f"view{index}_valid" in arrays:
            shown = arrays[f"view{index}_valid"]
            valid += shown.sum()
            assert not shown[:, : shown.shape[1] * (MIDDLE - 1) // WIDTH].any()
    assert valid > 1000
    assert scene["undistorted"]["masks"] and scene["undistorted"]["copied"] == len(PLACES)
    for image in pycolmap.Reconstruction(str(tmp_path / "out/sparse/0")).images.values():
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{image.name}.png"))
        assert mask.shape == (HEIGHT, WIDTH) and not mask[:, :MIDDLE].any() and mask[:, MIDDLE:].all()


def test_classes_of_the_segmentation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(model: Any, rgb: np.ndarray, *_: object) -> tuple[np.ndarray, tuple[int, int]]:
        classes = np.zeros((HEIGHT // 2, WIDTH // 2), np.int64)
        classes[:, : MIDDLE // 2] = model.class_names.index("person")
        return classes, (14, 14)

    monkeypatch.setattr(class_maps, "predict_classes", predict)
    words = (folder / "photos", "-o", tmp_path / "scene.ply", "--no-dense", "--work", folder / "work")
    done = run(*words, "--mask", "sky,person")
    assert done.exit_code == 0, done.output
    scene = json.loads((tmp_path / "scene.json").read_text())
    assert scene["masks"]["by"]["sky"] == 0 and scene["masks"]["by"]["person"] == scene["masks"]["masked"] > 0
    assert {"dune-segment", "dune-mini"} <= {model["name"] for model in scene["provenance"]["models"]}
    assert "masks of sky, person by dune-segment, licence" in done.stderr
    assert scene["provenance"]["work"]["computed"]["classes"] == len(PLACES)  # and kept


def test_unknown_classes_and_masks_are_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    done = run(folder / "photos", "-o", tmp_path / "s.ply", "--work", tmp_path / "w", "--mask", "sky,unicorn")
    assert done.exit_code == 2 and "knows no class unicorn; --mask takes: other, wall, building, sky" in done.stderr
    done = run(folder / "photos", "-o", tmp_path / "s.ply", "--work", tmp_path / "w", "--masks", folder / "photos")
    assert done.exit_code == 2 and "has no mask of any of the 4 photos" in done.stderr


def test_a_photo_whose_mask_is_empty_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for place in PLACES:
        values = np.full((HEIGHT, WIDTH), 0 if place == 1 else 255, np.uint8)
        Image.fromarray(values).save(tmp_path / "masks" / f"p{place}.png")
    options = ("--masks", tmp_path / "masks", "--work", tmp_path / "w", "--no-dense")
    done = run(folder / "photos", "-o", tmp_path / "s.ply", *options)
    assert done.exit_code == 0, done.output
    assert "1 photo of 4 is left out, for its mask is 0 (black) everywhere: p1.png" in done.stderr
    cameras = json.loads((tmp_path / "s.json").read_text())["cameras"]
    assert [camera["image"] for camera in cameras] == ["p0.png", "p2.png", "p3.png"]
    pair = [folder / "photos" / f"p{place}.png" for place in (0, 1)]
    done = run(*pair, "-o", tmp_path / "t.ply", *options)
    assert done.exit_code == 2 and "of 1 of 2 photos are 0 (black) everywhere (p1.png)" in done.stderr


def test_undistort_does_not_replace_what_is_read(folder: Path, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(folder / ("photos" if name == "images" else name))
    for words in ((tmp_path / "images",), (folder / "photos", "--masks", tmp_path / "masks")):
        done = run(*words, "-o", tmp_path / "s.ply", "--undistort", tmp_path, "--overwrite")
        assert done.exit_code == 2 and "which is read; name another folder" in done.stderr


def test_two_photos(folder: Path, tmp_path: Path) -> None:
    photos = [folder / "photos" / f"p{place}.png" for place in (0, 2)]
    done = run(*photos, "-o", tmp_path / "s.npz", "--masks", folder / "masks")
    assert done.exit_code == 0, done.output
    arrays = np.load(tmp_path / "s.npz")
    assert (arrays["sparse_pixels0"][:, 0] >= MIDDLE - 0.5).all()
    if "view0_valid" in arrays:
        shown = arrays["view0_valid"]
        assert not shown[:, : shown.shape[1] * (MIDDLE - 1) // WIDTH].any()
    assert json.loads((tmp_path / "s.json").read_text())["masks"]["masked"] > 0
    assert "two photos do not use" not in done.stderr
