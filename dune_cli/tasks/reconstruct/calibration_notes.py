"""What became of the focal lengths that were looked for, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli.tasks.reconstruct.scene import View

UNSURE = 0.03  # of the focal length, one standard deviation: beyond it a note warns
EACH_UP_TO = 3  # cameras


def calibration_notes(views: Sequence[View]) -> tuple[str, ...]:
    """Old and new focal length with its standard deviation, camera by camera while they are few, and a warning where
    the photos hardly determine it."""
    cameras: dict[tuple[float, ...], list[View]] = {}
    for view in views:
        if view.calibration is not None:
            facts = view.calibration.focal_before_px, view.K[0, 0], view.radial, view.calibration.focal_sd
            cameras.setdefault(tuple(map(float, facts)), []).append(view)
    if not cameras:
        found = any(view.registered and view.focal_source == "estimated" for view in views)
        return ("focal lengths were estimated with the cameras; how sure they are is not known",) if found else ()
    notes = []
    if len(cameras) <= EACH_UP_TO:
        for (before_px, focal_px, _, sd), group in cameras.items():
            whose = group[0].image if len(group) == 1 else f"{len(group)} photos"
            notes.append(f"focal length of {whose}: {before_px:.0f} -> {focal_px:.0f} px, +- {sd:.1%}")
    else:
        sds = np.array([sd for *_, sd in cameras])
        changes = np.array([focal_px / before_px - 1 for before_px, focal_px, *_ in cameras])
        notes.append(
            f"focal lengths of {len(cameras)} cameras were estimated: changed by {np.median(np.abs(changes)):.1%} "
            f"(median), +- {np.median(sds):.1%} (median), +- {sds.max():.1%} (the least sure one)"
        )
    worst = max(sd for *_, sd in cameras)
    if worst > UNSURE:
        notes.append(
            f"the photos hardly determine the focal length (+- {worst:.0%}), and depths and angles are off with it; "
            "give --intrinsics or --fov-deg, or add photos that look at the same place from turned directions"
        )
    return tuple(notes)
