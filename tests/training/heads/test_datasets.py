"""Labelled photos in the layouts that people have, and one sentence for those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.photos import read_photo
from dune_cli.training.heads.datasets import (
    DepthFile,
    read_classification_dataset,
    read_datasets,
    read_depth_dataset,
    read_segmentation_dataset,
)
from dune_cli.training.heads.labels import read_label


def photo(path: Path, width: int = 32, height: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


def depth(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


K = [[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]]


def test_an_index(tmp_path: Path) -> None:
    photo(tmp_path / "room/0.jpg")
    photo(tmp_path / "street/0.jpg")
    depth(tmp_path / "room/0.png", np.full((12, 16), 2500))
    depth(tmp_path / "street/0.png", np.full((12, 16), 32767.5))
    rows = [
        {"file": "room/0.jpg", "kind": "rgbd"},
        {"file": "room/0.png", "kind": "rgbd", "scale": "metric", "scene": "a", "K": K, "tags": ["indoor"]},
        {"file": "street/0.png", "kind": "rgbd", "scale": "relative_disparity", "K": None},
    ]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    room, street = read_depth_dataset(str(tmp_path)).examples
    assert (room.set_name, room.group, room.setting, room.label.focal_px) == ("room", "room/a", "indoor", 30.0)
    assert (street.group, street.setting, street.label.kind) == ("street/street/0.png", None, "disparity")
    assert np.allclose(read_label(room, (32, 24)).values, 2.5)
    assert np.allclose(read_label(street, (32, 24)).values, 0.5, atol=1e-4)
    with pytest.raises(UserError, match=r"--leave-out attic is no set of the data; it has: room, street"):
        read_datasets("depth", [str(tmp_path)], ["attic"])
    assert [e.set_name for e in read_datasets("depth", [str(tmp_path)], ["room"]).examples] == ["street"]
    with pytest.raises(UserError, match=r"the photo room/0.png is in two sources"):
        read_datasets("depth", [str(tmp_path), str(tmp_path)])


def test_tum_pairs_by_time(tmp_path: Path) -> None:
    for name in ("1.000", "2.000", "3.000"):
        photo(tmp_path / f"rgb/{name}.png")
    for name in ("1.010", "2.500"):
        depth(tmp_path / f"depth/{name}.png", np.full((24, 32), 5000))
    (tmp_path / "rgb.txt").write_text("# color\n1.000 rgb/1.000.png\n2.000 rgb/2.000.png\n3.000 rgb/3.000.png\n")
    (tmp_path / "depth.txt").write_text("1.010 depth/1.010.png\n2.500 depth/2.500.png\n")
    (only,) = read_depth_dataset(str(tmp_path)).examples
    assert only.photo.name == "1.000.png"
    assert np.allclose(read_label(only, (32, 24)).values, 1.0)


def test_kitti_finds_photos_and_calibration(tmp_path: Path) -> None:
    drive = "2011_09_26_drive_0001_sync"
    depth(tmp_path / f"train/{drive}/proj_depth/groundtruth/image_02/0000000005.png", np.full((24, 32), 2560))
    photo(tmp_path / f"2011_09_26/{drive}/image_02/data/0000000005.png")
    (tmp_path / "2011_09_26/calib_cam_to_cam.txt").write_text("P_rect_02: 721.5 0 609.6 44.9 0 721.5 172.9\n")
    (only,) = read_depth_dataset(str(tmp_path)).examples
    assert (only.group, only.label.focal_px) == (drive, 721.5)
    assert np.allclose(read_label(only, (32, 24)).values, 10.0)


def test_folders_and_neighbours(tmp_path: Path) -> None:
    photo(tmp_path / "nyu/rgb/7.jpg")
    depth(tmp_path / "nyu/depth/7.png", np.full((24, 32), 900))
    (tmp_path / "nyu/K.json").write_text(json.dumps({"K": K}))
    (one,) = read_depth_dataset(str(tmp_path / "nyu")).examples
    assert one.label == DepthFile(tmp_path / "nyu/depth/7.png", "metric", 1000.0, 30.0)
    photo(tmp_path / "beside/a/0001.jpg")
    depth(tmp_path / "beside/a/0001.png", np.full((24, 32), 900))
    (two,) = read_depth_dataset(str(tmp_path / "beside")).examples
    assert (two.set_name, two.label.focal_px) == ("a", None)
    with pytest.raises(UserError, match=r"holds no pairs of photo and depth; allowed: index\.jsonl"):
        read_depth_dataset(str(tmp_path / "nyu/rgb"))
    with pytest.raises(UserError, match="is no folder"):
        read_depth_dataset(str(tmp_path / "none"))


def test_a_depth_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "rgb/7.jpg")
    depth(tmp_path / "depth/7.png", np.full((24, 24), 900))
    (one,) = read_depth_dataset(str(tmp_path)).examples
    with pytest.raises(UserError, match=r"7.png has 24 x 24 px, another shape than its photo's 32 x 24 px"):
        read_label(one, (32, 24))


def test_masks(tmp_path: Path) -> None:
    path = photo(tmp_path / "images/a.jpg")
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 16:], mask[0] = 2, 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    dataset = read_segmentation_dataset(str(tmp_path))
    assert dataset.classes == ("sky", "road", "car")
    (one,) = dataset.examples
    assert np.array_equal(read_label(one, (32, 24)).values, mask)
    with pytest.raises(UserError, match=r"a.png has 32 x 24 px, its photo 64 x 48 px"):
        read_label(one, (64, 48))
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    (one,) = read_segmentation_dataset(str(tmp_path)).examples
    with pytest.raises(UserError, match=r"has the class number 2; allowed: 0 to 1, and 255 for none"):
        read_label(one, (32, 24))
    photo(tmp_path / "images/b.jpg")
    with pytest.raises(UserError, match=r"b.jpg has no mask"):
        read_segmentation_dataset(str(tmp_path))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes.txt is not there; it names the classes"):
        read_segmentation_dataset(str(tmp_path))
    assert read_photo(path).width == 32


def test_coco_polygons_and_run_lengths(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    counts = [24 * 8, 24 * 4, 24 * 20]  # columns 8 to 11
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 32, "height": 24}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"image_id": 5, "category_id": 3, "segmentation": [[16.5, 0.5, 31.5, 0.5, 31.5, 23.5, 16.5, 23.5]]},
            {"image_id": 5, "category_id": 18, "segmentation": {"counts": counts, "size": [24, 32]}},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    dataset = read_segmentation_dataset(str(tmp_path))
    assert dataset.classes == ("background", "dog", "car")
    mask = read_label(dataset.examples[0], (32, 24)).values
    assert np.array_equal(mask[12], [0] * 8 + [1] * 4 + [0] * 4 + [2] * 16)
    content["annotations"][0]["category_id"] = 4
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has the category 4, which the file does not define"):
        read_segmentation_dataset(str(tmp_path))


def test_a_folder_a_class(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"):
        photo(tmp_path / name)
    dataset = read_classification_dataset(str(tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert [example.label for example in dataset.examples] == [0, 0, 1, 1]
    photo(tmp_path / "emu/1.jpg")
    with pytest.raises(UserError, match=r"emu holds 1 photo; each class needs at least 2"):
        read_classification_dataset(str(tmp_path))
    with pytest.raises(UserError, match="needs a folder of photos for each of at least two classes; it has 0"):
        read_classification_dataset(str(tmp_path / "cat"))


def test_ade20k_and_cityscapes(tmp_path: Path) -> None:
    photo(tmp_path / "ade/images/validation/a.jpg")
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 16:] = 2
    (tmp_path / "ade/annotations/validation").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "ade/annotations/validation/a.png")
    (tmp_path / "ade/objectInfo150.txt").write_text("Idx\tName\n1\twall\n2\tbuilding, edifice\n")
    dataset = read_segmentation_dataset(str(tmp_path / "ade"))
    assert dataset.classes == ("wall", "building")
    assert read_label(dataset.examples[0], (32, 24)).values[3].tolist() == [255] * 16 + [1] * 16

    photo(tmp_path / "city/leftImg8bit/val/ulm/x_leftImg8bit.png")
    (tmp_path / "city/gtFine/val/ulm").mkdir(parents=True)
    Image.fromarray(np.where(mask > 0, 26, 4).astype(np.uint8)).save(
        tmp_path / "city/gtFine/val/ulm/x_gtFine_labelIds.png"
    )
    dataset = read_segmentation_dataset(str(tmp_path / "city"))
    row = read_label(dataset.examples[0], (32, 24)).values[3]
    assert dataset.classes[row[-1]] == "car" and row[0] == 255
