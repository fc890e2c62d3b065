"""`dune human` without any weights: Anny fitted to the joints of open networks, or of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.tasks.human import load_human
from support.body_rotations import from_rotvec


def test_the_astronaut(dune: Any, example_photos: Path, tmp_path: Path) -> None:
    """The first command of the README about people, on a machine without weights."""
    photo, obj, picture = example_photos / "astronaut.png", tmp_path / "people.obj", tmp_path / "o.png"
    done = dune("human", photo, "-o", obj, "--overlay", picture)
    assert done.returncode == 0, done.stderr
    assert "dune-people, licence: Apache-2.0" in done.stderr
    assert "assume adults of 1.70 m" in done.stderr
    facts = json.loads(obj.with_suffix(".json").read_text())
    assert facts["scale"] == "assumed" and facts["assumed_height"] == {"mean": 1.7, "sd": 0.09}
    assert facts["camera"]["source"] == "default"
    assert facts["body_model"]["rig"] == "light" and facts["body_model"]["vertices"] == 13718
    (person,) = facts["people"]
    assert 0.5 < person["fit_confidence"] <= 1 and 0.35 < person["score"] <= 1
    assert person["fit_residual_px"] < 12
    assert {"nose", "left_shoulder", "right_shoulder"} <= set(person["joints_seen"])
    assert not {"left_ankle", "right_ankle", "left_knee"} & set(person["joints_seen"])  # outside the photo
    assert set(person["joint_confidence"]) == set(BLAZEPOSE_NAMES)
    assert all(0 <= value <= 1 for value in person["joint_confidence"].values())
    assert 1.5 < person["height"] < 1.9
    x, y = person["head_px"]
    assert 180 < x < 270 and 60 < y < 200
    # x to the right of the photo: the left shoulder is at the person's left
    joints = dict(zip(facts["body_model"]["joints"], person["joints3d"]))
    assert joints["upperarm01.L"][0] > joints["upperarm01.R"][0] + 0.2
    assert np.asarray(Image.open(picture)).shape == (512, 512, 3)

    model = load_human("dune-people")
    posed = model.pose(from_rotvec(torch.tensor([person["rotvec"]])), torch.tensor([list(person["shape"].values())]))
    vertices = np.array([line.split()[1:4] for line in obj.read_text().splitlines() if line[:2] == "v "], float)
    assert np.abs(posed.vertices[0].numpy() + person["offset"] - vertices).max() < 1e-4


def test_a_given_height_sets_size_and_distance(dune: Any, example_photos: Path) -> None:
    small, tall = (
        json.loads(dune("human", example_photos / "astronaut.png", "--height", height, "--json").stdout)
        for height in ("1.5", "1.8")
    )
    assert small["scale"] == "given" and small["assumed_height"] == {"mean": 1.5, "sd": 0}
    heights = [facts["people"][0]["height"] for facts in (small, tall)]
    assert heights == pytest.approx([1.5, 1.8], abs=0.02)
    depths = [facts["people"][0]["translation"][2] for facts in (small, tall)]
    assert depths[1] / depths[0] == pytest.approx(1.2, rel=0.06)


def test_a_child_of_a_given_height(dune: Any, example_photos: Path) -> None:
    done = dune("human", example_photos / "astronaut.png", "--height", "1.1", "--json", "--model", "bundled")
    (person,) = json.loads(done.stdout)["people"]
    assert person["height"] == pytest.approx(1.1, abs=0.02) and 0 < person["shape"]["age"] < 0.5


@pytest.mark.parametrize("name", ["coffee.png", "grey", "tiny", "narrow"])
def test_nobody_is_no_error(name: str, dune: Any, example_photos: Path, tmp_path: Path) -> None:
    photo = tmp_path / "odd.png"
    if name == "coffee.png":
        photo = example_photos / name
    else:
        size = {"grey": (300, 200), "tiny": (16, 20), "narrow": (16, 900)}[name]
        Image.new("L", size, 128).save(photo)
    done = dune("human", photo, "-o", tmp_path / "p.obj", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["people"] == []
    assert "no person has a score" in done.stderr


@pytest.mark.parametrize("side", [100, 2600])
def test_small_large_and_grey_photos(side: int, dune: Any, example_photos: Path, tmp_path: Path) -> None:
    """The same person whatever the resolution, also without colour."""
    with Image.open(example_photos / "astronaut.png") as image:
        image.convert("L").resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    done = dune("human", tmp_path / "a.png", "--json", "--overlay", tmp_path / "o.png")
    (person,) = json.loads(done.stdout)["people"]
    assert np.allclose(np.array(person["head_px"]) * 512 / side, (222, 130), atol=40)
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.size == (side, side)


def _joints(folder: Path, content: Any) -> Path:
    path = folder / "joints.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _coco(points: dict[str, tuple[float, float]], image: str = "rocket.jpg") -> dict[str, Any]:
    from dune_cli.io.joint_files import COCO_NAMES

    rows = [[*points[name], 2] if name in points else [0, 0, 0] for name in COCO_NAMES]
    return {
        "images": [{"id": 4, "file_name": image}],
        "annotations": [{"image_id": 4, "keypoints": [number for row in rows for number in row]}],
    }


STANDING = {
    **{"nose": (320, 100), "left_shoulder": (345, 140), "right_shoulder": (295, 140), "left_elbow": (355, 190)},
    **{"right_elbow": (285, 190), "left_wrist": (358, 235), "right_wrist": (282, 235), "left_hip": (336, 235)},
    **{"right_hip": (304, 235), "left_knee": (337, 310), "right_knee": (303, 310), "left_ankle": (338, 385)},
    "right_ankle": (302, 385),
}


def test_joints_in_pixels(dune: Any, example_photos: Path, tmp_path: Path) -> None:
    file = _joints(tmp_path, _coco(STANDING))
    done = dune("human", example_photos / "rocket.jpg", "--joints", file, "--json", "-o", tmp_path / "p.obj")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    (person,) = facts["people"]
    assert person["fit_residual_px"] < 5 and set(person["joints_seen"]) == set(STANDING)
    assert [model["name"] for model in facts["provenance"]["models"]] == ["anny"]
    joints = dict(zip(facts["body_model"]["joints"], np.array(person["joints3d"])))
    assert joints["head"][1] < joints["upperleg01.L"][1] < joints["foot.L"][1]
    assert facts["scale"] == "assumed" and 2 < person["translation"][2] < 8


def test_joints_in_metres(dune: Any, example_photos: Path, tmp_path: Path) -> None:
    """The pixels of a standing person, 4 m away, in the words and axes of motion capture."""
    words = {
        **{f"left_{part}": f"Left{part.title()}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")},
        **{f"right_{part}": f"Right{part.title()}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")},
    }
    xyz = [[(STANDING[name][0] - 320) / 170, (240 - STANDING[name][1]) / 170, -4.0] for name in words]
    content = {"joints": list(words.values()), "axes": "y-up", "people": [{"xyz": xyz}, {"xyz": [None] * len(xyz)}]}
    done = dune("human", example_photos / "rocket.jpg", "--joints", _joints(tmp_path, content), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    (person,) = facts["people"]  # of the second no joint is known
    assert facts["scale"] == "metric" and "assumed_height" not in facts
    joints = dict(zip(facts["body_model"]["joints"], np.array(person["joints3d"])))
    wanted = np.array(xyz[0]) * [1, -1, -1]
    assert np.linalg.norm(joints["upperarm01.L"] - wanted) < 0.08
    assert person["fit_residual_px"] is None


WRONG: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "two heights for one": (lambda d: ["--height", "1.7,1.8"], "2 heights were given, and 1 people are in the photo"),
    "a height in centimetres": (lambda d: ["--height", "170"], "is no height of people; give metres from 0.5 to 2.3"),
    "a height in words": (lambda d: ["--height", "tall"], "is no height of people"),
    "no file of joints": (lambda d: ["--joints", d / "none.json"], "none.json"),
    "no JSON": (lambda d: ["--joints", _joints(d, "joints")], "joints.json"),
    "another JSON": (lambda d: ["--joints", _joints(d, {"a": 1})], "is no file of joints; allowed: COCO keypoints"),
    "another photo's joints": (
        lambda d: ["--joints", _joints(d, _coco(STANDING, "b.jpg"))],
        "has no joints of astronaut.png; its photos: b.jpg",
    ),
    "joints that no body has": (
        lambda d: ["--joints", _joints(d, {"joints": ["tail"], "people": [{"xyz": [[0, 0, 1]]}]})],
        "of the joints tail the body knows 0, and needs 4",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_said_in_one_sentence(case: str, dune: Any, example_photos: Path, tmp_path: Path) -> None:
    arguments, message = WRONG[case]
    done = dune("human", example_photos / "astronaut.png", *arguments(tmp_path), "-o", tmp_path / "p.obj")
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("p.*"))


def test_a_video_keeps_ids(dune: Any, example_photos: Path, tmp_path: Path) -> None:
    from support.video_files import write_video

    with Image.open(example_photos / "astronaut.png") as image:
        frames = [np.asarray(image.convert("RGB").rotate(0, translate=(4 * k, 0))) for k in range(3)]
    video = write_video(tmp_path / "v.avi", frames)
    done = dune("human", video, "-o", tmp_path / "out", "--height", "1.75")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out" / "video.json").read_text())
    assert [(person["id"], person["frames"]) for person in facts["people"]] == [(0, 3)]


def test_predict_takes_it_too(dune: Any, example_photos: Path, tmp_path: Path) -> None:
    done = dune("predict", example_photos / "astronaut.png", "--tasks", "human", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (facts,) = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("people.json")]
    assert len(facts["people"]) == 1 and facts["scale"] == "assumed"
