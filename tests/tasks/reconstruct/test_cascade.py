"""More than two photos: a second matcher takes on what the first one leaves out, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.matchers import registry
from dune_cli.matchers.matcher import Features
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Run
from dune_cli.sfm import mapper
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import Scene
from dune_cli.sfm.verification import VerifiedPairs
from dune_cli.tasks.reconstruct import matches
from dune_cli.tasks.reconstruct.config import MatchesConfig
from support import synthetic_scenes
from support.many_photos import HEIGHT, WIDTH, K, picture, worst_errors_deg, write

PLACES = range(5)


class Blind(Sift):
    """Sees nothing in the photos of some places."""

    def __init__(self, *places: int) -> None:
        super().__init__(WIDTH, 1500)
        self.unseen = [picture(place).tobytes() for place in places]

    def extract(self, rgb: np.ndarray) -> Features:
        return super().extract(np.zeros_like(rgb) if rgb.tobytes() in self.unseen else rgb)


class Second(Sift):
    """Another matcher, which counts the photos that it sees and the pairs that it compares."""

    name = "second"

    def __init__(self) -> None:
        super().__init__(WIDTH, 1000)
        self.extracted = self.compared = 0

    def extract(self, rgb: np.ndarray) -> Features:
        self.extracted += 1
        return super().extract(rgb)

    def match_indices(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.compared += 1
        return super().match_indices(features1, features2)


class Strict(Blind):
    """Compares its own features only."""

    def match_indices(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert not len(features1.points) or not len(features2.points), "these are features of the other matcher"
        return super().match_indices(features1, features2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("photos"), PLACES)


def reconstruct(photos: list[Path], work: Path, first: Sift, second: Second) -> Scene:
    own = [PhotoCamera.of_matrix(K, "given", WIDTH, HEIGHT)] * len(photos)
    folder = WorkFolder(work)
    return matches.reconstruct(photos, lambda _: own, first, MatchesConfig(), Run(), folder, fallback=lambda: second)


def test_where_all_photos_are_placed_no_second_matcher_is_loaded(photos: list[Path], tmp_path: Path) -> None:
    own = [PhotoCamera.of_matrix(K, "given", WIDTH, HEIGHT)] * len(photos)
    folder = WorkFolder(tmp_path)

    def fallback() -> Sift:
        raise AssertionError("it was loaded")

    scene = matches.reconstruct(photos, lambda _: own, Blind(), MatchesConfig(), Run(), folder, fallback=fallback)
    assert scene.registered == list(PLACES) and len(scene.sources) == 1


def test_of_many_photos_a_draft_tells_which_the_second_has_to_place(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matches, "FEW", 3)
    drafts = []

    def counted(*args: Any, **options: Any) -> mapper.Draft:
        drafts.append(mapper.map_once(*args, **options))
        return drafts[-1]

    monkeypatch.setattr(matches, "map_once", counted)
    second = Second()
    scene = reconstruct(photos, tmp_path / "work", Blind(4), second)
    assert scene.registered == list(PLACES) and second.extracted == 4 and len(drafts) >= 1
    assert not drafts[-1].is_thin and all(view.K is not None for view in scene.views)
    rotation, direction = worst_errors_deg(scene, PLACES)
    assert rotation < 0.2 and direction < 2


@pytest.mark.parametrize("strangers", [0, 1])
def test_photos_between_which_the_camera_only_turned_are_refused_at_once(strangers: int, tmp_path: Path) -> None:
    """A photo that does not connect is no reason to ask the second matcher, which may see what is not there."""
    paths = [tmp_path / f"{index}.png" for index in range(3 + 2 * strangers)]
    for index, path in enumerate(paths):
        turned = synthetic_scenes.pose((0.0, 0.08 * index, 0.0), (0.0, 0.0, 0.0))
        Image.fromarray(synthetic_scenes.render(K, turned, WIDTH, HEIGHT, 0, samples=1)[0]).save(path)
    for index in range(strangers):
        paths.append(tmp_path / f"stranger{index}.png")
        noise = np.random.default_rng(index).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(paths[-1])
    second = Second()
    with pytest.raises(JobFailed, match="only turned"):
        reconstruct(paths, tmp_path / "work", Blind(), second)
    assert second.extracted == 0


def test_a_photo_that_the_first_leaves_out_is_placed_by_the_second(photos: list[Path], tmp_path: Path) -> None:
    second = Second()
    scene = reconstruct(photos, tmp_path / "work", Blind(4), second)
    assert scene.registered == list(PLACES) and len(scene.sources) == 2
    assert "second matched what sift left out: 1 photo" in scene.notes
    assert second.extracted == 4 and second.compared == 6  # with three of the others, and the links between these
    rotation, direction = worst_errors_deg(scene, PLACES)
    assert rotation < 0.2 and direction < 2
    again = Second()
    twice = reconstruct(photos, tmp_path / "work", Blind(4), again)
    assert (again.extracted, again.compared) == (0, 0)
    np.testing.assert_array_equal(twice.sparse.points_world, scene.sparse.points_world)


def test_where_the_first_places_less_than_half_the_second_does_all(photos: list[Path], tmp_path: Path) -> None:
    second = Second()
    scene = reconstruct(photos, tmp_path / "work", Blind(1, 3, 4), second)
    assert scene.registered == list(PLACES) and second.compared == 10
    assert [source.name for source in scene.sources] == [second.source.name]


def test_where_only_the_second_connects_two_photos_they_are_the_scene(photos: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(other)
    second = Second()
    scene = reconstruct([*photos[:2], other], tmp_path / "work", Strict(0, 1), second)
    assert scene.registered == [0, 1] and second.compared == 4  # the three pairs, and the scene's once more
    assert scene.pairs[0].inliers > 100
    assert any(note.startswith("only two photos could be placed") for note in scene.notes)


def test_joined_correspondences_and_pairs() -> None:
    def of(counts: tuple[int, ...], matches: dict[tuple[int, int], list[list[int]]]) -> Correspondences:
        keypoints = tuple(np.arange(2.0 * count).reshape(-1, 2) for count in counts)
        colors = tuple(np.zeros((count, 3), np.uint8) for count in counts)
        arrays = {pair: np.array(rows, np.uint32) for pair, rows in matches.items()}
        return Correspondences(keypoints, colors, tuple(map(float, counts)), arrays)

    both = of((3, 2, 4), {(0, 1): [[2, 1]]}).joined(of((1, 5, 1), {(0, 1): [[0, 4]], (1, 2): [[3, 0]]}))
    assert [len(keypoints) for keypoints in both.keypoints] == [4, 7, 5] and both.pixel_sizes == (3, 5, 4)
    assert both.matches[0, 1].tolist() == [[2, 1], [3, 6]] and both.matches[1, 2].tolist() == [[5, 4]]

    first = VerifiedPairs({(0, 1): "a", (1, 2): "b"}, {(0, 1): (9, 5), (1, 2): (9, 6), (0, 2): (3, 0)})
    second = VerifiedPairs({(0, 1): "c", (0, 2): "d"}, {(0, 1): (20, 15), (1, 2): (20, 0), (0, 2): (8, 7)})
    joined = first.joined(second)
    assert joined.geometry == {(0, 1): "c", (1, 2): "b", (0, 2): "d"}
    assert joined.counts == {(0, 1): (20, 15), (1, 2): (9, 6), (0, 2): (8, 7)}


def test_the_first_of_many_works_at_the_photos_size() -> None:
    first, fallback, note = registry.load_cascade()
    assert first.name == "sift" and fallback is not None and note.startswith("matcher sift; for photos that it leaves")
    features = first.extract(picture(0))
    assert features.photo.rgb.shape == (HEIGHT, WIDTH, 3) and len(features.points) > 300
    assert first.source.name != Sift().source.name  # their features are kept apart in a work folder
