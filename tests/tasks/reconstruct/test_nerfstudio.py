"""transforms.json and the PLY beside it, read as nerfstudio reads them: every point lies where its photo shows it.

The reader follows nerfstudio's documentation ("Data conventions": camera to world in OpenGL's axes, y up and z
backward; pixel centres at one half; distortion k1 to k4, p1, p2 of OpenCV) and imports nothing of this package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.io import formats
from dune_cli.provenance import Source
from dune_cli.sfm.scene import Scene, SparsePoints, View
from dune_cli.tasks.reconstruct.export import write_transforms_json

SIZE = (320, 240)
KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")


@dataclass(frozen=True)
class Frame:
    """A frame of transforms.json: `c2w` (3, 4) in OpenGL's axes; numbers of the frame, else of the file."""

    file: Path
    c2w: np.ndarray
    intrinsics: dict[str, float]
    fisheye: bool

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(M, 2) pixels of points (M, 3), whose first pixel has its centre at one half."""
        x, y, z = ((points - self.c2w[:, 3]) @ self.c2w[:, :3]).T
        u, v = x / -z, -y / -z  # z is backward, y is up
        one = self.intrinsics
        if self.fisheye:
            r = np.hypot(u, v)
            angle = np.arctan(r)
            bent = angle * (1 + sum(one[f"k{n}"] * angle ** (2 * n) for n in (1, 2, 3, 4)))
            u, v = u * bent / r, v * bent / r
        else:
            r2 = u * u + v * v
            radial = 1 + one["k1"] * r2 + one["k2"] * r2**2 + one["k3"] * r2**3
            u, v = (
                u * radial + 2 * one["p1"] * u * v + one["p2"] * (r2 + 2 * u * u),
                v * radial + one["p1"] * (r2 + 2 * v * v) + 2 * one["p2"] * u * v,
            )
        return np.stack([one["fl_x"] * u + one["cx"], one["fl_y"] * v + one["cy"]], axis=-1)


def load(path: Path) -> tuple[list[Frame], np.ndarray]:
    """The frames and the points (M, 3) of a transforms.json."""
    tree = json.loads(path.read_text())
    assert tree["camera_model"] in ("OPENCV", "OPENCV_FISHEYE", "PINHOLE")
    frames = []
    for frame in tree["frames"]:
        intrinsics = {key: float(frame.get(key, tree.get(key, 0.0))) for key in ("fl_x", "fl_y", "cx", "cy", *KEYS)}
        c2w = np.array(frame["transform_matrix"])
        assert c2w.shape == (4, 4) and np.linalg.det(c2w[:3, :3]) == pytest.approx(1)
        fisheye = tree["camera_model"] == "OPENCV_FISHEYE"
        frames.append(Frame(path.parent / frame["file_path"], c2w[:3], intrinsics, fisheye))
    cloud = trimesh.load(path.parent / tree["ply_file_path"], process=False)
    assert np.array_equal(tree["applied_transform"], np.eye(3, 4)) and cloud.colors is not None
    return frames, np.asarray(cloud.vertices)


@pytest.mark.parametrize(
    "lens",
    [
        Camera("OPENCV", (300.0, 310.0, 170.0, 110.0, -0.2, 0.05, 0.002, -0.003), *SIZE),
        Camera("SIMPLE_RADIAL", (300.0, 159.5, 119.5, 0.1), *SIZE),
        Camera("OPENCV_FISHEYE", (150.0, 150.0, 160.0, 118.0, -0.02, 0.005, -0.001, 0.0002), *SIZE),
    ],
    ids=lambda lens: lens.model,
)
def test_points_are_where_the_photos_show_them(lens: Camera, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-1.5, -1, 3), (1.5, 1, 5), (40, 3)).astype(np.float32).astype(np.float64)
    views = []
    for number in range(3):
        turn = poses.rotation_from_rotvec(np.array([0.1, -0.15, 0.05]) * number)
        pose = poses.from_rotation_translation(turn, np.array([0.3 * number, 0.1, -0.1 * number]))
        views.append(View(f"{number}.jpg", *SIZE, lens.K, "estimated", pose, lens=lens))
    seen = tuple(
        (np.arange(40), lens.project(poses.transform_points(poses.inverse(view.world_from_cam), points)))
        for view in views
    )
    sparse = SparsePoints(points, np.full((40, 3), 90, np.uint8), np.ones(40), seen)
    source = (Source("matcher", "made up", "none"),)
    scene = Scene("matches", tuple(views), (), sparse, "arbitrary", None, 0.1, 10.0, source)
    cloud, colors, confidence = scene.cloud()
    (tmp_path / "out").mkdir()
    data = formats.SceneData(cloud, colors, confidence)
    formats.of(tmp_path / "out" / "s.ply").write_scene(tmp_path / "out" / "s.ply", data)
    photos = [tmp_path / "photos" / view.image for view in views]
    write_transforms_json(scene, tmp_path / "out" / "transforms.json", photos, tmp_path / "out" / "s.ply")

    frames, read = load(tmp_path / "out" / "transforms.json")
    np.testing.assert_array_equal(read, points)
    for frame, photo, (_, pixels) in zip(frames, photos, seen):
        assert frame.file.resolve() == photo.resolve()
        np.testing.assert_allclose(frame.pixels(read), pixels + 0.5, atol=1e-6)
