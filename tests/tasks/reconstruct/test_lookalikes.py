"""Photos without the pairs that contradict their scene, with the cameras that the photos that are left share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli.matchers.filtering import Thumbnail
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.mapper import MappingConfig, map_photos
from dune_cli.sfm.verification import verify_pairs
from dune_cli.tasks.reconstruct.lookalikes import Remapped, without_lookalikes
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos
from support import equal_facades

COUNT = 16


def noise(index: int) -> Thumbnail:
    return Thumbnail.of(np.random.default_rng(index).integers(0, 255, (480, 640, 3)).astype(np.uint8))


def test_models_that_are_made_again_bring_their_cameras(tmp_path: Path) -> None:
    turns = 2 * np.pi * np.arange(COUNT) / COUNT + np.random.default_rng(1).uniform(0.05, 0.15, COUNT)
    correspondences, one_camera = equal_facades.photographed(turns, True)
    verified = verify_pairs(correspondences, one_camera, 0, noise)
    names = tuple(f"{index}.jpg" for index in range(COUNT))
    alone = PhotoCameras(one_camera.shared * COUNT, tuple(range(COUNT)))
    matched = MatchedPhotos([], [], alone, {}, sorted(verified.geometry), correspondences, verified, None, names)
    models = map_photos(correspondences, verified, one_camera, MappingConfig(), tmp_path)
    models = [replace(model, cameras=dict.fromkeys(range(COUNT), model.cameras[0])) for model in models]

    def again(left: MatchedPhotos) -> Remapped:
        shared = replace(left, cameras=one_camera)
        return (
            shared,
            map_photos(correspondences, left.verified, one_camera, MappingConfig(), tmp_path),
            ("one camera",),
        )

    settled, found, notes = without_lookalikes(matched, models, again, Run())
    assert settled.cameras is one_camera and found[0].cameras.keys() == {0}
    assert notes[0] == "one camera" and "contradict it" in notes[1]
    false = [np.cos(turns[i] - turns[j]) < 0 for i, j in settled.verified.contradicting]
    assert len(false) > 10 and all(false)
    assert settled.verified.geometry.keys() | settled.verified.contradicting == verified.geometry.keys()
