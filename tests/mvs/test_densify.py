"""Dense points of several views on a ray-cast scene with exact cameras: depth, agreement, scale, order, refusals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry import cameras, poses
from dune_cli.io.meshes import Frustum
from dune_cli.mvs import densify, view_selection
from dune_cli.mvs.densify import estimate_depth_maps
from dune_cli.mvs.fusion import fuse
from dune_cli.mvs.meshing import extract_mesh
from dune_cli.mvs.quality import QUALITIES, DenseConfig, QualityPreset
from dune_cli.mvs.sky import SkyNetwork
from dune_cli.provenance import Run
from dune_cli.sfm.scene import FusedCloud, PointMap, SparsePoints
from support import synthetic_scenes

WIDTH, HEIGHT = 160, 120
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
POSES = [
    np.eye(4),
    synthetic_scenes.pose((0.0, 0.04, 0.01), (0.35, 0.0, 0.05)),
    synthetic_scenes.pose((0.02, -0.05, 0.0), (-0.35, 0.05, 0.0)),
    synthetic_scenes.pose((-0.04, 0.0, 0.03), (0.05, -0.3, 0.1)),
]
LOW = DenseConfig("low")


@dataclass(frozen=True)
class Shots:
    rgbs: list[np.ndarray]
    depths: list[np.ndarray]
    sparse: SparsePoints

    @property
    def cameras(self) -> list[Frustum]:
        return [Frustum(K, pose, WIDTH, HEIGHT) for pose in POSES]


@pytest.fixture(scope="module")
def shots() -> Shots:
    rgbs, depths = zip(*(synthetic_scenes.render(K, pose, WIDTH, HEIGHT) for pose in POSES))
    return Shots(list(rgbs), list(depths), _sparse(depths))


def _sparse(depths: tuple[np.ndarray, ...]) -> SparsePoints:
    """Every 6th pixel of the first view, seen by the views that really see it."""
    points = cameras.backproject(cameras.pixel_grid(HEIGHT, WIDTH), depths[0], K)
    observations = []
    chosen = np.zeros((HEIGHT, WIDTH), bool)
    chosen[3::6, 3::6] = True
    for pose, depth in zip(POSES, depths):
        seen = synthetic_scenes.visible_in(depths[0], depth, K, poses.inverse(pose))[chosen]
        pixels = cameras.project(poses.transform_points(poses.inverse(pose), points[chosen]), K)
        observations.append((np.flatnonzero(seen), pixels[seen]))
    count = int(chosen.sum())
    return SparsePoints(points[chosen], np.zeros((count, 3), np.uint8), np.ones(count), tuple(observations))


@pytest.fixture(scope="module")
def maps(shots: Shots) -> list[PointMap]:
    found = estimate_depth_maps(shots.rgbs, [K] * 4, POSES, shots.sparse, LOW, Run())
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


@pytest.fixture(scope="module")
def cloud(maps: list[PointMap], shots: Shots) -> FusedCloud:
    return fuse(maps, shots.cameras)


def _depth(one: PointMap, pose: np.ndarray) -> np.ndarray:
    return np.where(one.valid, poses.transform_points(poses.inverse(pose), one.points_world)[..., 2], np.nan)


def _distances(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of points (M, 3) from the scene's nearest face: the distance, and that face's normal (M, 3)."""
    distances, normals = [], []
    for corner, u, v in synthetic_scenes.rectangles():
        at = points - corner
        inside = np.stack([(at @ side / (side @ side)).clip(0, 1) for side in (u, v)])
        distances.append(np.linalg.norm(at - inside[0][:, None] * u - inside[1][:, None] * v, axis=1))
        normals.append(np.cross(u, v) / np.linalg.norm(np.cross(u, v)))
    distances = np.array(distances)
    return distances.min(0), np.array(normals)[distances.argmin(0)]


def test_depth_is_right_and_covers_what_others_see(maps: list[PointMap], shots: Shots) -> None:
    for i, (one, pose, true) in enumerate(zip(maps, POSES, shots.depths)):
        others = [j for j in range(4) if j != i]
        seen = sum(
            synthetic_scenes.visible_in(true, shots.depths[j], K, poses.inverse(POSES[j]) @ pose).astype(int)
            for j in others
        )
        error = np.abs(_depth(one, pose) / true - 1)
        assert np.nanmedian(error) < 0.003  # a pixel of parallax is 0.03 at the median depth
        assert np.nanquantile(error, 0.95) < 0.03
        assert one.valid[seen >= 2].mean() > 0.7
        assert one.points_world.shape == (HEIGHT, WIDTH, 3) and np.array_equal(one.image_from_map, np.eye(3))
        assert ((one.confidence >= 0) & (one.confidence <= 1)).all() and not one.confidence[~one.valid].any()


def test_confidence_ranks_errors(maps: list[PointMap], shots: Shots) -> None:
    error, confidence = (
        np.concatenate(values)
        for values in zip(
            *(
                (np.abs(_depth(one, pose) / true - 1)[one.valid], one.confidence[one.valid])
                for one, pose, true in zip(maps, POSES, shots.depths)
            )
        )
    )
    high = confidence >= np.median(confidence)
    assert error[high].mean() < 0.6 * error[~high].mean()


@pytest.mark.parametrize("scale", [0.01, 64.0])
def test_depth_scales_with_the_poses(scale: float, maps: list[PointMap], shots: Shots) -> None:
    larger = []
    for pose in POSES:
        larger.append(pose.copy())
        larger[-1][:3, 3] *= scale
    sparse = SparsePoints(
        shots.sparse.points_world * scale, shots.sparse.colors, shots.sparse.confidence, shots.sparse.observations
    )
    found = estimate_depth_maps(shots.rgbs, [K] * 4, larger, sparse, LOW, Run())
    for one, same in zip(found, maps):
        assert one is not None
        both = one.valid & same.valid
        assert both.sum() > 0.99 * same.valid.sum()
        ratio = one.points_world[both] / scale - same.points_world[both]
        assert np.quantile(np.abs(ratio), 0.99) < 0.01


def test_the_order_of_views_does_not_matter(maps: list[PointMap], shots: Shots, cloud: FusedCloud) -> None:
    order = [2, 0, 3, 1]
    sparse = SparsePoints(
        shots.sparse.points_world,
        shots.sparse.colors,
        shots.sparse.confidence,
        tuple(shots.sparse.observations[i] for i in order),
    )
    found = estimate_depth_maps([shots.rgbs[i] for i in order], [K] * 4, [POSES[i] for i in order], sparse, LOW, Run())
    for i, one in zip(order, found):
        assert one is not None
        both = one.valid & maps[i].valid
        assert both.sum() > 0.99 * maps[i].valid.sum()
        assert np.quantile(np.abs(one.points_world[both] - maps[i].points_world[both]), 0.99) < 0.01
    again = fuse([maps[i] for i in order], [shots.cameras[i] for i in order])
    rows = [one[np.lexsort(one.T)] for one in (cloud.points_world, again.points_world)]
    np.testing.assert_array_equal(*rows)


def test_what_only_one_view_shows_is_not_confirmed(shots: Shots) -> None:
    rgbs = [rgb.copy() for rgb in shots.rgbs]
    area = (slice(40, 80), slice(50, 110))
    rgbs[0][area] = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    found = estimate_depth_maps(rgbs, [K] * 4, POSES, shots.sparse, LOW, Run())[0]
    assert found is not None
    assert found.valid[area].mean() < 0.1


def test_a_view_that_agrees_raises_the_expected_share_and_one_that_contradicts_lowers_it() -> None:
    consistent, violations, hidden = np.meshgrid(*3 * [np.arange(5)], indexing="ij")
    for correlation in (0.0, 0.4, 1.0):
        share = densify.expected_share(consistent, violations, hidden, np.full(consistent.shape, correlation))
        assert ((share > 0) & (share < 1)).all()
        steps = [np.diff(share, axis=axis) for axis in range(3)]
        assert (steps[0] > 0).all() and (steps[1] < 0).all() and (steps[2] < 0).all()
    # what counts is who contradicts, not how many views do not look there
    of_few, of_many = densify.expected_share(np.array([1, 2]), np.array([0, 1]), np.array([0, 3]), np.full(2, 0.9))
    assert of_few > LOW.min_share > of_many


def test_a_place_that_one_other_view_shows_has_a_depth(shots: Shots) -> None:
    rgbs = [rgb.copy() for rgb in shots.rgbs]
    points = cameras.backproject(cameras.pixel_grid(HEIGHT, WIDTH), shots.depths[0], K)
    area = np.zeros((HEIGHT, WIDTH), bool)
    area[45:75, 55:105] = True
    for j in (2, 3):  # these views look past the area: it is outside of them
        pixels = cameras.project(poses.transform_points(poses.inverse(POSES[j]), points[area]), K)
        cut = round(float(pixels[:, 0].min()))
        rgbs[j] = rgbs[j][:, : max(cut, 24)]
    found = estimate_depth_maps(rgbs, [K] * 4, POSES, shots.sparse, LOW, Run())[0]
    assert found is not None
    seen = area & synthetic_scenes.visible_in(shots.depths[0], shots.depths[1], K, poses.inverse(POSES[1]))
    assert found.valid[seen].mean() > 0.6
    assert np.nanmedian(np.abs(_depth(found, POSES[0]) / shots.depths[0] - 1)[seen]) < 0.01


def test_two_views_confirm_each_other_with_any_number_of_threads(shots: Shots, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = SparsePoints(
        shots.sparse.points_world, shots.sparse.colors, shots.sparse.confidence, shots.sparse.observations[:2]
    )
    by_threads = []
    for threads in (1, 3):
        monkeypatch.setattr(densify, "available_threads", lambda threads=threads: threads)
        by_threads.append(estimate_depth_maps(shots.rgbs[:2], [K] * 2, POSES[:2], sparse, LOW, Run()))
    found, same = by_threads
    for one, other in zip(found, same):
        assert one is not None and other is not None
        assert one.points_world.tobytes() == other.points_world.tobytes()
        assert one.confidence.tobytes() == other.confidence.tobytes()
    for one, pose, true in zip(found, POSES, shots.depths):
        assert one is not None and one.valid.mean() > 0.5
        assert np.nanmedian(np.abs(_depth(one, pose) / true - 1)) < 0.005


def test_sky_has_no_points_and_contradicts_those_before_it(shots: Shots, maps: list[PointMap]) -> None:
    def probability(rgb: np.ndarray) -> np.ndarray:
        shown = np.zeros((HEIGHT // 8, WIDTH // 8), np.float32)
        shown[:, : WIDTH // 24] = not np.array_equal(rgb, shots.rgbs[1])
        return shown

    network = SkyNetwork(probability, ())
    found = estimate_depth_maps(shots.rgbs, [K] * 4, POSES, shots.sparse, LOW, Run(), sky=network)
    assert maps[0].sky is None
    for i, (one, before) in enumerate(zip(found, maps)):
        assert one is not None and one.sky is not None
        assert one.sky[:, : WIDTH // 4].any() == (i != 1) and not one.valid[one.sky].any()
        both = one.valid & before.valid
        assert (one.confidence[both] <= before.confidence[both] + 1e-6).mean() > 0.99
    assert found[1] is not None and found[1].valid.sum() < 0.9 * maps[1].valid.sum()


def test_views_without_pose_points_or_partners_have_no_depth(shots: Shots) -> None:
    nowhere = [POSES[0], POSES[1], np.full((4, 4), np.nan), POSES[3]]
    observations = [*shots.sparse.observations]
    observations[3] = (np.zeros(0, int), np.zeros((0, 2)))
    sparse = SparsePoints(shots.sparse.points_world, shots.sparse.colors, shots.sparse.confidence, tuple(observations))
    found = estimate_depth_maps(shots.rgbs, [K] * 4, nowhere, sparse, LOW, Run())
    assert [one is None for one in found] == [False, False, True, True]


def test_large_photos_are_reduced_and_the_map_says_where_they_lie(
    shots: Shots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUALITIES, "low", QualityPreset(120, 96, 3, 1))
    found = estimate_depth_maps(shots.rgbs, [K] * 4, POSES, shots.sparse, LOW, Run())[0]
    assert found is not None and found.valid.shape == found.colors.shape[:2] == (90, 120)
    pixel = cameras.transform_pixels(found.image_from_map, np.array([[0.0, 0.0], [119.0, 89.0]]))
    np.testing.assert_allclose(pixel + 0.5, (np.array([[0.5, 0.5], [119.5, 89.5]])) * 4 / 3, atol=1e-9)
    x, y = np.moveaxis(cameras.transform_pixels(found.image_from_map, cameras.pixel_grid(90, 120)), -1, 0)
    true = shots.depths[0][np.rint(y).astype(int), np.rint(x).astype(int)]
    assert found.valid.mean() > 0.4 and np.nanmedian(np.abs(_depth(found, np.eye(4)) / true - 1)) < 0.01


def test_the_cloud_has_every_place_once_with_its_normal(maps: list[PointMap], cloud: FusedCloud) -> None:
    count = sum(int(one.valid.sum()) for one in maps)
    assert len(cloud.points_world) < 0.6 * count
    distance, normal = _distances(cloud.points_world)
    assert np.median(distance) < 0.02 and np.quantile(distance, 0.95) < 0.15
    flat = distance < 0.03
    angle = np.degrees(np.arccos(np.abs((cloud.normals * normal).sum(1)).clip(0, 1)))[flat]
    assert np.median(angle) < 10
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-5)
    assert ((cloud.normals * cloud.points_world).sum(1) < 0).mean() > 0.99  # towards the cameras


def test_one_map_alone_keeps_its_points(maps: list[PointMap], shots: Shots) -> None:
    alone = fuse([maps[0], None], shots.cameras[:2])
    assert len(alone.points_world) > 0.95 * maps[0].valid.sum()


@pytest.mark.parametrize("method", ["tsdf", "poisson"])
def test_the_surface_lies_on_the_scene(method: str, maps: list[PointMap], shots: Shots, cloud: FusedCloud) -> None:
    mesh = extract_mesh(maps, shots.cameras, cloud, method)
    assert len(mesh.faces) > 5000 and mesh.colors is not None
    distance, _ = _distances(mesh.vertices)
    assert np.median(distance) < 0.03 and np.quantile(distance, 0.9) < 0.2
    pixels = cameras.project(mesh.vertices, K)
    x, y = np.rint(pixels).astype(int).T
    seen = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    shown = shots.rgbs[0][y[seen], x[seen]].astype(float)
    assert np.corrcoef(mesh.colors[seen].mean(1), shown.mean(1))[0, 1] > 0.6


def test_small_holes_of_a_surface_are_closed_and_large_ones_stay() -> None:
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[20:26, 30:37] = valid[60:110, 60:130] = False
    points = cameras.backproject(cameras.pixel_grid(HEIGHT, WIDTH), np.full((HEIGHT, WIDTH), 2.0), K)
    colors = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    wall = PointMap(points.astype(np.float32), np.where(valid, 0.9, 0).astype(np.float32), valid, colors, np.eye(3))
    camera = Frustum(K, np.eye(4), WIDTH, HEIGHT)
    mesh = extract_mesh([wall], [camera], fuse([wall], [camera]))
    middles = cameras.project(mesh.vertices[mesh.faces].mean(1), K)
    area = np.linalg.norm(np.cross(*np.moveaxis(np.diff(mesh.vertices[mesh.faces], axis=1), 1, 0)), axis=1) / 2

    def share(x: slice, y: slice) -> float:
        inside = (middles > [x.start, y.start]).all(1) & (middles < [x.stop, y.stop]).all(1)
        return area[inside].sum() * (K[0, 0] / 2) ** 2 / ((x.stop - x.start) * (y.stop - y.start))

    assert share(slice(26, 41), slice(16, 30)) == pytest.approx(1, abs=0.15)
    assert share(slice(70, 120), slice(70, 100)) < 0.02
    np.testing.assert_allclose(mesh.vertices[:, 2], 2, rtol=0.01)
    assert mesh.colors is not None and np.abs(mesh.colors.astype(int) - 90).max() <= 1


def test_refusals(maps: list[PointMap], shots: Shots, cloud: FusedCloud) -> None:
    with pytest.raises(UserError, match="unknown quality 'best'; allowed: low, medium, high"):
        DenseConfig("best")
    with pytest.raises(UserError, match="unknown surface 'alpha'"):
        extract_mesh(maps, shots.cameras, cloud, "alpha")
    with pytest.raises(JobFailed, match="nothing to fuse"):
        fuse([None, None], shots.cameras[:2])
    with pytest.raises(ValueError, match="3 Ks"):
        estimate_depth_maps(shots.rgbs, [K] * 3, POSES, shots.sparse, LOW, Run())


def test_neighbours_share_points_at_a_useful_angle() -> None:
    """Cameras in a row before a wall at 10: those that see it from 5 degrees aside are best, the same place is none."""
    xs = [0.0, 0.05, 0.9, 2.0, 6.0]
    places = [synthetic_scenes.pose((0, 0, 0), (x, 0, 0)) for x in xs]
    points = np.random.default_rng(0).uniform([-2, -2, 10], [2, 2, 10], (200, 3))
    views = view_selection.visible_points(points, [np.arange(200)] * 5, places)
    chosen = view_selection.select_views(points, views, [K] * 5, places, 3)
    assert chosen[0][:2] == (2, 3) and 1 not in chosen[0][:2]
    closer = [*places[:4], synthetic_scenes.pose((0, 0, 0), (0.9, 0.3, 9.0))]  # sees ten times the detail
    views = view_selection.visible_points(points, [np.arange(200)] * 5, closer)
    assert view_selection.select_views(points, views, [K] * 5, closer, 4)[0].index(2) < 2
    few = view_selection.visible_points(points, [np.arange(200), np.arange(4)], places[:2])
    assert view_selection.select_views(points, few, [K] * 2, places[:2], 3) == [(), ()]


def test_a_depth_range_holds_the_points_with_a_margin() -> None:
    depth = np.linspace(2, 10, 1000)
    far, near = view_selection.inverse_depth_range(view_selection.VisiblePoints(np.arange(1000), depth)) or (0, 0)
    assert 0.06 < far < 0.1 and 0.5 < near < 0.7
    assert view_selection.inverse_depth_range(view_selection.VisiblePoints(np.arange(7), depth[:7])) is None
