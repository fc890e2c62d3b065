"""What a scene's unit of length is taken from: steps that are motion, and not what noise leaves of standing still."""

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

STILL = 1.0  # matched pixels, by which a step moves points at the median distance: less is the noise of matches
STILL_SHARE = 0.005  # of the distance to dense points, below which a model's cameras do not stand apart
KNOWN = 4.0  # STILLs: a length that all others are multiples of must be known to a quarter, or better
SAME_PLACE = 1e-9  # of the coordinates: what rounding leaves
NAMED = 3  # views in a note


def scale_by_motion(scene: Scene, pixel_size: float) -> Scene:
    """The median step from one camera to the next as the unit, of the cameras that moved. `pixel_size`: pixels of a
    photo per matched pixel."""
    placed = scene.registered
    centres = np.stack([scene.views[index].world_from_cam[:3, 3] for index in placed])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    moved = steps > np.array([STILL * _still(scene, pair, pixel_size) for pair in pairwise(placed)])
    if not moved.any():  # each step is noise, and all together may be none
        steps = np.linalg.norm(centres - centres.mean(axis=0), axis=1)
        moved = steps > 0
    if not moved.any():
        raise JobFailed("all cameras stand in one place, so that nothing has a length; take photos from other places")
    return scene.scaled(1 / float(np.median(steps[moved])), "arbitrary", scene.scale_note)


def scale_by_baseline(scene: Scene, baseline: float, pixel_size: float | None) -> Scene:
    """The distance of the first two cameras as `baseline` metres. `pixel_size`: pixels of a photo per matched pixel;
    None where no pixels were matched. JobFailed where they were not placed, or hardly stand apart."""
    one, two = scene.views[:2]
    for view in (one, two):
        if not view.registered:
            raise JobFailed(
                f"--baseline is between the first two photos, and {view.image} could not be placed ({view.reason}); "
                "name two others first, or leave --baseline out"
            )
    length = scene.baseline()
    if not length > (KNOWN * STILL * _still(scene, (0, 1), pixel_size) if pixel_size else _still_share(one, two)):
        raise JobFailed(
            f"--baseline is between the first two photos, and {shown(one.image)} and {shown(two.image)} were taken in "
            "one place; name two others first, or leave --baseline out"
        )
    return scene.scaled(baseline / length, "metric", None)


def check_distinct_centres(known_poses: Mapping[object, np.ndarray]) -> None:
    """UserError where all of the known poses (4, 4) have one centre."""
    if len(known_poses) < 2:
        return
    centres = np.stack([pose[:3, 3] for pose in known_poses.values()])
    if np.ptp(centres, axis=0).max() <= SAME_PLACE * max(float(np.abs(centres).max()), 1.0):
        raise UserError(
            f"all {len(centres)} centres of --poses are in one place, where nothing shows how far things are; give "
            "poses with translations, or leave --poses out"
        )


def same_viewpoint_notes(names: Sequence[str], found: Correspondences) -> tuple[str, ...]:
    """Which photos show what another one shows from the same place: copies, and a camera that stands still."""
    same: dict[int, int] = {}
    for (i, j), matches in found.matches.items():
        places = [found.keypoints[index][matches[:, side]] for side, index in enumerate((i, j))]
        sizes = found.pixel_sizes[i], found.pixel_sizes[j]
        if len(matches) >= MIN_INLIERS and two_view.is_same_view(*places, sizes):
            same.setdefault(j, i)
    if not same:
        return ()
    some = [f"{shown(names[j])} as {shown(names[i])}" for j, i in sorted(same.items())[:NAMED]]
    more = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
    return (f"taken in one place, as copies are: {', '.join(some)}{more}; they say nothing about lengths",)


def _still(scene: Scene, pair: tuple[int, int], pixel_size: float) -> float:
    """The length that moves the points of one of the views, at their median depth, by one matched pixel."""
    assert scene.sparse is not None
    lengths = []
    for number in pair:
        view, (index, _) = scene.views[number], scene.sparse.observations[number]
        if len(index):
            z = transform_points(inverse(view.world_from_cam), scene.sparse.points_world[index])[:, 2]
            lengths.append(pixel_size * float(np.median(np.abs(z))) / float(np.sqrt(view.K[0, 0] * view.K[1, 1])))
    return min(lengths, default=0.0)


def _still_share(one: View, two: View) -> float:
    depths = [view.depth for view in (one, two) if view.depth is not None]
    known = [float(np.nanmedian(depth)) for depth in depths if np.isfinite(depth).any()]
    return STILL_SHARE * min(known, default=0.0)
