"""`dune eval people`: one photo and one pose, with the controls, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dune_cli.evaluation.people import BODY_AT_LANDMARKS, FIT_TO_TRUTH, HINGED, LANDMARK_METHOD, MEAN_POSE

# of the astronaut, by eye; what is outside the photo is not labelled
SHOULDERS = {
    "left_shoulder": (305, 245),
    "right_shoulder": (115, 245),
    "left_elbow": (340, 400),
    "right_elbow": (70, 400),
}
# metres, y up, a walking person
WALKING = {
    **{"left_shoulder": (-0.18, 1.42, 0), "right_shoulder": (0.18, 1.42, 0), "left_elbow": (-0.25, 1.15, -0.06)},
    **{"right_elbow": (0.25, 1.15, 0.05), "left_wrist": (-0.27, 0.92, 0.06), "right_wrist": (0.27, 0.93, 0.18)},
    **{"left_hip": (-0.09, 0.95, 0), "right_hip": (0.09, 0.95, 0), "left_knee": (-0.1, 0.52, 0.15)},
    **{"right_knee": (0.1, 0.5, -0.05), "left_ankle": (-0.1, 0.1, 0.12), "right_ankle": (0.1, 0.14, -0.3)},
}


@pytest.fixture
def root(tmp_path: Path, example_photos: Path) -> Path:
    xy = [SHOULDERS.get(name, (0, 0)) for name in HINGED]
    item = {"image": str(example_photos / "astronaut.png"), "xy": xy, "visible": [name in SHOULDERS for name in HINGED]}
    item["visible"] = [int(one) for one in item["visible"]]
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "photos.json").write_text(json.dumps({"joints": list(HINGED), "items": [item]}))
    frame = [[1000 * x, 1000 * y, 1000 * z] for x, y, z in (WALKING[name] for name in HINGED)]
    sequence = {"file": "walk.bvh", "joints": list(HINGED), "xyz_mm": [frame, frame]}
    (folder / "walk.json").write_text(json.dumps({"set": "walk", "sequences": [sequence]}))
    return folder


def test_photos_and_poses(root: Path, dune: Any, tmp_path: Path) -> None:
    done = dune("eval", "people", root, "--limit", 1, "-o", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "PCK@0.2 torso" in done.stdout and "PA-MPJPE mm" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["schema"] == "dune.eval-people/1"
    rows = {(row["set"], row["method"]): row for row in result["rows"]}
    methods = {LANDMARK_METHOD, MEAN_POSE, "dune-people"}
    assert set(rows) == {("photos", m) for m in methods | {BODY_AT_LANDMARKS}} | {
        ("walk", m) for m in methods | {FIT_TO_TRUTH}
    }
    assert rows["walk", FIT_TO_TRUTH]["mpjpe_mm"] < 60
    ours = rows["walk", "dune-people"]
    assert ours["people"] == 1 and (ours["found"] == 0 or ours["pa_mpjpe_mm"] < 150)


def test_what_cannot_work(root: Path, dune: Any) -> None:
    done = dune("eval", "people", root, "--set", "other")
    assert done.returncode == 2 and "has no set other; it has: photos, walk" in done.stderr
    done = dune("eval", "people", root / "nothing")
    assert done.returncode == 2 and "is no folder" in done.stderr
