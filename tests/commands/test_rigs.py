"""A rig of two cameras with different lenses, from its photos to its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner, Result

from dune_cli.cli import main
from dune_cli.evaluation.metrics import camera_errors, extent
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import from_rotation_translation, inverse, quaternion_from_rotation, rotation_from_rotvec
from dune_cli.io.png import save_png
from support import rendered_rooms as room

LEFT = Camera("PINHOLE", (200.0, 200.0, 119.5, 89.5), 240, 180)
RIGHT = Camera("OPENCV", (180.0, 181.0, 118.0, 91.0, -0.2, 0.03, 0.001, -0.001), 240, 180)
RIGHT_FROM_LEFT = from_rotation_translation(
    rotation_from_rotvec(np.array([0.02, -0.35, 0.01])), np.array([-0.4, 0.02, 0.05])
)
MOMENTS = range(4)


def pose(moment: int) -> np.ndarray:
    """The left camera on a path across the room, looking ahead."""
    turn = rotation_from_rotvec(np.array([0.05 * np.sin(moment), 0.12 * moment - 0.2, 0.03]))
    return from_rotation_translation(turn, np.array([0.45 * moment - 0.8, 0.1 * np.cos(moment), -2.0 + 0.2 * moment]))


def true_poses() -> dict[str, np.ndarray]:
    left = {f"left/{moment}.png": pose(moment) for moment in MOMENTS}
    return left | {f"right/{moment}.png": pose(moment) @ inverse(RIGHT_FROM_LEFT) for moment in MOMENTS}


def config(**changes: object) -> list[dict[str, object]]:
    rotation, translation = quaternion_from_rotation(RIGHT_FROM_LEFT[:3, :3]).tolist(), RIGHT_FROM_LEFT[:3, 3].tolist()
    right = {
        "image_prefix": "right/",
        "cam_from_rig_rotation": rotation,
        "cam_from_rig_translation": translation,
        "camera_model_name": "OPENCV",
        "camera_params": list(RIGHT.colmap_params),
    }
    left = {
        "image_prefix": "left/",
        "ref_sensor": True,
        "camera_model_name": "PINHOLE",
        "camera_params": list(LEFT.colmap_params),
    }
    return [{"cameras": [{**right, **changes}, left]}]


@pytest.fixture(autouse=True)
def _quick_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(320, 1200))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rig") / "photos"
    for name, place in true_poses().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_png(folder / name, room.render(LEFT if name.startswith("left") else RIGHT, place, 1))
    return folder


def reconstruct(photos: Path, target: Path, *options: object) -> Result:
    given = ("reconstruct", photos / "left", photos / "right", "-o", target, "--no-dense", "--matcher", "sift")
    return CliRunner().invoke(main, list(map(str, (*given, *options))))


def test_a_rig_keeps_its_shape_and_gives_the_scale(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "rig_config.json").write_text(json.dumps(config()))
    options = ("--rig", tmp_path / "rig_config.json", "--colmap", tmp_path / "model", "--undistort", tmp_path / "flat")
    result = reconstruct(photos, tmp_path / "s.ply", *options)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "s.json").read_text())
    assert "lengths are those of --rig" in document["scale_note"]
    poses = {camera["image"]: np.array(camera["world_from_cam"]) for camera in document["cameras"]}
    true = np.stack([true_poses()[name] for name in poses])
    found = camera_errors(true, np.stack(list(poses.values())))
    assert found.rotation_deg.max() < 0.05 and found.centre.max() < 0.001 * extent(true)
    assert found.scale == pytest.approx(1, rel=0.002)
    for moment in MOMENTS:
        left, right = (poses[f"{side}/{moment}.png"] for side in ("left", "right"))
        np.testing.assert_allclose(inverse(right) @ left, RIGHT_FROM_LEFT, atol=1e-6)
    model = pycolmap.Reconstruction(tmp_path / "model")
    assert (len(model.cameras), len(model.rigs), len(model.frames), len(model.images)) == (2, 1, 4, 8)
    assert sorted(camera.model_name for camera in model.cameras.values()) == ["OPENCV", "PINHOLE"]
    flat = pycolmap.Reconstruction(tmp_path / "flat" / "sparse" / "0")
    assert len(flat.rigs) == 1 and {camera.model_name for camera in flat.cameras.values()} == {"PINHOLE"}
    (again,) = pycolmap.read_rig_config(tmp_path / "flat" / "rig_config.json")
    np.testing.assert_allclose(again.cameras[1].cam_from_rig.matrix(), RIGHT_FROM_LEFT[:3], atol=1e-6)


def test_a_rig_without_poses_is_estimated(photos: Path, tmp_path: Path) -> None:
    rig = config(cam_from_rig_rotation=None, cam_from_rig_translation=None)
    (tmp_path / "rig_config.json").write_text(json.dumps(rig))
    options = ("--rig", tmp_path / "rig_config.json", "--undistort", tmp_path / "flat")
    result = reconstruct(photos, tmp_path / "s.ply", *options)
    assert result.exit_code == 0 and "its pose in the rig was estimated from 4 moments" in result.output, result.output
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["scale"] == "arbitrary"
    poses = {camera["image"]: np.array(camera["world_from_cam"]) for camera in document["cameras"]}
    true = np.stack([true_poses()[name] for name in poses])
    found = camera_errors(true, np.stack(list(poses.values())))
    assert found.rotation_deg.max() < 0.05 and found.centre.max() < 0.002 * extent(true)
    (again,) = pycolmap.read_rig_config(tmp_path / "flat" / "rig_config.json")
    estimated = again.cameras[1].cam_from_rig.matrix()
    for moment in MOMENTS:
        left, right = (poses[f"{side}/{moment}.png"] for side in ("left", "right"))
        np.testing.assert_allclose((inverse(right) @ left)[:3], estimated, atol=1e-6)
    np.testing.assert_allclose(estimated[:, :3], RIGHT_FROM_LEFT[:3, :3], atol=0.002)
    np.testing.assert_allclose(estimated[:, 3] / np.linalg.norm(estimated[:, 3]), [-0.991, 0.05, 0.124], atol=0.01)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "holds no rigs"),
        (json.dumps(config(image_prefix="side/")), "no two of the 8 photos are of one moment"),
        (json.dumps(config(ref_sensor=True)), "has 2 cameras with ref_sensor"),
        (json.dumps(config(cam_from_rig_translation=None)), "has no cam_from_rig_translation; give both, or neither"),
        (
            json.dumps([{"cameras": [*config()[0]["cameras"], {"image_prefix": "top/"}]}]),
            "of all cameras from the rig, or of none",
        ),
        (json.dumps(config(cam_from_rig_rotation=[1, 1, 0, 0])), "no unit quaternion"),
        (json.dumps(config(camera_model_name="LYTRO")), "camera model LYTRO is unknown"),
        ("[", "is not a JSON file"),
    ],
)
def test_wrong_rigs_are_refused_in_one_sentence(photos: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rig.json").write_text(text)
    result = reconstruct(photos, tmp_path / "s.ply", "--rig", tmp_path / "rig.json")
    assert result.exit_code == 2 and said in result.output, result.output


def test_rigs_and_other_sources_of_scale_exclude_each_other(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "rig.json").write_text(json.dumps(config()))
    refused = reconstruct(photos, tmp_path / "s.ply", "--rig", tmp_path / "rig.json", "--baseline", "2")
    assert refused.exit_code == 2 and "--rig and --baseline both set the scale" in refused.output
