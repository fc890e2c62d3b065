"""The control of `dune eval multiview`: pycolmap's own SIFT, matching and incremental mapping, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.io.atomic import scratch_folder
from dune_cli.tasks.reconstruct.verification import Lens, camera_of, open_pycolmap

NAME = "pycolmap-sift"
RELAXED_DEG, RELAXED_INLIERS = 2.0, 50


def map_by_sift(paths: Sequence[Path], lenses: Sequence[Lens], lens_of: Sequence[int], seed: int) -> np.ndarray:
    """(N, 4, 4) `world_from_cam` of the photos in the largest model, NaN of the others.

    All pairs are matched; cameras as in `dune reconstruct` (shared lenses, fixed where known). Default options; where
    these find no pair to start from, once more with any direction of motion, 2 degrees and 50 matches allowed for it.
    """
    pycolmap = open_pycolmap()
    found = np.full((len(paths), 4, 4), np.nan)
    with scratch_folder(prefix="dune-sift-") as scratch:
        folder, database = scratch / "photos", scratch / "database.db"
        folder.mkdir()
        names = [f"{index:08d}{path.suffix}" for index, path in enumerate(paths)]
        for name, path in zip(names, paths):
            (folder / name).symlink_to(path.absolute())
        pycolmap.set_random_seed(seed)
        pycolmap.extract_features(database, folder, names, pycolmap.CameraMode.PER_IMAGE, device=pycolmap.Device.cpu)
        fixed = set()
        with pycolmap.Database.open(database) as opened:
            for name, lens in zip(names, lens_of):
                image = opened.read_image_with_name(name)
                camera = camera_of(pycolmap, lenses[lens])
                camera.camera_id = image.camera_id
                opened.update_camera(camera)
                if lenses[lens].fixed:
                    fixed.add(image.camera_id)
        pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
        options = pycolmap.IncrementalPipelineOptions()
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = seed
        options.constant_cameras = fixed
        options.min_model_size = 3
        output = scratch / "models"
        output.mkdir()
        models = pycolmap.incremental_mapping(database, folder, output, options).values()
        if not models:  # cameras that only go forward
            options.mapper.init_max_forward_motion = 1.0
            options.mapper.init_min_tri_angle = RELAXED_DEG
            options.mapper.init_min_num_inliers = RELAXED_INLIERS
            models = pycolmap.incremental_mapping(database, folder, output, options).values()
        if not models:
            console.note(f"{NAME}: no model")
            return found
        best = max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()))
        for number in best.reg_image_ids():
            image = best.image(number)
            found[names.index(image.name), :3] = image.cam_from_world().inverse().matrix()
            found[names.index(image.name), 3] = 0, 0, 0, 1
    return found
