"""The scene of the example's stereo pair against its true disparity, by matcher: the table of
docs/benchmarks/two-photos.md, "The stereo pair of the examples".

    python examples/stereo_pair_accuracy.py --matchers sift,xfeat-lighterglue,aliked-lightglue

The photos are Middlebury 2014's motorcycle (examples/photos/NOTICE.md); the reconstruction is that of `dune
reconstruct`, with the pair's intrinsics and baseline. A point counts as visible where the true disparity leads into the
right photo and no nearer pixel hides it there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from dune_cli.geometry import poses
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import read_photo
from dune_cli.matchers.registry import load_matcher
from dune_cli.provenance import Run
from dune_cli.tasks.reconstruct import two_view
from dune_cli.tasks.reconstruct.config import MatchesConfig

PHOTOS = Path(__file__).parent / "photos"
BASELINE_M = 0.193001
FOCAL_PX = 994.978
SHIFT_PX = 31.086  # of the right camera's principal point
HEAD = (
    "matcher",
    "rotation error",
    "direction error",
    "visible pixels with a point",
    "median depth error",
    "off by more than 5 %",
)


def visible_in_right(disparity: np.ndarray) -> np.ndarray:
    """(H, W) bool: known disparities whose target lies in the right photo and is not hidden by a nearer pixel."""
    height, width = disparity.shape
    known = np.isfinite(disparity)
    target = np.rint(np.arange(width) - np.where(known, disparity, np.inf))
    inside = known & (target >= 0) & (target < width)
    nearest = np.full((height, width), -np.inf)
    rows, columns = np.nonzero(inside)
    where = (rows, target[inside].astype(int))
    np.maximum.at(nearest, where, disparity[inside])
    visible = np.zeros_like(known)
    visible[rows, columns] = disparity[inside] >= nearest[where] - 1
    return visible


def score(matcher: str, photos: Path = PHOTOS) -> dict[str, float]:
    """Of the pair by a matcher: `rotation_deg`, `direction_deg`; of the visible pixels the share with a depth
    (`completeness`); of these, after one factor, the median relative error (`depth_error`) and the share off by more
    than 5 % (`off`)."""
    pair = [read_photo(photos / f"motorcycle_{side}.png") for side in ("left", "right")]
    table = json.loads((photos / "motorcycle_intrinsics.json").read_text(encoding="utf-8"))
    given = [PhotoCamera.of_matrix(np.array(table[one.path.name]), "given", one.width, one.height) for one in pair]
    scene = two_view.reconstruct_pair(pair, given, load_matcher(matcher), MatchesConfig(baseline=BASELINE_M), Run())
    left_from_right = scene.views[1].world_from_cam
    with np.load(photos / "motorcycle_disp.npz", allow_pickle=False) as arrays:
        disparity = arrays[arrays.files[0]]
    depth = scene.views[0].depth
    assert depth is not None and depth.shape == disparity.shape
    visible = visible_in_right(disparity)
    both = visible & np.isfinite(depth)
    true_depth = BASELINE_M * FOCAL_PX / (disparity[both] + SHIFT_PX)
    error = np.abs(depth[both] * np.median(true_depth / depth[both]) / true_depth - 1)
    return {
        "rotation_deg": float(np.degrees(poses.rotation_angle(left_from_right[:3, :3]))),
        "direction_deg": float(np.degrees(poses.vector_angle(left_from_right[:3, 3], np.array([1.0, 0, 0])))),
        "completeness": float(both.sum() / visible.sum()),
        "depth_error": float(np.median(error)),
        "off": float((error > 0.05).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matchers", default="sift,xfeat-lighterglue,aliked-lightglue")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for name in parser.parse_args().matchers.split(","):
        found = score(name)
        cells = [
            name,
            f"{found['rotation_deg']:.3f}°",
            f"{found['direction_deg']:.2f}°",
            f"{100 * found['completeness']:.1f} %",
            f"{100 * found['depth_error']:.2f} %",
            f"{100 * found['off']:.1f} %",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
