"""COLMAP models, binary and text, with rigs and frames and without, as maps and as poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from dune_cli.io.colmap.read import ColmapModel, open_model
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 2, 2, 2, 8
    options.num_points2D_without_point3D = 2
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    model.write_binary(str(folder))
    model.write_text(str(folder))
    found = []
    for ending in ("bin", "txt"):
        whole = {path.name: path.read_bytes() for path in sorted(folder.glob(f"*.{ending}"))}
        old = {name: data for name, data in whole.items() if name.split(".")[0] not in ("rigs", "frames")}
        found += [Sample(files, open_model, _is_model) for files in (whole, old)]
    return found


def _is_model(model: ColmapModel) -> None:
    assert len({image.name for image in model.images.values()}) == len(model.images)
    for image in model.images.values():
        pose, camera = image.world_from_cam, image.camera
        assert np.isfinite(pose).all() and np.abs(pose).max() <= 1e13
        assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9) and np.linalg.det(pose) > 0
        assert 0 < camera.width <= 1e6 and 0 < camera.height <= 1e6 and np.isfinite(camera.params).all()
        assert camera.model_name == "EQUIRECTANGULAR" or camera.params[0] > 0
    assert np.isfinite(model.xyz).all() and set(model.seen_by.tolist()) <= set(model.images)
    assert len(model.seen_point) == len(model.seen_by) and (model.seen_point < len(model.xyz)).all()
