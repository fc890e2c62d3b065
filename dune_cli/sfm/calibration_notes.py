"""Notes on calibrated cameras: focal lengths, principal points and lenses, and how uncertain they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.sfm.calibration import SAME_PX
from dune_cli.sfm.scene import View

FIXED_SD = 1e-9  # below it the focal length was given
UNCERTAIN = 0.03  # of the focal length, one standard deviation: beyond it a note warns
EACH_UP_TO = 3  # cameras


def calibration_notes(views: Sequence[View]) -> tuple[str, ...]:
    """The focal length of each camera before and after calibration, with its standard deviation (of many cameras a
    summary), and a warning where the photos hardly determine it."""
    cameras: dict[tuple[float, ...], list[View]] = {}
    for view in views:
        if view.calibration is not None:
            key = view.calibration.focal_before_px, view.K[0, 0], view.calibration.focal_sd, *view.camera.distortion
            cameras.setdefault(tuple(map(float, key)), []).append(view)
    if not cameras:
        estimated = any(view.registered and view.focal_source == "estimated" for view in views)
        if not estimated:
            return ()
        return ("focal lengths were estimated with the cameras; their uncertainty is unknown",)
    notes = []
    if len(cameras) <= EACH_UP_TO:
        for (before_px, focal_px, sd, *_), group in cameras.items():
            name = group[0].image if len(group) == 1 else f"{len(group)} photos"
            if sd > FIXED_SD:
                notes.append(f"focal length of {name}: {before_px:.0f} -> {focal_px:.0f} px, +- {sd:.1%}")
            off = _centre_offset(group[0])
            if np.abs(off).max() > SAME_PX:
                notes.append(f"principal point of {name}: {off[0]:+.1f}, {off[1]:+.1f} px from the middle, estimated")
            if not group[0].camera.is_pinhole and (sd <= FIXED_SD or group[0].camera.model != "SIMPLE_RADIAL"):
                notes.append(f"lens of {name}: {_lens_text(group[0].camera)}, estimated from the photos")
    else:
        sds = np.array([sd for _, _, sd, *_ in cameras])
        changes = np.array([focal_px / before_px - 1 for before_px, focal_px, *_ in cameras])
        notes.append(
            f"focal lengths of {len(cameras)} cameras were estimated: changed by {np.median(np.abs(changes)):.1%} "
            f"(median), +- {np.median(sds):.1%} (median), +- {sds.max():.1%} (largest)"
        )
    worst = max(sd for _, _, sd, *_ in cameras)
    if worst > UNCERTAIN:
        notes.append(
            f"the photos hardly determine the focal length (+- {worst:.0%}), and depths and angles have errors with "
            "it; give --intrinsics or --fov-deg, or add photos of the same place in other viewing directions"
        )
    return tuple(notes)


def _centre_offset(view: View) -> np.ndarray:
    """(2,) pixels from the middle of the photo to its principal point; 0 where the focal length was given."""
    if view.focal_source == "given":
        return np.zeros(2)
    return view.K[:2, 2] - (np.array([view.width, view.height]) - 1) / 2


def _lens_text(camera: Camera) -> str:
    """The model and its distortion, for people."""
    names = camera.kind.parameters[camera.kind.focals + 2 :]
    terms = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, camera.distortion) if value)
    return f"{camera.model} ({terms})"
