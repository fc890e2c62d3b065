"""A scene whose world stands upright, without positions on earth: y down along gravity.

What tells it, in this order: the gimbal's angles that drones write (XMP); vertical edges in the photos, which walls,
doors and trunks have; and that people hold cameras level, so that the photos' x axes are horizontal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli import console, optional
from dune_cli.errors import DuneError, JobFailed
from dune_cli.geometry.gravity import Vertical, level_down, upright_from_world, vertical_from_planes
from dune_cli.geometry.poses import vector_angle
from dune_cli.io.gps import read_whereabouts
from dune_cli.io.photos import read_photo
from dune_cli.sfm.scene import Gravity, Scene, View

MAX_GIMBAL_DEG = 10.0  # between the photos' gimbals, root mean square
MAX_LEVEL_DEG = 15.0  # of the photos' x axes from the horizontal
PHOTOS = 24  # that are searched for edges, evenly spread
SIDE_PX, SHORTEST = 1000, 0.04  # of the photo that is searched; an edge, as a share of its long side
PITCH_SD_DEG = 15.0  # of photos that look one way
ONE_WAY = (
    "all photos look one way, and are taken to look ahead: if they look straight down, as a drone's, this is wrong; "
    "--crs with their positions is right then"
)


def upright(scene: Scene, photos: Sequence[Path], seed: int) -> Scene:
    """The scene turned about its origin; `photos`: the file of each view. JobFailed where nothing tells what is
    down."""
    gravity, note = _gravity(scene, photos, seed)
    first = scene.views[scene.registered[0]]
    turned = scene.transformed(upright_from_world(gravity.down, first.world_from_cam))
    told = replace(gravity, down=np.array([0.0, 1.0, 0.0]))
    return replace(turned, gravity=told, notes=(*scene.notes, note))


def _gravity(scene: Scene, photos: Sequence[Path], seed: int) -> tuple[Gravity, str]:
    registered = scene.registered
    attitudes = {index: read_whereabouts(photos[index]).enu_from_cam for index in registered}
    known = {index: one for index, one in attitudes.items() if one is not None}
    if known:
        downs = np.stack([-scene.views[i].world_from_cam[:3, :3] @ known[i][2] for i in known])
        down = np.median(downs, axis=0)
        down = down / np.linalg.norm(down)
        off = np.degrees(vector_angle(downs, down))
        sd = float(np.sqrt((off**2).mean()))
        if sd <= MAX_GIMBAL_DEG:
            note = f"upright by the gimbal's angles of {len(known)} photos ({sd:.1f} deg between them)"
            return Gravity(down, "gimbal", sd, len(known)), note
    rotations = np.stack([scene.views[index].world_from_cam[:3, :3] for index in registered])
    guess, off_deg, told = level_down(rotations)
    found = _by_edges(*scene.in_perspective(photos), guess, seed)
    caution = "" if told else f"; {ONE_WAY}"
    if found is not None:
        note = f"upright by {found.lines} vertical edges in the photos{caution}"
        return Gravity(found.down, "vertical edges", found.sd_deg, len(registered)), note
    if off_deg > MAX_LEVEL_DEG:
        raise JobFailed(
            f"nothing tells what is down: there are no vertical edges, and the photos are turned by {off_deg:.0f} deg "
            "about their axes; leave --upright out"
        )
    rest = "" if told else f"; their pitch is taken to be 0, which is good to some {PITCH_SD_DEG:.0f} deg{caution}"
    sd = max(off_deg, 1.0) if told else PITCH_SD_DEG
    return Gravity(guess, "level photos", sd, len(registered)), f"upright by the photos' level{rest}"


def _by_edges(scene: Scene, photos: Sequence[Path], guess: np.ndarray, seed: int) -> Vertical | None:
    registered = scene.registered
    spread = np.unique(np.linspace(0, len(registered) - 1, min(PHOTOS, len(registered))).round().astype(int))
    chosen = [registered[index] for index in spread]
    normals, weights = [], []
    for index in console.progress(chosen, "vertical edges", len(chosen), "photo"):
        try:
            rgb = read_photo(photos[index]).rgb
        except DuneError:
            continue
        own, lengths = edge_planes(rgb, scene.views[index])
        normals.append(own)
        weights.append(lengths)
    if not normals:
        return None
    return vertical_from_planes(np.concatenate(normals), np.concatenate(weights), guess, seed)


def edge_planes(rgb: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """The planes of a photo's straight edges: unit normals (N, 3) in the world, and the edges' lengths (N,) as shares
    of the photo's long side. Edges are found by the line segment detector of R. Grompone von Gioi et al. (PAMI
    2010)."""
    cv2 = optional.require("cv2", "--upright")
    height, width = rgb.shape[:2]
    factor = min(1.0, SIDE_PX / max(height, width))
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    small = gray if factor == 1 else cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    found = cv2.createLineSegmentDetector().detect(small)[0]
    if found is None:
        return np.zeros((0, 3)), np.zeros(0)
    scale = np.array([width / small.shape[1], height / small.shape[0]])
    ends = (np.asarray(found, np.float64).reshape(-1, 2, 2) + 0.5) * scale - 0.5
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) / max(height, width)
    rays = view.camera.unproject(ends)
    normals = np.cross(rays[:, 0], rays[:, 1])
    sizes = np.linalg.norm(normals, axis=1)
    kept = (lengths >= SHORTEST) & np.isfinite(sizes) & (sizes > 0)
    return normals[kept] / sizes[kept, None] @ view.world_from_cam[:3, :3].T, lengths[kept]
