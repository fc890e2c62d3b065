"""Do neighbours in feature space lie on each other's epipolar lines? Mutual nearest patches of photo pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dune_cli.evaluation.features import FeatureSource
from dune_cli.evaluation.pairs import PosedPair
from dune_cli.geometry.epipolar import fundamental_from_pose
from dune_cli.io.photos import read_photo
from dune_cli.io.preprocess import Prepared, prepare


@dataclass(frozen=True)
class PatchMatching:
    """Means over pairs: share of patches with a mutual nearest one; of those, the share within each distance, in pixels
    of the network's input, of the true epipolar line; the same of patches matched at random; how many matches."""

    mutual: float
    near: dict[int, float]
    random_near: dict[int, float]
    matches: float
    pairs: int


@torch.inference_mode()
def match_patches(
    column: FeatureSource, pairs: Sequence[PosedPair], size_px: int, within_px: Sequence[int]
) -> PatchMatching:
    """The photos at long side `size_px`, cropped to whole patches; cosine; the patches' centres are the points."""
    rows = [_match(column, pair, size_px, within_px) for pair in pairs]
    mutual, near, random_near, matches = (np.array([row[k] for row in rows], dtype=np.float64) for k in range(4))
    return PatchMatching(
        mutual=float(mutual.mean()),
        near=dict(zip(within_px, near.mean(0).tolist())),
        random_near=dict(zip(within_px, random_near.mean(0).tolist())),
        matches=float(matches.mean()),
        pairs=len(pairs),
    )


def _match(
    column: FeatureSource, pair: PosedPair, size_px: int, within_px: Sequence[int]
) -> tuple[float, list[float], list[float], int]:
    inputs = [prepare(read_photo(path).rgb, size_px, column.cell_px) for path in (pair.image1, pair.image2)]
    maps = [column.encode(torch.from_numpy(np.require(i.image, requirements="W"))[None]).patches[0] for i in inputs]
    flat = [F.normalize(patches.flatten(0, 1), dim=1) for patches in maps]
    similarity = flat[0] @ flat[1].T
    there, back = similarity.argmax(1), similarity.argmax(0)
    first = torch.arange(len(there))
    mutual = back[there] == first
    F12 = fundamental_from_pose(
        pair.cam2_from_cam1,
        inputs[0].network_from_image @ pair.K1,
        inputs[1].network_from_image @ pair.K2,
    )
    distances = _line_distances(F12, _centres(inputs[0], column.cell_px), _centres(inputs[1], column.cell_px))
    found = distances[first[mutual].numpy(), there[mutual].numpy()]
    near = [float((found <= limit).mean()) if len(found) else 0.0 for limit in within_px]
    return (
        float(mutual.float().mean()),
        near,
        [float((distances <= limit).mean()) for limit in within_px],
        int(mutual.sum()),
    )


def _centres(prepared: Prepared, cell_px: int) -> np.ndarray:
    """The patches' centres (N, 2) in pixels (x, y) of the network's input, row-major."""
    rows, columns = np.mgrid[0 : prepared.height // cell_px, 0 : prepared.width // cell_px]
    return (np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * cell_px - 0.5


def _line_distances(F12: np.ndarray, points1: np.ndarray, points2: np.ndarray) -> np.ndarray:
    """(N, M): how far each point 2 is from the epipolar line of each point 1, in pixels of image 2."""
    homogeneous1, homogeneous2 = (np.concatenate([p, np.ones((len(p), 1))], 1) for p in (points1, points2))
    lines = homogeneous1 @ F12.T
    lines /= np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    return np.abs(lines @ homogeneous2.T)
