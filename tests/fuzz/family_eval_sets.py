"""The sets of `dune eval`: pairs.json, and cameras.json with its depth maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.evaluation.depthmaps import true_depths
from dune_cli.evaluation.pairs import PosedPair, read_pairs
from dune_cli.evaluation.posed_sets import PosedSet, read_posed_sets
from fuzz.harness import Sample

K = [[300.0, 0, 16], [0, 300.0, 12], [0, 0, 1]]


def samples(folder: Path) -> Sequence[Sample]:
    Image.fromarray(np.full((24, 32, 3), 99, np.uint8)).save(folder / "p.png")
    Image.fromarray(np.full((24, 32), 1500, np.uint16)).save(folder / "d.png")
    photo, depth = (folder / "p.png").read_bytes(), (folder / "d.png").read_bytes()
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = (0.5, 1.0, 2.0, 4.0)
    frames = [
        {"file": "p.png", "K": K, "T_cam_to_world": pose, "width": 32, "height": 24, "dist_k1": 0.1}
        | {"depth": "d.png", "depth_scale": 1000}
        for pose in poses.tolist()
    ]
    lens = {"model": "OPENCV_FISHEYE", "params": [20.0, 21.0, 16.0, 12.0, 0.02, -0.01, 0.0, 0.0]}
    frames[1] = {key: value for key, value in frames[1].items() if key != "K"} | {"camera": lens}
    pairs = [
        {"id": f"{i}", "image_a": "p.png", "image_b": "p.png", "K_a": K, "K_b": K, "T_a2b": pose}
        for i, pose in enumerate(poses.tolist())
    ]
    place = {"name": "a", "scale": "metric (metres)", "frames": frames}
    return [
        Sample(
            {"a/cameras.json": json.dumps(place).encode(), "a/p.png": photo, "a/d.png": depth},
            lambda case: [(place, true_depths(place)) for place in read_posed_sets(case)],
            _are_places,
            ["a/cameras.json"],
        ),
        Sample(
            {"a/pairs.json": json.dumps({"name": "a", "pairs": pairs}).encode(), "a/p.png": photo},
            read_pairs,
            _are_pairs,
            ["a/pairs.json"],
        ),
    ]


def _are_places(found: list[tuple[PosedSet, list[np.ndarray | None] | None]]) -> None:
    for place, depths in found:
        assert np.isfinite(place.extent) and place.extent > 0
        for image in place.map.images:
            assert image.file.is_file() and _is_pose(image.world_from_cam)
            assert _is_camera(image.camera.K) and 0 < image.camera.width <= 1e6 and 0 < image.camera.height <= 1e6
        for depth, image in zip(depths or (), place.map.images):
            if depth is not None:
                assert depth.shape == (image.camera.height, image.camera.width) and np.isfinite(depth).all()
                assert depth.max() <= 1e10


def _are_pairs(pairs: list[PosedPair]) -> None:
    assert len({(pair.set_name, pair.id) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert _is_pose(pair.cam2_from_cam1) and _is_camera(pair.K1) and _is_camera(pair.K2)
        assert pair.image1.is_file() and pair.image2.is_file()


def _is_pose(pose: np.ndarray) -> bool:
    rotation = pose[:3, :3]
    return bool(np.isfinite(pose).all() and np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(pose) > 0)


def _is_camera(matrix: np.ndarray) -> bool:
    return bool(np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0)
