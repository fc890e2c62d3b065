"""COLMAP's databases and models, written and read.

In them camera n has the number n + 1, and photo i is image i + 1 named by i. A camera of no rig has the rig of its own
number; a rig has that of its reference sensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.poses import from_rotation_translation, inverse
from dune_cli.geometry.rigs import NO_RIGS, Rigs
from dune_cli.sfm.cameras import from_colmap
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import quiet_pycolmap


def write_images(
    database: Any,
    cameras: Sequence[Any],
    camera_ids: Sequence[int],
    keypoints: Sequence[np.ndarray],
    rigs: Rigs = NO_RIGS,
) -> None:
    """Writes `cameras` (pycolmap.Camera) into a pycolmap.Database, and an image for each entry of `keypoints` (K, 2),
    with the camera of its entry in `camera_ids`, and the frames of `rigs`."""
    pycolmap = quiet_pycolmap()
    for number, camera in enumerate(cameras, 1):
        camera.camera_id = number
        database.write_camera(camera, use_camera_id=True)
    for rig in colmap_rigs(cameras, camera_ids, rigs):
        database.write_rig(rig, use_rig_id=True)
    images = []
    for index, (number, points) in enumerate(zip(camera_ids, keypoints)):
        images.append(pycolmap.Image(name=image_name(index), camera_id=number + 1, image_id=index + 1))
        database.write_image(images[-1], use_image_id=True)
        database.write_keypoints(index + 1, (points + HALF_PIXEL).astype(np.float32))
    for photos in rigs.moments(len(images)):
        frame = pycolmap.Frame(frame_id=photos[0] + 1, rig_id=rig_id_of(photos[0], camera_ids, rigs))
        for index in photos:
            frame.add_data_id(images[index].data_id)
        database.write_frame(frame, use_frame_id=True)


def rig_id_of(photo: int, camera_ids: Sequence[int], rigs: Rigs) -> int:
    """The number of a photo's rig in COLMAP: that of its reference sensor's camera."""
    mount = rigs.mounts.get(photo)
    if mount is None:
        return camera_ids[photo] + 1
    return 1 + min(camera_ids[other] for other, one in rigs.mounts.items() if (one.rig, one.sensor) == (mount.rig, 0))


def colmap_rigs(cameras: Sequence[Any], camera_ids: Sequence[int], rigs: Rigs) -> list[Any]:
    """The rigs as pycolmap has them, and a rig for each camera that is in none."""
    pycolmap = quiet_pycolmap()
    made, in_rigs = [], {camera_ids[photo] for photo in rigs.mounts}
    for number, camera in enumerate(cameras):
        if number not in in_rigs:
            made.append(pycolmap.Rig(rig_id=number + 1))
            made[-1].add_ref_sensor(camera.sensor_id)
    for own in rigs.numbers:
        camera_of = {m.sensor: cameras[camera_ids[photo]] for photo, m in rigs.mounts.items() if m.rig == own}
        made.append(pycolmap.Rig(rig_id=camera_of[0].camera_id))
        for sensor, sensor_from_rig in rigs.sensors(own).items():
            if sensor == 0:
                made[-1].add_ref_sensor(camera_of[0].sensor_id)
            else:
                made[-1].add_sensor(camera_of[sensor].sensor_id, pycolmap.Rigid3d(sensor_from_rig[:3]))
    return made


def registered_images(reconstruction: Any) -> Iterator[tuple[int, Any, np.ndarray, np.ndarray]]:
    """The registered images of a pycolmap.Reconstruction: index, pycolmap.Image, K (3, 3), `cam_from_world` (4, 4)."""
    for image_id in sorted(reconstruction.reg_image_ids()):
        image = reconstruction.image(image_id)
        K = np.array(reconstruction.camera(image.camera_id).calibration_matrix())
        K[:2, 2] -= HALF_PIXEL
        yield int(image.name), image, K, np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])


def read_model(reconstruction: Any) -> SfmModel:
    """A pycolmap.Reconstruction as a model."""
    cameras, poses, observations = {}, {}, {}
    ids = np.array(sorted(reconstruction.point3D_ids()), dtype=np.int64)
    row_of = {point_id: row for row, point_id in enumerate(ids.tolist())}
    for index, image, _, cam_from_world in registered_images(reconstruction):
        poses[index] = inverse(cam_from_world)
        observed = [(row_of[p.point3D_id], k) for k, p in enumerate(image.points2D) if p.has_point3D()]
        rows = np.array(observed, dtype=np.int64).reshape(-1, 2)
        observations[index] = (rows[:, 0], rows[:, 1])
        cameras[image.camera_id - 1] = from_colmap(reconstruction.camera(image.camera_id))
    points = [reconstruction.point3D(int(point_id)) for point_id in ids]
    return SfmModel(
        cameras,
        poses,
        np.array([point.xyz for point in points]).reshape(-1, 3),
        np.array([max(point.error, 0.0) for point in points]),
        observations,
    )


def in_unit_of_rigs(model: SfmModel, rigs: Rigs) -> SfmModel:
    """The model with the rigs' lengths: COLMAP scales its models, and the rigs with them."""
    factor = rigs.scale_of(model.world_from_cam)
    if factor is None:
        return model
    poses = {
        index: from_rotation_translation(pose[:3, :3], factor * pose[:3, 3])
        for index, pose in model.world_from_cam.items()
    }
    return replace(model, world_from_cam=poses, points_world=factor * model.points_world)


def image_name(index: int) -> str:
    """The name of photo `index` in COLMAP's database and models."""
    return f"{index:08d}"
