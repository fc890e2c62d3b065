"""Settings of dense reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dune_cli.errors import UserError
from dune_cli.mvs.sky import SkyNetwork


@dataclass(frozen=True)
class QualityPreset:
    """`side_px` long side of the depth maps, `planes` at most in the coarse sweep, `source_views` of a view, `rounds`
    of refinement at each level of the pyramid below full size, which has one, `directions` besides the camera's own
    that planes of the coarse sweep face."""

    side_px: int
    planes: int
    source_views: int
    rounds: int
    directions: int = 3


QUALITIES = {
    "low": QualityPreset(480, 96, 6, 1),
    "medium": QualityPreset(800, 160, 6, 1),
    "high": QualityPreset(1280, 256, 8, 2),
}


@dataclass(frozen=True)
class DenseConfig:
    """`quality` low | medium | high. `max_error_px` and `max_depth_error` (a share) bound the forward-backward
    reprojection error of a point. `min_share`: of points with the same evidence, the share within 5 % of the truth that
    is expected at least, in [0, 1]. `device` as in `--device`."""

    quality: str = "medium"
    max_error_px: float = 1.5
    max_depth_error: float = 0.02
    min_share: float = 0.74
    device: str = "cpu"
    load_sky: Callable[[], SkyNetwork] | None = None

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise UserError(f"unknown quality {self.quality!r}; allowed: {', '.join(QUALITIES)}")
        if not 0 <= self.min_share <= 1:
            raise UserError(f"min_share must be in [0, 1], got {self.min_share}")

    @property
    def preset(self) -> QualityPreset:
        return QUALITIES[self.quality]
