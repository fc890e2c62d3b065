"""A model that is adjusted to measured positions of its cameras, such as those of GPS.

One similarity leaves a model its own shape, which drifts and bends along a flight. Here the positions are priors of a
bundle adjustment, so that shape and lens follow them as far as their errors allow (J. Lhuillier, "Incremental fusion of
structure-from-motion and GPS using constrained bundle adjustments", PAMI 2012, treats the same problem). The standard
deviation of the positions is the stated one, or larger where the residuals say so: it is estimated as a variance
component (W. Förstner, "Ein Verfahren zur Schätzung von Varianz- und Kovarianzkomponenten", 1979), in turns with the
adjustment, and positions beyond AGREE of it have no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.bundle_adjustment import (
    MAX_STEPS,
    MIN_GAIN,
    AdjustedBundle,
    Bundle,
    Priors,
    carry_points,
    restrict,
)
from dune_cli.geometry.georeferencing import AGREE, MEDIAN_DISTANCE, PositionFit
from dune_cli.geometry.normal_equations import TERMS
from dune_cli.geometry.poses import transform_points
from dune_cli.geometry.sim3 import move_poses
from dune_cli.sfm.calibration import (
    MAX_ERROR_PX,
    MAX_OBSERVATIONS,
    MIN_POINTS,
    Lens,
    LensProblem,
    bundle_of,
    camera_sds,
    focal_priors,
    lens_of,
    longest_tracks,
    principal_known,
    principal_sds,
    with_adjusted_points,
)
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import PositionAdjustment, SfmModel

ROUNDS = 16
# change of the logarithm of the positions' deviation: below the first, not all of them have a part; below the second,
# the rounds end
SETTLED_SOFT, SETTLED = 0.2, 0.02
MOST_FREEDOM = 0.9  # of the positions' degrees of freedom, that are taken to go into the cameras
OWN_SHARE = 0.5  # of them: where more do, positions whose error nobody states are not believed to be more exact
TINY = 1e-6
STEPS, GAIN = 15, 0.5  # of all adjustments but the last
UNDETERMINED = "the points do not determine the cameras"
SEEN = 60  # of the observations that are adjusted, in every photo; the other points follow their cameras
LARGER_ERROR = 1.25  # of the median reprojection error: positions that need more contradict the photos
SMALL_ERROR_PX = 0.05  # and which growth of it never does


@dataclass(frozen=True)
class MeasuredCentres:
    """Of some views, by their index: the centres `places` -> (3,) in a Cartesian world in metres, their `sds` -> (3,),
    and whether these are `stated`, so that they are not made smaller. `tolerance`: a distance in metres that is no
    error. `source`: what they are from."""

    places: Mapping[int, np.ndarray]
    sds: Mapping[int, np.ndarray]
    stated: bool
    tolerance: float
    source: str


def adjust_to_positions(
    model: SfmModel,
    correspondences: Correspondences,
    cameras: PhotoCameras,
    measured: MeasuredCentres,
    fit: PositionFit,
) -> tuple[SfmModel, PositionAdjustment] | str:
    """The model in the world of the positions, adjusted to those that agree, and what that changed; or why it stays as
    it is.

    fit: the similarity from the model to the positions of `measured`, in the order of their indices.
    """
    views = sorted(model.world_from_cam)
    used = sorted({cameras.ids[index] for index in views})
    shared = [cameras.shared[n] for n in used]
    before = _moved(bundle_of(model, correspondences, cameras, views, used), fit.world_from_scene)
    in_front = np.isfinite(before.residuals_px()).all(-1)
    whole, _, _ = restrict(before, in_front, np.ones(len(before.points_world), bool))
    if len(whole.points_world) < MIN_POINTS or set(range(len(views))) - set(whole.view.tolist()):
        return "too few points"
    part, _, _ = restrict(whole, np.ones(len(whole.view), bool), longest_tracks(whole, MAX_OBSERVATIONS, SEEN))
    start_K, focal_sd, _ = focal_priors(shared)
    kept = Priors(
        focal_sd,
        np.zeros((len(used), TERMS)),
        principal_sd=principal_sds(shared, [model.cameras[n].K for n in used]),
        principal_known=principal_known(shared),
    )
    lens = lens_of([model.cameras[n] for n in used], shared)
    problem = LensProblem(part, kept, start_K, shared)
    rounds = _Rounds(problem, lens, views, measured, fit)
    solved = rounds.solve()
    if isinstance(solved, str):
        return solved
    adjusted, agrees, sigma = solved
    found = problem.cameras(lens, adjusted.bundle)
    cameras_of = dict(zip(used, found))
    after = carry_points(replace(problem, bundle=whole).started(adjusted.bundle), whole)
    old_px, new_px = (float(np.median(np.linalg.norm(one.residuals_px(), axis=1))) for one in (whole, after))
    if not new_px <= max(LARGER_ERROR * old_px, old_px + SMALL_ERROR_PX * correspondences.pixel_size):
        return f"they would make the reprojection error {new_px:.2f} px instead of {old_px:.2f}"
    moved = replace(
        model,
        cameras=model.cameras | cameras_of,
        camera_sd=camera_sds(adjusted, shared, found, used),
        modes={index: adjusted.modes[:, row] for row, index in enumerate(views)},
    )
    limit_px = MAX_ERROR_PX * correspondences.pixel_size
    moved = with_adjusted_points(moved, before, in_front, after, views, limit_px)
    return moved, PositionAdjustment(
        source=measured.source,
        agrees=dict(zip(measured.places, agrees.tolist())),
        before_m=dict(zip(measured.places, np.linalg.norm(fit.residuals, axis=1).tolist())),
        sigma=sigma,
        rms_before_m=_rms(fit.residuals[agrees]),
        rms_after_m=_rms(rounds.residuals(adjusted.bundle)[agrees]),
        moved_m=float(np.linalg.norm(after.world_from_cam[:, :3, 3] - whole.world_from_cam[:, :3, 3], axis=1).max()),
        error_before_px=old_px,
        error_after_px=new_px,
    )


@dataclass(frozen=True)
class _Rounds:
    """Adjustment, the standard deviation of the positions, and which of them agree, in turns."""

    problem: LensProblem
    lens: Lens
    views: list[int]
    measured: MeasuredCentres
    fit: PositionFit

    @property
    def rows(self) -> list[int]:
        """The view of each position."""
        return [self.views.index(index) for index in self.measured.places]

    def residuals(self, bundle: Bundle) -> np.ndarray:
        """(N, 3) centres less positions."""
        return bundle.world_from_cam[self.rows, :3, 3] - np.stack(list(self.measured.places.values()))

    def solve(self) -> tuple[AdjustedBundle, np.ndarray, float] | str:
        """The solution, which positions agree (N,), and the standard deviation in units of theirs; or why not.

        At first all positions have a part, the farther off the less: of a bent model that one similarity was laid over,
        the ends are as far from right positions as its middle is from wrong ones. Then those that agree have all of
        it, and the others so little that only right ones come back; in the end these have none.
        """
        sds = np.stack(list(self.measured.sds.values()))
        least = 1.0 if self.measured.stated else TINY
        off = np.linalg.norm(self.fit.residuals / sds, axis=1)
        sigma, agrees = max(float(np.median(off)) / MEDIAN_DISTANCE, least), np.ones(len(sds), bool)
        start, soft = self.problem.bundle, True
        for _ in range(ROUNDS):
            weaker = np.sqrt(1 + (off / sigma) ** 2) if soft else np.where(agrees, 1.0, (off / (AGREE * sigma)) ** 2)
            adjusted = self._adjusted(start, sds * sigma * np.maximum(weaker, 1.0)[:, None], STEPS, GAIN)
            if adjusted is None:
                return UNDETERMINED
            start, residuals = adjusted.bundle, self.residuals(adjusted.bundle)
            off = np.linalg.norm(residuals / sds, axis=1)
            given_away = adjusted.centre_freedom / (3 * int(agrees.sum()))
            left = np.sqrt(1 - min(given_away, MOST_FREEDOM))
            typical = float(np.median(off)) / MEDIAN_DISTANCE if soft else np.sqrt((off[agrees] ** 2).mean() / 3)
            now = max(float(typical / left), least)
            if not self.measured.stated and given_away > OWN_SHARE:
                now = max(now, sigma)
            change, sigma = abs(np.log(now / sigma)), now
            agree = (off <= AGREE * now) | (np.linalg.norm(residuals, axis=1) <= self.measured.tolerance)
            if 2 * agree.sum() < len(agree):
                return "too few of them agree with each other"
            if not soft and change < SETTLED and np.array_equal(agree, agrees):
                break
            if soft and change < SETTLED_SOFT:
                soft = False
            if not soft:
                agrees = agree
        adjusted = self._adjusted(start, np.where(agrees[:, None], sds * sigma, np.inf), MAX_STEPS, MIN_GAIN)
        return UNDETERMINED if adjusted is None else (adjusted, agrees, sigma)

    def _adjusted(self, start: Bundle, sds: np.ndarray, steps: int, min_gain: float) -> AdjustedBundle | None:
        """With positions of standard deviations (N, 3), inf for those that have no part."""
        centres, sd = np.full((len(self.views), 3), np.nan), np.ones((len(self.views), 3))
        rows, used = np.array(self.rows), np.isfinite(sds).all(-1)
        centres[rows[used]] = np.stack(list(self.measured.places.values()))[used]
        sd[rows[used]] = sds[used]
        priors = replace(self.problem.priors, centres=centres, centre_sd=sd)
        return replace(self.problem, priors=priors).adjusted(self.lens, start, steps, min_gain)


def _moved(bundle: Bundle, world_from_model: np.ndarray) -> Bundle:
    return replace(
        bundle,
        world_from_cam=move_poses(world_from_model, bundle.world_from_cam),
        points_world=transform_points(world_from_model, bundle.points_world),
    )


def _rms(residuals: np.ndarray) -> float:
    return float(np.sqrt((residuals**2).sum(axis=1).mean()))
