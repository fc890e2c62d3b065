"""Photos without the pairs that contradict their scene, with the cameras that the photos that are left share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.mapper import MappingConfig, map_once, map_photos
from dune_cli.sfm.verification import verify_pairs
from dune_cli.tasks.reconstruct.lookalikes import settled, without_lookalikes
from dune_cli.tasks.reconstruct.mapped_photos import MappedPhotos
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos
from support import equal_facades

COUNT = 16
SIFT = Sift(320, 1500)


def noise(index: int) -> Thumbnail:
    return Thumbnail.of(np.random.default_rng(index).integers(0, 255, (480, 640, 3)).astype(np.uint8))


def around_a_house() -> tuple[np.ndarray, MatchedPhotos]:
    """Photos around a house whose fronts are equal: their directions from it, and their verified pairs."""
    turns = 2 * np.pi * np.arange(COUNT) / COUNT + np.random.default_rng(1).uniform(0.05, 0.15, COUNT)
    correspondences, camera = equal_facades.photographed(turns, True)
    verified = verify_pairs(correspondences, camera, 0, noise)
    names = tuple(f"{index}.jpg" for index in range(COUNT))
    return turns, MatchedPhotos([], [], camera, {}, sorted(verified.geometry), correspondences, verified, None, names)


def test_models_that_are_made_again_bring_their_cameras(tmp_path: Path) -> None:
    turns, matched = around_a_house()
    correspondences, verified, one_camera = matched.correspondences, matched.verified, matched.cameras
    matched = replace(matched, cameras=PhotoCameras(one_camera.shared * COUNT, tuple(range(COUNT))))
    models = map_photos(correspondences, verified, one_camera, MappingConfig(), tmp_path)
    models = [replace(model, cameras=dict.fromkeys(range(COUNT), model.cameras[0])) for model in models]

    def again(left: MappedPhotos) -> MappedPhotos:
        shared = replace(left.matched, cameras=one_camera)
        remaining = shared.verified.without(left.given_up)
        made = map_photos(correspondences, remaining, one_camera, MappingConfig(), tmp_path)
        return replace(left, matched=shared, models=made, notes=(*left.notes, "one camera"))

    mapped = MappedPhotos(matched, [], models, SIFT, ())
    last = without_lookalikes(mapped, again, Run())
    matched, found, notes = last.matched, last.models, last.notes
    assert matched.cameras is one_camera and found[0].cameras.keys() == {0}
    assert notes[0] == "one camera" and "contradict it" in notes[1]
    false = [np.cos(turns[i] - turns[j]) < 0 for i, j in matched.verified.contradicting]
    assert len(false) > 10 and all(false)
    assert matched.verified.geometry.keys() | matched.verified.contradicting == verified.geometry.keys()


def test_what_a_draft_gave_up_stays_out(tmp_path: Path) -> None:
    """Look-alikes are left out before the cameras are calibrated, and the calibrated model is judged with all pairs."""
    turns, matched = around_a_house()
    runs = []

    def drafted(one: MappedPhotos) -> MappedPhotos:
        runs.append(one.given_up)
        left = matched.verified.without(one.given_up)
        draft = map_once(matched.correspondences, left, matched.cameras, MappingConfig(), tmp_path)
        return replace(one, models=draft.models, draft=draft)

    draft, judge = settled(drafted(MappedPhotos(matched, [], [], SIFT, ())), drafted, Run(), bridges=False)
    assert runs[0] == frozenset() and runs[-1] == draft.given_up
    assert all(np.cos(turns[i] - turns[j]) < 0 for i, j in draft.given_up)
    assert not judge.doubtful() and judge.verified is matched.verified
    last = without_lookalikes(draft, drafted, Run())
    assert runs[-1] == draft.given_up  # nothing is mapped again
    assert last.matched.verified.contradicting >= draft.given_up
