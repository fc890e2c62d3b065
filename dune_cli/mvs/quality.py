"""What a dense reconstruction may cost."""

from __future__ import annotations

from dataclasses import dataclass

from dune_cli.errors import UserError


@dataclass(frozen=True)
class Quality:
    """`side_px` long side of the depth maps, `planes` at most in the coarse sweep (at half that size), `neighbours` a
    view is compared with, `rounds` of refinement at full size, `directions` besides
    the camera's own that planes face in the coarse sweep."""

    side_px: int
    planes: int
    neighbours: int
    rounds: int
    directions: int = 3


QUALITIES = {
    "low": Quality(480, 96, 6, 1),
    "medium": Quality(800, 160, 6, 2),
    "high": Quality(1280, 256, 8, 2),
}


@dataclass(frozen=True)
class DenseConfig:
    """`quality` low | medium | high. `max_error_px` and `max_depth_error` (a share) a point may be off when it is
    looked up in a neighbour's depth map and brought back; `min_views` neighbours that must agree (fewer where a view
    has no more). `device` as in `--device`."""

    quality: str = "medium"
    max_error_px: float = 1.5
    max_depth_error: float = 0.02
    min_views: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise UserError(f"unknown quality {self.quality!r}; allowed: {', '.join(QUALITIES)}")
        if self.min_views < 1:
            raise UserError(f"min_views must be 1 or more, got {self.min_views}")

    @property
    def effort(self) -> Quality:
        return QUALITIES[self.quality]
