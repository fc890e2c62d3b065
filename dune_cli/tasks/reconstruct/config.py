"""Settings of the back-ends of `dune reconstruct`: feature matches, point maps of a two-view model, and a multi-view
model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.rigs import NO_RIGS, Rigs
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import PhotoInfo, read_infos, read_photo
from dune_cli.mvs.depth_fill import DepthNetwork
from dune_cli.mvs.quality import DenseConfig
from dune_cli.sfm.georeference import PositionPriors
from dune_cli.sfm.masks import PhotoMasks
from dune_cli.sfm.pairs import NEIGHBOURS
from dune_cli.sfm.scene import Scene

CamerasOf = Callable[[Sequence[PhotoInfo]], Sequence[PhotoCamera]]  # with their lenses, where these are known


def lenses_of(paths: Sequence[Path], cameras_of: CamerasOf) -> list[Camera | None]:
    """The lens of each photo, before any is read; None for a pinhole camera. Only lenses that are given are known."""
    infos = read_infos(paths) or [read_photo(path).info for path in paths]
    with console.collected():  # the notes come where the cameras are used
        cameras = cameras_of(infos)
    return [one.lens for one in cameras]


@dataclass(frozen=True)
class ReconstructionConfig:
    """What the back-ends share.

    `baseline`: distance between the first two cameras in metres, where it is known. `seed` of every random choice. Of
    more than two photos: `pairs` auto | retrieval | sequential | all, or a file; `neighbours` of a photo in retrieved
    and sequential pairs; `ordered`: the photos follow one another, as a video's frames do; `fixed_poses`: known poses
    are kept, else they are priors; `mesh` tsdf | poisson: the surface that is made of all views, None for none.
    `masks`: what is not used of the photos. `rigs`: what fixes photos to one another. `spheres`: the panoramas among
    the photos, by their index. `names` of the photos in the scene; None: relative to their common folder.
    """

    baseline: float | None = None
    seed: int = 0
    pairs: str = "auto"
    neighbours: int = NEIGHBOURS
    ordered: bool = False
    fixed_poses: bool = True
    mesh: str | None = None
    masks: PhotoMasks | None = None
    rigs: Rigs = NO_RIGS
    spheres: Mapping[int, Camera] = field(default_factory=dict)
    names: tuple[str, ...] | None = None

    def is_stereo_pair(self, paths: Sequence[Path], known_poses: Mapping[Path, np.ndarray] | None) -> bool:
        """Whether the photos are solved as a single pair, without a mapper or a global alignment: two photos of unknown
        poses that are no frames of a video."""
        return len(paths) == 2 and not known_poses and not self.ordered and not self.rigs.mounts and not self.spheres


@dataclass(frozen=True)
class MatchesConfig(ReconstructionConfig):
    """`min_confidence` of points in [0, 1]. `stereo_side_px`: long side of the dense map of two photos (None: the
    photo's, at most 1600). `fill`: the network whose depth fills the dense maps, None for measured depth alone. Of
    more than two photos: `mapper` incremental | global; `dense`: multi-view stereo, None for sparse points alone;
    `by_descriptors`: auto retrieves pairs by global descriptors even where keypoints can tell; `positions` that the
    cameras are adjusted to."""

    min_confidence: float = 0.0
    stereo_side_px: int | None = None
    mapper: str = "incremental"
    dense: DenseConfig | None = None
    fill: DepthNetwork | None = None
    by_descriptors: bool = False
    positions: PositionPriors | None = None
    check: Callable[[Scene], object] | None = None


@dataclass(frozen=True)
class PointmapsConfig(ReconstructionConfig):
    """`min_confidence` of points, which starts at 1. `size_px`: long side of the network input (None: the model's
    own). `fuse`: whether the maps of more than two photos are fused into one cloud."""

    min_confidence: float = 1.5
    size_px: int | None = None
    fuse: bool = False


@dataclass(frozen=True)
class MultiviewConfig(ReconstructionConfig):
    """`min_confidence` of points, which starts at 1; None leaves out the least confident 40 %, as the published export
    does. `size_px`: long side of the network input (None: the model's own). `fuse`: as in `PointmapsConfig`."""

    min_confidence: float | None = None
    size_px: int | None = None
    fuse: bool = False
