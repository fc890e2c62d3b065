"""N photos to a scene by matches: accuracy, what is done once, what is kept, and who is left out and why."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry import cameras, poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.io import cache
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Run
from dune_cli.sfm import features
from dune_cli.sfm.scene import LARGE_COORDINATES_NOTE, Scene
from dune_cli.tasks.reconstruct import matches
from dune_cli.tasks.reconstruct.config import MatchesConfig
from dune_cli.tasks.reconstruct.two_view import reconstruct_pair
from support import many_photos, synthetic_scenes
from support.many_photos import HEIGHT, WIDTH, K, arc, worst_errors_deg, write
from support.upright_sift import UprightSift

PLACES = range(6)


class Counting(Sift):
    """Counts how often a photo is looked at and a pair compared."""

    def __init__(self) -> None:
        super().__init__(working_size_px=320, max_keypoints=1500)
        self.extracted = self.compared = 0

    def extract(self, rgb: np.ndarray):
        self.extracted += 1
        return super().extract(rgb)

    def match_indices(self, features1, features2):
        self.compared += 1
        return super().match_indices(features1, features2)


def known(infos: Sequence[PhotoInfo]) -> list[PhotoCamera]:
    return [
        PhotoCamera(Camera.pinhole(cameras.K_from_focal(300.0, p.width, p.height), p.width, p.height), "given", True)
        for p in infos
    ]


def guessed(infos: Sequence[PhotoInfo]) -> list[PhotoCamera]:
    return [
        PhotoCamera.of_matrix(cameras.K_from_fov(55, p.width, p.height), "default", p.width, p.height) for p in infos
    ]


def reconstruct(
    paths: list[Path], work: Path, matcher=None, intrinsics=known, describer=None, poses=None, **settings
) -> tuple[Scene, WorkFolder]:
    folder = WorkFolder(work)
    config = MatchesConfig(**settings)
    load = None if describer is None else lambda: describer
    scene = matches.reconstruct(paths, intrinsics, matcher or Counting(), config, Run(), folder, load, poses)
    return scene, folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("photos"), PLACES)


@pytest.fixture(scope="module")
def done(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    """The scene of all photos, and its work folder, which tests copy."""
    work = tmp_path_factory.mktemp("done") / "work"
    return reconstruct(photos, work)[0], work


def same_scene(one: Scene, two: Scene) -> bool:
    views = all(np.array_equal(a.world_from_cam, b.world_from_cam) for a, b in zip(one.views, two.views))
    return views and np.array_equal(one.sparse.points_world, two.sparse.points_world) and one.pairs == two.pairs


def test_a_rendered_scene_gives_its_cameras_and_points(done: tuple[Scene, Path]) -> None:
    scene = done[0]
    assert scene.registered == list(PLACES) and scene.components == () and scene.scale == "arbitrary"
    rotation, direction = worst_errors_deg(scene, PLACES)
    assert rotation < 0.1 and direction < 1
    np.testing.assert_array_equal(scene.views[0].world_from_cam, np.eye(4))
    centres = np.stack([view.world_from_cam[:3, 3] for view in scene.views])
    assert np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1)) == pytest.approx(1)
    assert all(np.array_equal(view.K, K) and view.focal_source == "given" for view in scene.views)
    assert len(scene.sparse.points_world) > 300 and scene.reprojection_error_px < 1
    for view, (index, pixels) in zip(scene.views, scene.sparse.observations):
        seen = poses.transform_points(poses.inverse(view.world_from_cam), scene.sparse.points_world[index])
        off = np.linalg.norm(cameras.project(seen, K) - pixels, axis=1)
        assert np.median(off) < 0.5
        shade = features.colors_at(many_photos.picture(int(view.image[1])), pixels).astype(float)
        assert np.median(np.abs(shade - scene.sparse.colors[index])) < 12
    assert 1 < scene.parallax_deg < 20


def test_every_photo_and_pair_is_looked_at_once_and_a_second_run_looks_at_none(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path
) -> None:
    first = Counting()
    scene, work = reconstruct(photos, tmp_path / "work", first)
    assert (first.extracted, first.compared) == (6, 15)
    assert work.counts["features"] == 6 and work.counts["matches"] == 15
    again = Counting()
    twice, work = reconstruct(photos, tmp_path / "work", again)
    assert (again.extracted, again.compared) == (0, 0) and work.counts["features"] == 0
    assert same_scene(scene, twice) and same_scene(scene, done[0])


def test_a_run_that_was_killed_goes_on_and_gives_the_same(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path
) -> None:
    class Killed(Counting):
        def match_indices(self, features1, features2):
            if self.compared == 5:
                raise KeyboardInterrupt
            return super().match_indices(features1, features2)

    with pytest.raises(KeyboardInterrupt):
        reconstruct(photos, tmp_path / "work", Killed())
    rest = Counting()
    scene, _ = reconstruct(photos, tmp_path / "work", rest)
    assert (rest.extracted, rest.compared) == (0, 10)
    assert same_scene(scene, done[0])


def test_a_full_disk_keeps_what_was_finished(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = cache.atomic_path, []

    def full(path: Path, **settings: bool):
        written.append(path)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, **settings)

    monkeypatch.setattr(cache, "atomic_path", full)
    with pytest.raises(OSError, match="No space left"):
        reconstruct(photos, tmp_path / "work")
    monkeypatch.setattr(cache, "atomic_path", real)
    rest = Counting()
    scene, _ = reconstruct(photos, tmp_path / "work", rest)
    assert (
        rest.extracted == 2 and len(scene.registered) == 6
    )  # 9 files: metadata and features of four, metadata of a fifth


def test_a_damaged_file_in_the_work_folder_is_made_again(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    victims = [next((tmp_path / "work" / kind).rglob("*.safetensors")) for kind in ("features", "matches", "photos")]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:20])
    scene, _ = reconstruct(photos, tmp_path / "work")
    assert capsys.readouterr().err.count("); it is computed again") == 3
    assert same_scene(scene, done[0])


def test_the_order_of_the_photos_does_not_matter_to_the_work_folder(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path
) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    again = Counting()
    scene, _ = reconstruct(photos[::-1], tmp_path / "work", again)
    assert (again.extracted, again.compared) == (0, 0)
    rotation, direction = worst_errors_deg(scene, PLACES[::-1])
    assert rotation < 0.1 and direction < 1


def test_an_unknown_focal_length_is_found_and_shared(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path
) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    scene, _ = reconstruct(photos, tmp_path / "work", intrinsics=guessed)
    assert {view.focal_source for view in scene.views} == {"estimated"}
    assert len({(float(view.K[0, 0]), view.radial) for view in scene.views}) == 1
    assert scene.views[0].K[0, 0] == pytest.approx(300, rel=0.05)
    assert "focal length of 6 photos: 307 -> 3" in scene.notes[-1]
    calibration = scene.views[0].calibration
    assert calibration.focal_sd < 0.03 and calibration.focal_before_px == pytest.approx(307.3, abs=0.1)
    assert abs(scene.views[0].K[0, 0] / 300 - 1) < 3 * calibration.focal_sd


def test_portrait_and_landscape_of_two_cameras_go_together(tmp_path: Path) -> None:
    paths = write(tmp_path, (0, 2, 4)) + write(tmp_path, (1, 3), prefix="q", portrait=True)
    scene, _ = reconstruct(paths, tmp_path / "work")
    assert len(scene.registered) == 5
    assert [(view.width, view.height) for view in scene.views] == [(WIDTH, HEIGHT)] * 3 + [(HEIGHT, WIDTH)] * 2
    rotation, direction = worst_errors_deg(scene, (0, 2, 4, 1, 3))
    assert rotation < 0.2 and direction < 1


@pytest.mark.slow
def test_those_who_are_left_out_are_named_with_the_reason(photos: list[Path], tmp_path: Path) -> None:
    copy = shutil.copy(photos[1], tmp_path / "copy.png")
    strangers = write(tmp_path, (0, 1, 2), seed=5, prefix="other")
    grey = tmp_path / "grey.png"
    from PIL import Image

    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)).save(grey)
    lone = write(tmp_path, (0,), seed=9, prefix="lone")
    scene, _ = reconstruct([*photos[:4], Path(copy), *strangers, grey, *lone], tmp_path / "work")
    assert scene.registered == [0, 1, 2, 3]
    assert scene.components == ((0, 1, 2, 3), (5, 6, 7))
    reasons = {Path(view.image).name: view.reason for view in scene.views if not view.registered}
    assert reasons["copy.png"] == f"it is the same picture as {scene.views[1].image}"
    assert reasons["other1.png"].startswith(
        f"it hangs together only with {scene.views[5].image}, {scene.views[7].image}"
    )
    assert reasons["grey.png"].startswith("no match: at most 0 matches")
    assert reasons["lone0.png"].startswith(("no match: at most", "too few inliers:"))
    assert all(np.isnan(scene.views[index].world_from_cam).all() for index in range(4, 10))
    assert [len(scene.sparse.observations[index][0]) for index in range(4, 10)] == [0] * 6


def test_where_only_two_hang_together_they_are_a_pair(photos: list[Path], tmp_path: Path) -> None:
    paths = [*write(tmp_path, (0,), seed=9, prefix="lone"), photos[0], photos[2]]
    matcher = Counting()
    scene, _ = reconstruct(paths, tmp_path / "work", matcher)
    assert scene.registered == [1, 2] and scene.is_dense and matcher.extracted == 3
    two = [f"{photos[index].parent.name}/p{index}.png" for index in (0, 2)]
    assert f"only two photos could be placed: {two[0]} and {two[1]}" in scene.notes
    assert [view.image for view in scene.views[1:]] == two
    assert "lone0.png" in scene.views[0].image and scene.views[0].reason
    assert len(scene.sparse.observations) == 3 and len(scene.cloud()[0]) > 1000
    rotation, direction = worst_errors_deg(scene, (0, 0, 2))
    assert rotation < 0.1 and direction < 1


@pytest.mark.slow
def test_photos_that_give_no_scene_at_all(photos: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(photos[0], tmp_path / f"copy{i}.png")) for i in range(3)]
    with pytest.raises(JobFailed, match="all 3 photos are the same picture"):
        reconstruct(copies, tmp_path / "work")
    strangers = [write(tmp_path, (0,), seed=seed, prefix=f"s{seed}_")[0] for seed in (5, 9, 13)]
    with pytest.raises(JobFailed, match=r"no two of the 3 photos show enough of the same place: .* the best pair"):
        reconstruct(strangers, tmp_path / "work")


def tripod(folder: Path, angles_deg: Sequence[float], shake: float = 0.0, prefix: str = "t") -> list[Path]:
    """Pictures from one place (up to `shake`), each turned to the side."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, angle in enumerate(angles_deg):
        centre = np.random.default_rng(number).normal(0, shake, 3) if shake else np.zeros(3)
        place = synthetic_scenes.pose((0.0, float(np.radians(angle)), 0.0), tuple(centre))
        paths.append(folder / f"{prefix}{number}.png")
        Image.fromarray(synthetic_scenes.render(K, place, WIDTH, HEIGHT, samples=1)[0]).save(paths[-1])
    return paths


@pytest.mark.parametrize("intrinsics", [known, guessed])
@pytest.mark.parametrize("shake", [0.0, 0.001])
def test_a_camera_that_only_turned_is_named(tmp_path: Path, intrinsics, shake: float) -> None:
    paths = tripod(tmp_path / "photos", (-8, 0, 8, 16), shake)
    lone = write(tmp_path, (0,), seed=9, prefix="lone")
    for photos in (paths, [*lone, *paths]):
        with pytest.raises(JobFailed, match=r"the camera only turned between the photos.*of the 4 photos.*move it"):
            reconstruct(photos, tmp_path / "work", intrinsics=intrinsics)


def test_a_turned_group_is_left_out_beside_one_with_parallax(photos: list[Path], tmp_path: Path) -> None:
    strangers = write(tmp_path, (0, 1, 2), seed=5, prefix="other")
    scene, _ = reconstruct([*tripod(tmp_path, (-8, 0, 8, 16)), *strangers], tmp_path / "work", intrinsics=guessed)
    assert scene.registered == [4, 5, 6]
    assert all(view.reason.startswith("the camera only turned between it and t") for view in scene.views[:4])
    # one step to the side, and the others have their places
    more, _ = reconstruct([*tripod(tmp_path, (-8, 0, 8)), photos[2]], tmp_path / "work")
    assert more.registered == [0, 1, 2, 3] and len(more.sparse.points_world) > 100


def test_known_poses_stay_as_they_are(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    moved = synthetic_world()
    given = {path: moved @ arc(index) for index, path in enumerate(photos)}
    scene, _ = reconstruct(photos, tmp_path / "work", poses=given)
    for view, pose in zip(scene.views, given.values()):
        np.testing.assert_allclose(view.world_from_cam, pose, atol=1e-9)
    assert scene.world == "that of --poses" and scene.scale_note == "lengths are those of --poses"
    assert len(scene.sparse.points_world) > 300 and scene.reprojection_error_px < 1
    assert not any("contradict" in note for note in scene.notes)


def test_known_poses_of_other_photos_are_told(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    given = {path: arc(index) for index, path in zip((0, 2, 4, 1, 5, 3), photos)}
    scene, _ = reconstruct(photos, tmp_path / "work", poses=given)
    assert any("the known poses contradict the photos" in note for note in scene.notes)


@pytest.mark.parametrize("frame", ["utm", "earth-centred"])
@pytest.mark.parametrize("fixed", [True, False])
def test_large_coordinates_cost_no_digits(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path, frame: str, fixed: bool
) -> None:
    """The scene in such a frame is the one of near poses, moved (to a micrometre) or turned, which bundle adjustment
    feels a little: not to float32's half a metre."""
    shutil.copytree(done[1], tmp_path / "work")
    far = poses.from_rotation_translation(np.eye(3), np.array([512345.678, 4567890.123, 187.5]))
    if frame == "earth-centred":
        far = poses.from_rotation_translation(
            poses.rotation_from_rotvec(np.array([0.4, -0.9, 1.1])), np.array([4027893.75, 306998.5, 4919498.25])
        )
    near = {path: arc(index) for index, path in enumerate(photos)}
    given = {path: far @ pose for path, pose in near.items()}
    local, _ = reconstruct(photos, tmp_path / "work", poses=near, fixed_poses=fixed)
    scene, _ = reconstruct(photos, tmp_path / "work", poses=given, fixed_poses=fixed)
    assert (
        local.world_offset is None
        and LARGE_COORDINATES_NOTE not in local.notes
        and LARGE_COORDINATES_NOTE in scene.notes
    )
    assert np.abs(scene.sparse.points_world).max() < 100
    tolerance = 1e-6 if frame == "utm" else 1e-3
    for view, pose in zip(scene.views, given.values()):
        np.testing.assert_allclose(scene.pose_in_world(view), pose, atol=1e-8 if fixed else 0.05)
    there = scene.in_world(scene.sparse.points_world)
    back = poses.transform_points(poses.inverse(far), there)
    if fixed:
        np.testing.assert_allclose(back, local.sparse.points_world, atol=tolerance)
    assert len(back) > 0.95 * len(local.sparse.points_world)


def test_photos_without_a_pose_are_placed_beside_the_known_ones(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path
) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    moved = synthetic_world()
    given = {photos[index]: moved @ arc(index) for index in (0, 1, 3, 5)}
    scene, _ = reconstruct(photos, tmp_path / "work", poses=given)
    assert scene.registered == list(PLACES)
    for index in (0, 1, 3, 5):
        np.testing.assert_allclose(scene.views[index].world_from_cam, given[photos[index]], atol=1e-9)
    for index in (2, 4):
        np.testing.assert_allclose(scene.views[index].world_from_cam, moved @ arc(index), atol=0.01)


def test_poses_as_priors_may_be_off(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    rng = np.random.default_rng(0)
    moved = synthetic_world()
    given = {}
    for index, path in enumerate(photos):
        given[path] = moved @ arc(index)
        given[path][:3, 3] += rng.normal(0, 0.005, 3)
    scene, _ = reconstruct(photos, tmp_path / "work", poses=given, fixed_poses=False)
    rotation, direction = worst_errors_deg(scene, PLACES)
    assert rotation < 0.2 and direction < 1
    truth = np.stack([(moved @ arc(index))[:3, 3] for index in PLACES])
    found = np.stack([view.world_from_cam[:3, 3] for view in scene.views])
    assert np.linalg.norm(found - truth, axis=1).max() < 0.05


def synthetic_world() -> np.ndarray:
    """A world that is not camera 0's."""
    turn = poses.rotation_from_rotvec(np.array([0.3, -0.2, 0.5]))
    return poses.from_rotation_translation(turn, np.array([4.0, -2.0, 1.0]))


def test_a_baseline_makes_it_metric(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    true = float(np.linalg.norm(arc(1)[:3, 3] - arc(0)[:3, 3]))
    scene, _ = reconstruct(photos, tmp_path / "work", baseline=true)
    assert scene.scale == "metric" and scene.scale_note is None
    np.testing.assert_allclose(scene.views[5].world_from_cam[:3, 3], arc(5)[:3, 3], atol=0.02)
    lone = write(tmp_path, (0,), seed=9, prefix="lone")
    with pytest.raises(JobFailed, match=r"--baseline is between the first two photos, and .*/lone0.png could not be"):
        reconstruct([*lone, *photos], tmp_path / "work", baseline=true)


def test_global_mapping_agrees(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    scene, _ = reconstruct(photos, tmp_path / "work", mapper="global")
    assert scene.registered == list(PLACES)
    rotation, direction = worst_errors_deg(scene, PLACES)
    assert rotation < 0.2 and direction < 1
    assert same_scene(scene, reconstruct(photos, tmp_path / "work", mapper="global")[0])


def test_pairs_by_retrieval_describe_each_photo_once(
    photos: list[Path], done: tuple[Scene, Path], tmp_path: Path
) -> None:
    asked = []

    def describe(rgb: np.ndarray) -> np.ndarray:
        asked.append(rgb)
        small = rgb[::40, ::40].astype(np.float32).ravel()
        return small / np.linalg.norm(small)

    describer = features.DescriptorExtractor("thumbnail", ("1",), describe)
    shutil.copytree(done[1], tmp_path / "work")
    for _ in range(2):
        scene, _ = reconstruct(photos, tmp_path / "work", describer=describer, pairs="retrieval", neighbours=3)
        assert len(asked) == 6 and len(scene.pairs) < 15 and len(scene.registered) == 6
    by_keypoints, _ = reconstruct(photos, tmp_path / "work", pairs="retrieval", neighbours=3)
    assert len(by_keypoints.registered) == 6 and len(by_keypoints.pairs) < 15


@pytest.mark.parametrize("ask", [{"pairs": "retrieval"}, {"pairs": "all"}])
def test_matchers_without_lasting_keypoints(photos: list[Path], tmp_path: Path, ask: dict[str, str]) -> None:
    """Their matches' places become keypoints; pairs cannot be retrieved by those."""
    matcher = split_only(Counting())
    if ask["pairs"] == "retrieval":
        with pytest.raises(UserError, match=r"--retrieval-model, or give --pairs sequential, all or a file"):
            reconstruct(photos[:4], tmp_path / "work", matcher, **ask)
        return
    scene, _ = reconstruct(photos[:4], tmp_path / "work", matcher, **ask)
    assert scene.registered == [0, 1, 2, 3]
    rotation, direction = worst_errors_deg(scene, PLACES)
    assert rotation < 0.2 and direction < 1


def split_only(inner: Counting) -> object:
    from dune_cli.matchers.matcher import CacheableMatcher

    class Split(CacheableMatcher):
        name, source, working_size_px = "split", inner.source, inner.working_size_px
        extract: Callable = staticmethod(inner.extract)
        match_features: Callable = staticmethod(inner.match_features)
        pack: Callable = staticmethod(inner.pack)
        unpack: Callable = staticmethod(inner.unpack)
        _rotated: Callable = staticmethod(inner._rotated)

    return Split()


def test_photos_on_their_head_join_the_others(photos: list[Path], tmp_path: Path) -> None:
    """Flight lines that go back and forth: pixels turned, no EXIF."""
    from PIL import Image

    paths = [photos[0], photos[1], photos[2]]
    for index in (3, 4):
        paths.append(tmp_path / f"turned{index}.png")
        Image.fromarray(np.rot90(many_photos.picture(index), 2)).save(paths[-1])
    scene, work = reconstruct(paths, tmp_path / "work", UprightSift())
    assert scene.registered == [0, 1, 2, 3, 4]
    assert any("turned3.png, turned4.png were rotated clockwise by 180 degrees" in note for note in scene.notes)
    for view in scene.views[3:]:
        view.world_from_cam[:3, :3] @= np.diag([-1.0, -1.0, 1.0])
    rotation, direction = worst_errors_deg(scene, range(5))
    assert rotation < 0.2 and direction < 1
    again = UprightSift()
    reconstruct(paths, tmp_path / "work", again)
    assert again.extracted == 0 and work.counts["features"] > 5


def test_a_caption_on_all_photos_joins_no_places(tmp_path: Path) -> None:
    from PIL import Image

    mark = synthetic_scenes.texture(77, 0)[:50, :200].astype(np.uint8)
    paths = []
    for seed in (5, 9, 13):
        rgb = many_photos.picture(0, seed).copy()
        rgb[-50:, :200] = mark
        paths.append(tmp_path / f"s{seed}.png")
        Image.fromarray(rgb).save(paths[-1])
    with pytest.raises(JobFailed, match=r"no two of the 3 photos agree in more than what lies at the same pixels"):
        reconstruct(paths, tmp_path / "work")
    with pytest.raises(JobFailed, match=r"agree only in what lies at the same pixels of both"):
        two = [read_photo(path) for path in paths[:2]]
        own = [PhotoCamera.of_matrix(K, "given", WIDTH, HEIGHT)] * 2
        reconstruct_pair(two, own, Counting(), MatchesConfig(), Run())


def test_a_list_of_pairs_may_name_a_copy(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    copy = Path(shutil.copy(photos[2], tmp_path / "copy.png"))
    (tmp_path / "pairs.txt").write_text(
        "p0.png p1.png\np1.png copy.png\np0.png p2.png\ncopy.png p2.png\np2.png p3.png\n"
    )
    scene, work = reconstruct([*photos[:4], copy], tmp_path / "work", pairs=str(tmp_path / "pairs.txt"))
    assert {pair.images for pair in scene.pairs} == {(0, 1), (0, 2), (1, 2), (2, 3)}
    assert work.counts["matches"] == 0 and scene.views[4].reason == f"it is the same picture as {scene.views[2].image}"


def test_two_photos_of_known_poses(photos: list[Path], done: tuple[Scene, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "work")
    given = {path: arc(index) for index, path in enumerate(photos[:2])}
    scene, _ = reconstruct(photos[:2], tmp_path / "work", poses=given)
    assert scene.registered == [0, 1] and len(scene.sparse.points_world) > 100
    np.testing.assert_allclose(scene.views[1].world_from_cam, arc(1), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size_px", "placed"), [("hololens", 560, 8), ("lund", 1024, 8)])
def test_real_photos_of_known_cameras(shared_data: Path, tmp_path: Path, name: str, size_px: int, placed: int) -> None:
    """hololens: the widest pair sees a plane and begins with the wrong one of two poses; lund: the camera drives
    ahead, where COLMAP's own start finds no first pair."""
    import json

    tree = json.loads((shared_data / "multiview" / name / "cameras.json").read_text())
    paths = [shared_data / "multiview" / name / frame["file"] for frame in tree["frames"]]
    given = [
        PhotoCamera.of_matrix(np.array(frame["K"]), "given", frame["width"], frame["height"])
        for frame in tree["frames"]
    ]
    scene, _ = reconstruct(paths, tmp_path / "work", Sift(size_px, 3000), lambda infos: given)
    assert len(scene.registered) >= placed and scene.reprojection_error_px < 1
    truth = [np.array(frame["T_cam_to_world"]) for frame in tree["frames"]]
    errors = []
    for a, b in zip(scene.registered, scene.registered[1:]):
        found = poses.inverse(scene.views[a].world_from_cam) @ scene.views[b].world_from_cam
        true = poses.inverse(truth[a]) @ truth[b]
        turn = poses.rotation_angle(found[:3, :3].T @ true[:3, :3])
        errors.append((turn, poses.vector_angle(found[:3, 3], true[:3, 3])))
    assert (np.degrees(np.median(errors, axis=0)) < (1, 5)).all()
