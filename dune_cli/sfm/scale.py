"""The unit of length of a scene: a baseline, or the median step between cameras that moved, and checks of both.

`pixel_size`: pixels of a photo per matched pixel. It limits which steps are motion, and which the noise of matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry import two_view
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.safe_read import shown
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import Scene, View
from dune_cli.sfm.verification import MIN_INLIERS

MIN_BASELINE = 4.0  # matched pixels that a given baseline must move points at the median depth by
MIN_BASELINE_SHARE = 0.005  # of the depth, without matched pixels
SAME_CENTRE = 1e-9  # of the coordinates: rounding error
NAMED = 3  # views in a note


def scale_by_motion(scene: Scene, pixel_size: float) -> Scene:
    """The scene with the median step between consecutive cameras as its unit. Steps below one matched pixel do not
    count. JobFailed where all cameras stand in one place."""
    registered = scene.registered
    centres = np.stack([scene.views[index].world_from_cam[:3, 3] for index in registered])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    moved = steps > np.array([_pixel_step(scene, pair, pixel_size) for pair in pairwise(registered)])
    if not moved.any():  # each step may be noise while all together are motion
        steps = np.linalg.norm(centres - centres.mean(axis=0), axis=1)
        moved = steps > 0
    if not moved.any():
        raise JobFailed(
            "all cameras stand in one place, so that there is no unit of length; take photos from other places"
        )
    return scene.scaled(1 / float(np.median(steps[moved])), "arbitrary", scene.scale_note)


def scale_by_baseline(scene: Scene, baseline: float, pixel_size: float | None, pair: tuple[int, int] = (0, 1)) -> Scene:
    """The scene in metres, from the `baseline` between a `pair` of its cameras. `pixel_size` is None where no pixels
    were matched. JobFailed where one of the two is not registered, or they are too close to each other."""
    which = "the first two photos" if pair == (0, 1) else "two photos"
    first, second = (scene.views[index] for index in pair)
    for view in (first, second):
        if not view.registered:
            raise JobFailed(
                f"--baseline is between {which}, and {view.image} could not be registered ({view.reason}); name two "
                "others first, or leave --baseline out"
            )
    length = scene.baseline(pair)
    if pixel_size is not None:
        least = MIN_BASELINE * _pixel_step(scene, pair, pixel_size)
    else:
        least = MIN_BASELINE_SHARE * min(_median_depths(first, second), default=0.0)
    if not length > least:
        raise JobFailed(
            f"--baseline is between {which}, and {shown(first.image)} and {shown(second.image)} were "
            "taken in one place; name two others first, or leave --baseline out"
        )
    return scene.scaled(baseline / length, "metric", None)


def check_distinct_centres(known_poses: Mapping[object, np.ndarray]) -> None:
    """UserError where all of the known poses (4, 4) have one centre."""
    if len(known_poses) < 2:
        return
    centres = np.stack([pose[:3, 3] for pose in known_poses.values()])
    if np.ptp(centres, axis=0).max() <= SAME_CENTRE * max(float(np.abs(centres).max()), 1.0):
        raise UserError(
            f"all {len(centres)} centres of --poses are in one place, from where no point can be triangulated; give "
            "poses with translations, or leave --poses out"
        )


def same_viewpoint_notes(names: Sequence[str], correspondences: Correspondences) -> tuple[str, ...]:
    """A note on the photos with the same view as an earlier one: copies, and frames of a camera that stands still."""
    same: dict[int, int] = {}
    for (i, j), matches in correspondences.matches.items():
        sizes = correspondences.pixel_sizes[i], correspondences.pixel_sizes[j]
        if len(matches) >= MIN_INLIERS and two_view.is_same_view(*correspondences.pixels((i, j)), sizes):
            same.setdefault(j, i)
    if not same:
        return ()
    some = [f"{shown(names[j])} as {shown(names[i])}" for j, i in sorted(same.items())[:NAMED]]
    more = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
    return (f"taken in one place, as copies are: {', '.join(some)}{more}; they do not contribute to the scale",)


def _pixel_step(scene: Scene, pair: tuple[int, int], pixel_size: float) -> float:
    """The smaller of the lengths that move the points of the two views, at their median depth, by one matched pixel."""
    assert scene.sparse is not None
    lengths = []
    for number in pair:
        view, (index, _) = scene.views[number], scene.sparse.observations[number]
        if len(index):
            points = transform_points(inverse(view.world_from_cam), scene.sparse.points_world[index])
            z = np.linalg.norm(points, axis=1) if view.is_panorama else np.abs(points[:, 2])
            lengths.append(pixel_size * float(np.median(z)) / view.focal_px)
    return min(lengths, default=0.0)


def _median_depths(*views: View) -> list[float]:
    depths = [view.depth for view in views if view.depth is not None]
    return [float(np.nanmedian(depth)) for depth in depths if np.isfinite(depth).any()]
