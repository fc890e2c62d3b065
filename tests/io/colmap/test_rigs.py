"""Rigs and frames of COLMAP models, as pycolmap reads and writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from dune_cli.geometry.cameras import K_from_focal
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec
from dune_cli.geometry.rigs import Mount, Rigs
from dune_cli.io.colmap.rigs import write_rig_config
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum

SENSORS = (np.eye(4), from_rotation_translation(rotation_from_rotvec(np.array([0.1, 1.5, 0])), np.array([0.2, 0, 0])))


def frames() -> tuple[list[Frustum], Rigs]:
    """A photo alone, and two frames of a rig of two cameras."""
    rng = np.random.default_rng(3)

    def pose() -> np.ndarray:
        return from_rotation_translation(rotation_from_rotvec(rng.normal(size=3)), rng.normal(size=3))

    K, rigs = K_from_focal(50.0, 64, 48), {}
    frusta = [Frustum(K, pose(), 64, 48, "alone.png")]
    for frame in (0, 1):
        rig = pose()
        for sensor, sensor_from_rig in enumerate(SENSORS):
            rigs[len(frusta)] = Mount(0, sensor, frame, sensor_from_rig)
            frusta.append(Frustum(K, rig @ inverse(sensor_from_rig), 64, 48, f"cam{sensor}/{frame}.png"))
    return frusta, Rigs(rigs, {(0, 0): "cam0/", (0, 1): "cam1/"})


@pytest.mark.parametrize("binary", [True, False])
def test_pycolmap_reads_the_frames_of_a_rig(tmp_path: Path, binary: bool) -> None:
    frusta, rigs = frames()
    write_colmap(tmp_path, frusta, binary=binary, rigs=rigs)
    model = pycolmap.Reconstruction(tmp_path)
    assert (len(model.cameras), len(model.rigs), len(model.frames)) == (3, 2, 3)
    rig = next(rig for rig in model.rigs.values() if rig.num_sensors() == 2)
    (pose,) = rig.non_ref_sensors.values()
    np.testing.assert_allclose(pose.matrix(), SENSORS[1][:3], atol=1e-12)
    for frustum in frusta:
        image = model.find_image_with_name(frustum.name)
        np.testing.assert_allclose(image.cam_from_world().matrix(), inverse(frustum.world_from_cam)[:3], atol=1e-12)
    if binary:
        (tmp_path / "again").mkdir()
        model.write(tmp_path / "again")
        for name in ("rigs.bin", "frames.bin"):
            assert len((tmp_path / "again" / name).read_bytes()) == len((tmp_path / name).read_bytes())


def test_the_config_says_what_the_model_holds(tmp_path: Path) -> None:
    _, rigs = frames()
    write_rig_config(tmp_path, rigs)
    (rig,) = pycolmap.read_rig_config(tmp_path / "rig_config.json")
    assert [camera.image_prefix for camera in rig.cameras] == ["cam0/", "cam1/"] and rig.cameras[0].ref_sensor
    np.testing.assert_allclose(rig.cameras[1].cam_from_rig.matrix(), SENSORS[1][:3], atol=1e-12)
