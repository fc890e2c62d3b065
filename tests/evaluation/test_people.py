"""`dune eval people`: sets read, people matched, PCK and errors after alignment, the controls."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli.commands.eval.people import _photo_table, _pose_table
from dune_cli.errors import UserError
from dune_cli.evaluation import people as benchmark
from dune_cli.evaluation.people import HINGED, LabelledPhoto, MethodPeople
from dune_cli.geometry.poses import rotation_from_rotvec
from dune_cli.tasks.human import BodyFitter, load_fitter

JOINTS = [*HINGED, "neck", "head_top"]


def labelled(seed: int) -> np.ndarray:
    """(14, 2) px of somebody upright."""
    rng = np.random.default_rng(seed)
    y = {"shoulder": 60, "elbow": 90, "wrist": 115, "hip": 120, "knee": 160, "ankle": 200}
    sides = {"left": 110, "right": 90}
    points = [(sides[name.split("_")[0]], y[name.split("_")[1]]) for name in HINGED]
    return np.array([*points, (100, 50), (100, 20)], float) + rng.normal(size=(14, 2)) * 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    items = []
    for number in range(3):
        Image.new("RGB", (200, 240)).save(tmp_path / f"{number}.png")
        visible = [1] * 14 if number else [1] * 11 + [0] * 3
        items.append({"image": f"{number}.png", "xy": labelled(number).tolist(), "visible": visible})
    document = {"set": "made up", "joints": JOINTS, "items": items, "all_people_labelled": True}
    (tmp_path / "photos.json").write_text(json.dumps(document))
    return tmp_path


def right_and_wrong(rgb: np.ndarray, path: Path, K: Any) -> dict[str, MethodPeople]:
    true = labelled(int(path.stem))[:12]
    return {
        "right": MethodPeople(np.stack([true + 300, true])),
        "off by 15 px": MethodPeople(true[None] + [15, 0]),
        "elsewhere": MethodPeople(true[None] + 100),
        "nobody": MethodPeople(np.zeros((0, 12, 2))),
    }


def test_scores_of_photos(root: Path) -> None:
    (labels,) = benchmark.read_sets(root)
    assert np.isnan(labels.photos[0].head_px) and labels.photos[1].head_px == pytest.approx(30, abs=9)
    assert np.isnan(labels.photos[0].pixels[11]).all()
    rows = {
        row.method: row
        for row in benchmark.total_photos(labels, list(benchmark.score_photos(labels, {"m": right_and_wrong})))
    }
    assert set(rows) == {benchmark.MEAN_POSE, "right", "off by 15 px", "elsewhere", "nobody"}
    right = rows["right"]
    assert (right.found, right.precision, right.pck_torso, right.pck_head) == (1, 0.5, 1, 1)
    assert rows["off by 15 px"].pck_torso < 0.3 and rows["off by 15 px"].pck_head == pytest.approx(0.5, abs=0.5)
    for name in ("elsewhere", "nobody"):
        assert (rows[name].found, rows[name].pck_torso) == (0, 0)
    assert rows[benchmark.MEAN_POSE].pck_torso > 0.9  # all stand alike
    assert right.pck_found is None  # nobody was found by all methods


def test_errors_after_alignment() -> None:
    true = np.random.default_rng(0).normal(size=(12, 3))
    moved = 1.3 * true @ rotation_from_rotvec(np.array([0.3, 1, -2])).T + [1, 2, 3]
    assert benchmark._aligned_error(moved, true) < 1e-9
    assert benchmark._aligned_error(true + np.eye(12, 3), true) > 0.05


@pytest.fixture(scope="module")
def fitter() -> BodyFitter:
    return load_fitter()


def test_scores_of_rendered_poses(fitter: BodyFitter, tmp_path: Path) -> None:
    """Joints of Anny at rest, in the words of motion capture, y up, in mm: the body fits them, and the truth is it."""
    import torch

    with torch.inference_mode():
        rest = fitter.pose(fitter.body.rest_rotations(), torch.tensor(fitter.joint_skeleton.mean_shape)[None].float())
    places = rest.joints[0].double().numpy() * [1, -1, -1] * 1000
    hinged = places[benchmark._hinged_columns(fitter.body.joint_names)]
    words = [name.replace("_", " ").title().replace(" ", "") for name in HINGED]
    document = {"sequences": [{"file": "rest.bvh", "joints": words, "xyz_mm": [hinged.tolist()] * 2}]}
    (tmp_path / "mocap.json").write_text(json.dumps(document))
    (labels,) = benchmark.read_sets(tmp_path, ["mocap"])

    def truth(rgb: np.ndarray, path: Path, K: Any) -> dict[str, MethodPeople]:
        assert rgb.shape == (480, 640, 3) and (rgb != 128).any(-1).mean() > 0.02
        picture = pictures[len(seen)]
        seen.append(1)
        pixels = picture.points @ K.T
        points = picture.points + np.array([0.1, 0, 0])
        return {"m": MethodPeople((pixels[:, :2] / pixels[:, 2:])[None], points[None], picture.vertices[None] + 0.2)}

    seen: list[int] = []
    pictures = [benchmark.render(fitter, pose, number) for number, pose in enumerate(labels.poses)]
    rows = {
        row.method: row
        for row in benchmark.total_poses(labels, list(benchmark.score_poses(labels, fitter, {"m": truth})))
    }
    assert rows[benchmark.FIT_TO_TRUTH].mpjpe_mm < 15
    assert rows["m"].found == 1 and rows["m"].mpjpe_mm < 1e-6 and rows["m"].pa_mpjpe_mm < 1e-6
    assert rows["m"].pve_mm == pytest.approx(1000 * np.linalg.norm([0.1, 0.2, 0.2]))
    assert rows[benchmark.MEAN_POSE].mpjpe_mm > 50  # seen from another side


def test_what_is_no_set(root: Path) -> None:
    with pytest.raises(UserError, match="has no set other; it has: photos"):
        benchmark.read_sets(root, ["other"])
    with pytest.raises(UserError, match="has no sets of labelled joints"):
        benchmark.read_sets(root / "nothing")
    (root / "photos.json").write_text('{"set": "x"}')
    with pytest.raises(UserError, match="neither 'items'"):
        benchmark.read_sets(root)


def test_limits_are_spread() -> None:
    assert benchmark.spaced(10, 5) == [0, 2, 4, 6, 8] and benchmark.spaced(3, None) == [0, 1, 2] == benchmark.spaced(
        3, 9
    )


def test_the_best_match_needs_overlap() -> None:
    true = labelled(0)[:12]
    photo = LabelledPhoto(Path("a.png"), true, 30.0)
    assert benchmark._matched(photo, np.stack([true + 60, true + 2])) is not None
    assert benchmark._matched(photo, true[None] + [60, 0]) is None
    assert benchmark._matched(photo, np.full((1, 12, 2), np.nan)) is None


def test_a_method_that_finds_nobody_has_no_numbers(root: Path) -> None:
    def nobody(*_: object) -> dict[str, MethodPeople]:
        return {"m": MethodPeople(np.zeros((0, 12, 2)))}

    labels = benchmark.read_sets(root)[0]
    assert labels.photos
    control, row = benchmark.total_photos(labels, list(benchmark.score_photos(labels, {"m": nobody})))
    assert (row.found, row.pck_torso, row.pck_found, control.pck_found) == (0, 0, None, None)
    assert "nan" not in str(_photo_table([control, row]))
    picture = SimpleNamespace(points=np.random.default_rng(0).random((12, 3)), residual_mm=(1.0, 1.0))
    poses = benchmark.total_poses(labels, [(picture, {"m": None}), (picture, {"m": None})])
    assert (poses[-1].found, poses[-1].mpjpe_mm, poses[-1].pa_mpjpe_mm, poses[-1].pve_mm) == (0, None, None, None)
    assert _pose_table(poses)[-1][2:] == ["0.000", "", "", ""]
