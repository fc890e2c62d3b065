"""What two photos have in common: matches, and where the reference's points lie in metres, if that can be known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry.cameras import K_from_focal, backproject, pixel_grid, transform_pixels
from dune_cli.geometry.depth_sampling import sample_depth
from dune_cli.geometry.focal import focal_from_point_map
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.matchers import mast3r
from dune_cli.matchers.base import Matcher, Matches
from dune_cli.matchers.evidence import Sighted, find_matches, moving, sight
from dune_cli.provenance import Source

if TYPE_CHECKING:
    from dune_cli.models.two_view import TwoViewModel

MIN_CONFIDENCE = 1.5  # of the points that give a focal length, as in `dune reconstruct`


@dataclass(frozen=True)
class Shot:
    """A photo and its camera: `K` (3, 3) in its pixels, `focal_source` given | exif | estimated | default; for a
    reference its `depth` (H, W) in metres, where it is known (0 or NaN: nowhere)."""

    photo: Photo
    K: np.ndarray
    focal_source: str
    depth: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.photo.path.name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.photo.width, self.photo.height


@dataclass(frozen=True)
class Common:
    """Matches of a reference (first) and a query (second), with both cameras as they are known afterwards.

    `points` (M, 3): the matched points in metres in the reference camera's frame, NaN where unknown; None where lengths
    are not known at all.
    """

    reference: Shot
    query: Shot
    matches: Matches
    points: np.ndarray | None


class Sight(Protocol):
    """A way to see what photos have in common. `look` at each photo once, then `compare` any two.

    `is_metric`: it knows lengths for itself.
    """

    is_metric: bool

    @property
    def source(self) -> Source: ...

    def look(self, shot: Shot) -> Any: ...

    def compare(self, reference: Any, query: Any) -> Common: ...


class MatcherSight:
    """A matcher; metric points where the reference has a depth map."""

    is_metric = False

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher

    @property
    def source(self) -> Source:
        return self.matcher.source

    def look(self, shot: Shot) -> tuple[Shot, Any]:
        """The photo's features, for matchers that look at each photo alone."""
        return shot, sight(self.matcher, shot.photo.rgb).features

    def compare(self, reference: tuple[Shot, Any], query: tuple[Shot, Any]) -> Common:
        (first, features1), (second, features2) = reference, query
        photos = Sighted(first.photo.rgb, features1), Sighted(second.photo.rgb, features2)
        matches = find_matches(self.matcher, *photos)
        points = None
        if first.depth is not None:
            points = backproject(matches.points1, sample_depth(first.depth, matches.points1), first.K)
        return Common(first, second, matches, points)


class TwoViewSight:
    """A two-view model: reciprocal descriptor matches on its metric point maps, focal lengths from these maps."""

    is_metric = True

    def __init__(self, model: TwoViewModel, size_px: int | None = None, subsample: int = 8) -> None:
        self.model, self.size_px, self.subsample = model, size_px or model.size, subsample

    @property
    def source(self) -> Source:
        return self.model.source

    def look(self, shot: Shot) -> tuple[Shot, Prepared, Any]:
        """The photo's encoder features."""
        import torch

        model = self.model
        prepared = prepare(shot.photo.rgb, self.size_px, model.patch, model.crop_square_to_4_3)
        where = next(model.parameters()).device
        with torch.inference_mode():
            return shot, prepared, model.encode(torch.from_numpy(prepared.image)[None].to(where))

    def compare(self, reference: tuple[Shot, Prepared, Any], query: tuple[Shot, Prepared, Any]) -> Common:
        """JobFailed where no focal length is given and none fits the point maps."""
        import torch

        (first, prepared1, features1), (second, prepared2, features2) = reference, query
        with torch.inference_mode():
            out = self.model.decode(features1, features2)
            found, xy1 = mast3r.matches_of(out, prepared1, prepared2, self.subsample)
            keep = moving(found, first.photo.rgb, second.photo.rgb)
            matches, xy1 = found.only(keep), xy1[keep]
            points = _numpy(out.points1)
            if first.focal_source == "default":
                first = _with_own_focal(first, prepared1, points, _numpy(out.confidence1))
            if second.focal_source == "default":
                back = self.model.decode(features2, features1, descriptors=False)
                second = _with_own_focal(second, prepared2, _numpy(back.points1), _numpy(back.confidence1))
        return Common(first, second, matches, points[xy1[:, 1], xy1[:, 0]])


def _with_own_focal(shot: Shot, prepared: Prepared, points: np.ndarray, confidence: np.ndarray) -> Shot:
    """The shot with the focal length of its point map (h, w, 3), the principal point at the photo's centre."""
    pixels = transform_pixels(np.linalg.inv(prepared.network_from_image), pixel_grid(prepared.height, prepared.width))
    width, height = shot.size
    focal_px = focal_from_point_map(points, pixels, np.array([width - 1, height - 1]) / 2, confidence >= MIN_CONFIDENCE)
    if focal_px is None:
        raise JobFailed(
            f"no focal length fits the model's points of {shot.name} (too few are confident); give --intrinsics or "
            "--fov-deg"
        )
    return replace(shot, K=K_from_focal(focal_px, width, height), focal_source="estimated")


def _numpy(values: Any) -> np.ndarray:
    return values[0].float().cpu().numpy().astype(np.float64)
