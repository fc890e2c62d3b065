"""Patch matching of `dune eval features`: are mutual nearest patches of photo pairs on each other's epipolar lines?"""

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
    """Means over pairs. mutual: share of patches with a mutual nearest neighbour. near: of those, the share within each
    distance of the true epipolar line, in pixels of the network's input. random_near: the same of all pairs of patches.
    matches: mutual nearest neighbours a pair."""

    mutual: float
    near: dict[int, float]
    random_near: dict[int, float]
    matches: float
    pairs: int


@torch.inference_mode()
def match_patches(
    source: FeatureSource, pairs: Sequence[PosedPair], size_px: int, within_px: Sequence[int]
) -> PatchMatching:
    """Matches patches by cosine, on photos at long side `size_px`, cropped to whole patches; points are the patches'
    centres."""
    rows = [_match(source, pair, size_px, within_px) for pair in pairs]
    mutual, near, random_near, matches = (np.array([row[k] for row in rows], dtype=np.float64) for k in range(4))
    return PatchMatching(
        mutual=float(mutual.mean()),
        near=dict(zip(within_px, near.mean(0).tolist())),
        random_near=dict(zip(within_px, random_near.mean(0).tolist())),
        matches=float(matches.mean()),
        pairs=len(pairs),
    )


def _match(
    source: FeatureSource, pair: PosedPair, size_px: int, within_px: Sequence[int]
) -> tuple[float, list[float], list[float], int]:
    inputs = [prepare(read_photo(path).rgb, size_px, source.cell_px) for path in (pair.image1, pair.image2)]
    maps = [source.encode(torch.from_numpy(np.require(i.image, requirements="W"))[None]).patches[0] for i in inputs]
    features1, features2 = (F.normalize(patches.flatten(0, 1), dim=1) for patches in maps)
    similarity = features1 @ features2.T
    nearest2, nearest1 = similarity.argmax(1), similarity.argmax(0)
    index1 = torch.arange(len(nearest2))
    mutual = nearest1[nearest2] == index1
    F12 = fundamental_from_pose(
        pair.cam2_from_cam1,
        inputs[0].network_from_image @ pair.K1,
        inputs[1].network_from_image @ pair.K2,
    )
    distances = _line_distances(F12, _centres(inputs[0], source.cell_px), _centres(inputs[1], source.cell_px))
    of_matches = distances[index1[mutual].numpy(), nearest2[mutual].numpy()]
    return (
        float(mutual.float().mean()),
        [float((of_matches <= limit).mean()) if len(of_matches) else 0.0 for limit in within_px],
        [float((distances <= limit).mean()) for limit in within_px],
        int(mutual.sum()),
    )


def _centres(prepared: Prepared, cell_px: int) -> np.ndarray:
    """The patches' centres (N, 2) in pixels (x, y) of the network's input, row-major."""
    rows, columns = np.mgrid[0 : prepared.height // cell_px, 0 : prepared.width // cell_px]
    return (np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * cell_px - 0.5


def _line_distances(F12: np.ndarray, points1: np.ndarray, points2: np.ndarray) -> np.ndarray:
    """(N, M) distances of each point 2 from the epipolar line of each point 1, in pixels of image 2."""
    homogeneous1, homogeneous2 = (np.concatenate([p, np.ones((len(p), 1))], 1) for p in (points1, points2))
    lines = homogeneous1 @ F12.T
    lines /= np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    return np.abs(lines @ homogeneous2.T)
