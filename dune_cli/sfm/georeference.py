"""A scene placed on earth: by the positions of its cameras, and where these lie on a line by the cameras' attitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry import georeferencing
from dune_cli.geometry.georeferencing import PositionFit, fit_positions
from dune_cli.io import crs as systems
from dune_cli.io.crs import CrsFrame, EnuFrame, NamelessFrame, WorldFrame
from dune_cli.io.gps import SD_M, read_whereabouts
from dune_cli.io.positions import PositionTable
from dune_cli.io.safe_read import shown
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.positioned import MeasuredCentres, adjust_to_positions
from dune_cli.sfm.scene import (
    Georeference,
    PositionAdjustment,
    PositionResidual,
    ScaleEstimate,
    Scene,
    SfmModel,
)

MIN_POSITIONS = 3
MAX_SCALE_SD = 0.1  # standard deviation of the scale, above which it is refused
AUTO_SCALE_SD = 0.02  # and above which GPS that nobody asked for is not used
MAX_ROLL_SD_DEG = 6.0  # of the rotation about the positions' line, above which the cameras' attitude must tell it
MAX_ATTITUDE_DEG = 30.0  # median disagreement of gimbal angles, above which they are not believed
TABLE_SD_M = 1.0  # of positions in a table without standard deviations; their ratios alone count
ROUND_M = 10.0  # of a local offset
SCENE_ERROR = 0.005  # of the positions' extent: what a scene's own cameras may be off
NAMED = 3
EXIF = "EXIF"


@dataclass(frozen=True)
class CameraPositions:
    """Positions of photos, which go by their index.

    `coordinates`: index -> (3,): latitude, longitude, height where `geodetic`, else x, y, z in `frame`. `sds_m`: index
    -> (3,) standard deviations; `stated`: whether all are stated and not assumed. `attitudes`: index -> (3, 3) camera
    to east, north, up. `source` in words.
    """

    coordinates: Mapping[int, np.ndarray]
    sds_m: Mapping[int, np.ndarray]
    stated: bool
    geodetic: bool
    source: str
    attitudes: Mapping[int, np.ndarray]
    frame: WorldFrame | None = None

    def middle(self) -> np.ndarray:
        """(3,) the median of the coordinates."""
        return np.median(np.stack(list(self.coordinates.values())), axis=0)

    def cartesian(self) -> dict[int, np.ndarray]:
        """The positions (3,) in metres about their middle: east, north, up, or the axes of an unknown world."""
        if self.geodetic:
            return self.in_frame(EnuFrame(self.middle()))
        assert self.frame is not None
        middle = self.middle()
        if isinstance(self.frame, NamelessFrame):
            return {index: value - middle for index, value in self.coordinates.items()}
        return self.in_frame(EnuFrame(self.frame.to_geodetic(middle)))

    def own_tolerance(self, sds: np.ndarray) -> float:
        """The distance in metres that is no error of positions with standard deviations (N, 3)."""
        return float(np.median(np.linalg.norm(sds, axis=1))) if self.stated or self.source == EXIF else 0.0

    def tolerance(self, places: np.ndarray, sds: np.ndarray) -> float:
        """The same where the scene may be off as well. places: (N, 3)."""
        extent = 2 * float(np.median(np.linalg.norm(places - np.median(places, axis=0), axis=1)))
        return max(SCENE_ERROR * extent, self.own_tolerance(sds))

    def in_frame(self, frame: WorldFrame) -> dict[int, np.ndarray]:
        """The positions (3,) in a frame."""
        indices, values = list(self.coordinates), np.stack(list(self.coordinates.values()))
        if self.geodetic:
            values = frame.from_geodetic(values)
        elif isinstance(self.frame, CrsFrame) and isinstance(frame, CrsFrame):
            values = values if self.frame.name == frame.name else frame.from_crs(values, self.frame)
        elif self.frame is not None and self.frame.name != frame.name:
            values = frame.from_geodetic(self.frame.to_geodetic(values))
        return dict(zip(indices, values))


@dataclass(frozen=True)
class PositionPriors:
    """Positions that cameras are adjusted to, if these tell the scale to `scale_sd`."""

    positions: CameraPositions
    scale_sd: float = MAX_SCALE_SD

    @classmethod
    def unasked(cls, photos: Sequence[Path]) -> PositionPriors | None:
        """Those of the photos' EXIF, which nobody asked for."""
        positions = exif_positions(photos)
        return None if positions is None else cls(positions, AUTO_SCALE_SD)

    def adjust(
        self, model: SfmModel, correspondences: Correspondences, cameras: PhotoCameras, seed: int
    ) -> tuple[SfmModel, PositionAdjustment | None, tuple[str, ...]]:
        """The model adjusted to the positions, what that changed, and notes; as it is where they tell too little, and
        where rigs hold photos together."""
        positions = self.positions
        indices = [index for index in sorted(model.world_from_cam) if index in positions.coordinates]
        if len(indices) < MIN_POSITIONS or cameras.rigs.mounts:  # a rig's photos would move apart
            return model, None, ()
        known = positions.cartesian()
        places = np.stack([known[index] for index in indices])
        sds = np.stack([positions.sds_m[index] for index in indices])
        centres = np.stack([model.world_from_cam[index][:3, 3] for index in indices])
        fit = fit_positions(places, centres, sds, True, seed, positions.tolerance(places, sds))
        if fit.scale_sd > self.scale_sd:
            return model, None, ()
        measured = MeasuredCentres(
            dict(zip(indices, places)),
            dict(zip(indices, sds)),
            positions.stated,
            positions.own_tolerance(sds),
            positions.source,
        )
        done = adjust_to_positions(model, correspondences, cameras, measured, fit)
        if isinstance(done, str):
            return model, None, (f"the cameras were not adjusted to the positions ({positions.source}): {done}",)
        return done[0], done[1], (_adjustment_note(done[1], positions),)


def exif_positions(photos: Sequence[Path]) -> CameraPositions | None:
    """What the photos' own files say; None unless three of them have a position with a height."""
    found = {index: read_whereabouts(path) for index, path in enumerate(photos)}
    fixes = {index: one.fix for index, one in found.items() if one.fix is not None and one.fix.height_m is not None}
    if len(fixes) < MIN_POSITIONS:
        return None
    return CameraPositions(
        {index: np.array([fix.latitude_deg, fix.longitude_deg, fix.height_m]) for index, fix in fixes.items()},
        {index: np.array(fix.sd_m) for index, fix in fixes.items()},
        all(fix.stated for fix in fixes.values()),
        True,
        EXIF,
        {index: one.enu_from_cam for index, one in found.items() if one.enu_from_cam is not None},
    )


def table_positions(table: PositionTable, photos: Sequence[Path], crs: CrsFrame | None) -> CameraPositions:
    """Those of a file. `crs`: the system of its x, y, z; without one, and without one in the file, they are taken as a
    world of their own. UserError for fewer than three, and for a system beside latitudes."""
    if table.geodetic and crs is not None:
        raise UserError(
            f"{table.path} has latitudes and longitudes, which are WGS84's; leave --gps-crs {crs.name} out, or give x "
            "and y"
        )
    given = table.of_photos([str(photo) for photo in photos])
    if len(given) < MIN_POSITIONS:
        raise UserError(
            f"{table.path} has a position for {len(given)} of the {len(photos)} photos; {MIN_POSITIONS} or more are "
            "needed"
        )
    frame: WorldFrame | None = None
    if not table.geodetic:
        frame = systems.open_crs(table.crs) if crs is None and table.crs is not None else crs
        frame = frame or NamelessFrame(f"that of {table.path.name}")
        xy = np.array([one.coordinates[:2] for one in given.values()])
        if isinstance(frame, CrsFrame) and np.abs(xy).max() <= 180:
            raise UserError(
                f"{table.path} has x and y of at most {np.abs(xy).max():.4g}, which are degrees and no metres of "
                f"{frame.name}; name these columns lat and lon, or leave the system out"
            )
    by_index = {index: given[str(photo)] for index, photo in enumerate(photos) if str(photo) in given}
    sds = {index: np.array(one.sd_m or (TABLE_SD_M,) * 3) for index, one in by_index.items()}
    attitudes = {index: read_whereabouts(photos[index]).enu_from_cam for index in by_index}
    return CameraPositions(
        {index: np.array(one.coordinates, np.float64) for index, one in by_index.items()},
        sds,
        all(one.sd_m is not None for one in by_index.values()),
        table.geodetic,
        str(table.path),
        {index: rotation for index, rotation in attitudes.items() if rotation is not None},
        frame,
    )


def choose_frame(positions: CameraPositions, crs: CrsFrame | None) -> WorldFrame:
    """The world that a scene with these positions is placed in: `crs`, else that of the positions, else east, north, up
    about their middle. UserError for a system that is no use there, and for positions of an unknown one."""
    if crs is None:
        return positions.frame or EnuFrame(positions.middle())
    middle = positions.middle()
    if not positions.geodetic:
        assert positions.frame is not None
        if isinstance(positions.frame, NamelessFrame):
            return crs  # x, y, z without a system of their own are in that of the output
        middle = positions.frame.to_geodetic(middle)
    systems.check_stretch(crs, middle)
    crs.from_geodetic(middle)
    return crs


def scale_by_positions(scene: Scene, positions: CameraPositions, seed: int, auto: bool = False) -> ScaleEstimate | None:
    """Metres by the distances between the positions. JobFailed where these do not tell it; with `auto` None instead,
    and for positions that tell it less well than what nobody asked for should."""
    frame = choose_frame(positions, None)
    try:
        indices, fit = _fit(scene, positions, frame, seed, True)
        _check_scale(scene, positions, fit, AUTO_SCALE_SD if auto else MAX_SCALE_SD)
    except JobFailed:
        if auto:
            return None
        raise
    names = [scene.views[index].image for index, agrees in zip(indices, fit.agrees) if not agrees]
    details = {"positions": positions.source, "photos": len(indices), "rms_m": fit.rms, "outliers": names}
    return ScaleEstimate("gps", fit.free_scale, fit.scale_sd, details, _outlier_notes(names, len(indices), positions))


def georeference(
    scene: Scene, positions: CameraPositions, frame: WorldFrame, scale: ScaleEstimate | None, seed: int
) -> Scene:
    """The scene in metres, placed in `frame` less a round offset.

    `scale`: what tells metres where that are not the positions. JobFailed where they do not tell the place: too few,
    too close together for their errors, contradicting the scene, or on a line about which nothing tells the rotation.
    """
    if scale is not None:
        scene = scene.scaled(scale.metres, "metric", None)
    indices, fit = _fit(scene, positions, frame, seed, scale is None)
    _check_scale(scene, positions, fit, MAX_SCALE_SD)
    world_from_scene, roll_from, roll_notes = _with_roll(scene, positions, frame, fit, indices)
    centres = np.stack([scene.views[index].world_from_cam[:3, 3] for index in indices])
    known = np.stack([positions.in_frame(frame)[index] for index in indices])
    residuals = centres @ world_from_scene[:3, :3].T + world_from_scene[:3, 3] - known
    fit = replace(fit, world_from_scene=world_from_scene, residuals=residuals)
    offset = np.zeros(3)
    if not isinstance(frame, EnuFrame):
        offset = np.rint(np.median(known[fit.agrees], axis=0) / ROUND_M) * ROUND_M + 0.0
    local_from_scene = world_from_scene.copy()
    local_from_scene[:3, 3] -= offset
    placed = Georeference(
        frame,
        offset,
        positions.source,
        tuple(
            PositionResidual(
                scene.views[index].image,
                residual,
                positions.sds_m[index],
                not agrees,
                scene.adjustment.before_m.get(index) if scene.adjustment is not None else None,
            )
            for index, residual, agrees in zip(indices, residuals, fit.agrees)
        ),
        fit.rms,
        fit.sigma,
        fit.scale_sd,
        float(np.degrees(fit.roll_sd)),
        roll_from,
        _details(positions, frame, fit),
    )
    notes = [*roll_notes, *_outlier_notes(placed.outliers, len(indices), positions), _summary(placed)]
    if scale is not None and abs(np.log(fit.free_scale)) > 3 * fit.scale_sd:
        notes.append(
            f"the positions alone would make the scene {fit.free_scale - 1:+.1%} larger than --scale-from "
            f"{scale.source} does"
        )
    if scale is None:
        scale = ScaleEstimate("gps", fit.free_scale, fit.scale_sd, {"positions": positions.source})
    return replace(
        scene.transformed(local_from_scene),
        scale="metric",
        scale_note=None,
        world=f"{frame.name} less the offset of georeference" if offset.any() else frame.name,
        world_offset=None,
        georeference=placed,
        scale_from=scale,
        notes=(*scene.notes, *notes),
    )


def _fit(
    scene: Scene, positions: CameraPositions, frame: WorldFrame, seed: int, with_scale: bool
) -> tuple[list[int], PositionFit]:
    """The placed photos that have a position, and the similarity."""
    indices = [index for index in scene.registered if index in positions.coordinates]
    if len(indices) < MIN_POSITIONS:
        raise JobFailed(
            f"{len(indices)} of the {len(scene.registered)} photos that were placed have a position ("
            f"{positions.source}); {MIN_POSITIONS} or more are needed"
        )
    known = positions.in_frame(frame)
    centres = np.stack([scene.views[index].world_from_cam[:3, 3] for index in indices])
    sds = np.stack([positions.sds_m[index] for index in indices])
    places = np.stack([known[index] for index in indices])
    tolerance, adjusted = positions.tolerance(places, sds), scene.adjustment
    if adjusted is None or adjusted.source != positions.source or set(indices) != set(adjusted.agrees):
        return indices, fit_positions(places, centres, sds, with_scale, seed, tolerance)
    agrees = np.array([adjusted.agrees[index] for index in indices])
    # the residuals, which the adjustment made small, do not tell the error
    return indices, fit_positions(places, centres, sds, with_scale, seed, tolerance, agrees, adjusted.sigma)


def _check_scale(scene: Scene, positions: CameraPositions, fit: PositionFit, most: float) -> None:
    """JobFailed for positions that do not tell the scale, nor where the scene is."""
    sd = fit.scale_sd
    if sd <= most:
        return
    error = f"{fit.rms:.2g} m off (root mean square)"
    if not positions.stated and positions.source == EXIF:
        error += f", and such positions are good to {SD_M[0]:g} m"
    raise JobFailed(
        f"the positions of {len(fit.agrees)} photos ({positions.source}) do not tell the scale: laid over the scene "
        f"they are {error}, which leaves it open by {min(sd, 9.99):.0%} where {most:.0%} are allowed; they are in one "
        "place or contradict the photos: take photos farther apart, correct the positions, or leave them out"
    )


def _with_roll(
    scene: Scene, positions: CameraPositions, frame: WorldFrame, fit: PositionFit, indices: Sequence[int]
) -> tuple[np.ndarray, str, list[str]]:
    """The similarity, turned about the line of the positions where these leave that open; what told it, and notes."""
    open_deg = float(np.degrees(fit.roll_sd))
    if open_deg <= MAX_ROLL_SD_DEG:
        return fit.world_from_scene, "positions", []
    used = [index for index, agrees in zip(indices, fit.agrees) if agrees]
    pivot = np.stack([scene.views[index].world_from_cam[:3, 3] for index in used]).mean(axis=0)
    pivot = fit.world_from_scene[:3, :3] @ pivot + fit.world_from_scene[:3, 3]
    told = "the positions lie on a line, about which they do not tell the rotation"
    registered = [index for index in scene.registered if index in positions.attitudes]
    if registered and frame.z_up and not isinstance(frame, NamelessFrame):
        poses = np.stack([scene.views[index].world_from_cam for index in registered])
        north = _grid_from_enu(positions, frame)
        known = north @ np.stack([positions.attitudes[index] for index in registered])
        turned, angle = georeferencing.turned_to_orientations(fit.world_from_scene, fit.axis, pivot, poses, known)
        if np.degrees(angle) <= MAX_ATTITUDE_DEG:
            who = f"the gimbal's angles of {len(registered)} photos do ({np.degrees(angle):.1f} deg off)"
            return turned, "gimbal", [f"{told}; {who}"]
    if frame.z_up:
        poses = np.stack([scene.views[index].world_from_cam for index in scene.registered])
        level = georeferencing.turned_level(fit.world_from_scene, fit.axis, pivot, poses)
        if level is not None:
            return (
                level,
                "level cameras",
                [f"{told}; the photos are taken to be level, which is good to some degrees"],
            )
    raise JobFailed(
        f"{told} ({min(open_deg, 180.0):.0f} deg), and neither gimbal angles nor level photos do; add positions beside "
        "the line, or take metres alone with --scale-from gps"
    )


def _grid_from_enu(positions: CameraPositions, frame: WorldFrame) -> np.ndarray:
    """(3, 3) the turn from true to the frame's north at the positions' middle (meridian convergence)."""
    middle = positions.middle() if positions.geodetic else positions.frame.to_geodetic(positions.middle())  # type: ignore[union-attr]
    north = frame.from_geodetic(middle + np.array([1e-4, 0, 0])) - frame.from_geodetic(middle)
    x, y = north[:2] / np.hypot(*north[:2])
    return np.array([[y, x, 0], [-x, y, 0], [0, 0, 1.0]])


def _details(positions: CameraPositions, frame: WorldFrame, fit: PositionFit) -> dict[str, Any]:
    details: dict[str, Any] = {"stated_sd": positions.stated}
    if isinstance(frame, EnuFrame):
        details["origin"] = dict(zip(("latitude_deg", "longitude_deg", "height_m"), frame.origin.tolist()))
    if isinstance(frame, CrsFrame):
        if positions.geodetic:
            details["conversion_accuracy_m"] = frame.accuracy_m()
            details["metre_in_crs"] = frame.stretch(positions.middle())
        details["wkt"] = frame.wkt
    return details


def _adjustment_note(done: PositionAdjustment, positions: CameraPositions) -> str:
    used = sum(done.agrees.values())
    return (
        f"the cameras were adjusted to {used} of {len(done.agrees)} positions ({positions.source}): "
        f"{done.rms_before_m:.3g} -> {done.rms_after_m:.3g} m off (root mean square), reprojection error "
        f"{done.error_before_px:.2f} -> {done.error_after_px:.2f} px (median); the camera that moved most moved "
        f"{done.moved_m:.3g} m"
    )


def _summary(placed: Georeference) -> str:
    used = sum(not one.outlier for one in placed.residuals)
    return (
        f"placed in {placed.frame.name} by {used} of {len(placed.residuals)} positions ({placed.source}), "
        f"{placed.rms_m:.3g} m off (root mean square); the scale is known to {placed.scale_sd:.2%}"
    )


def _outlier_notes(names: Sequence[str], count: int, positions: CameraPositions) -> tuple[str, ...]:
    if not names:
        return ()
    some = ", ".join(map(shown, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return (f"{len(names)} of {count} positions ({positions.source}) are wrong and were not used: {some}",)
