"""Metres and the world of a scene: the options of `dune reconstruct`, and what tells its scale and its place.

A source of the scale is a function of SCALE_SOURCES, which `--scale-from` offers by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli.commands import options
from dune_cli.commands.options import POSITIVE_NUMBER, BaselineCameras, SeededOptions, changed, option
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.io.crs import WorldFrame
    from dune_cli.sfm.georeference import CameraPositions, PositionPriors
    from dune_cli.sfm.scene import ScaleEstimate, Scene

MARKER_KINDS = "apriltag-36h11|apriltag-25h9|apriltag-16h5|aruco-original|4x4|5x5|6x6|7x7"


@dataclass(frozen=True)
class Baseline:
    """A known distance between two cameras: the first two, or those of two photos with `names`."""

    metres: float
    names: tuple[str, str] | None = None


class BaselineType(click.ParamType):
    """METRES, or A,B,METRES with the names of two photos."""

    name = "baseline"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Baseline:
        if isinstance(value, Baseline):
            return value
        *names, last = (part.strip() for part in str(value).split(","))
        metres = POSITIVE_NUMBER.convert(last, param, ctx)
        if names and (len(names) != 2 or not all(names) or names[0] == names[1]):
            self.fail(f"{value!r}: METRES between the first two cameras, or PHOTO,PHOTO,METRES.", param, ctx)
        return Baseline(metres, (names[0], names[1]) if names else None)


@dataclass(frozen=True)
class ScaleRequest:
    """What a source of the scale may use: the scene with the file of each of its views, the options, and the positions
    of the photos where these are known."""

    scene: Scene
    photos: Sequence[Path]
    cameras: WorldCameras
    compute: SeededOptions
    positions: CameraPositions | None


def _by_gps(request: ScaleRequest) -> ScaleEstimate:
    from dune_cli.sfm.georeference import scale_by_positions

    assert request.positions is not None
    estimate = scale_by_positions(request.scene, request.positions, request.compute.seed)
    assert estimate is not None
    return estimate


def _by_markers(request: ScaleRequest) -> ScaleEstimate:
    from dune_cli.sfm.markers import scale_by_markers

    size = request.cameras.marker_size
    assert size is not None
    return scale_by_markers(*request.scene.in_perspective(request.photos), size, request.cameras.marker_dictionary)


def _by_baseline(request: ScaleRequest) -> ScaleEstimate:
    """The distance between two photos that are named; that between the first two was set while they were mapped."""
    from dune_cli.io.photo_names import matching_keys
    from dune_cli.sfm.scale import scale_by_baseline
    from dune_cli.sfm.scene import ScaleEstimate

    given = request.cameras.baseline
    assert given is not None
    if given.names is None:
        return ScaleEstimate("baseline", 1.0)
    images = [view.image for view in request.scene.views]
    keys = matching_keys(images, given.names)
    pair = [[index for index, image in enumerate(images) if keys.get(image) == name] for name in given.names]
    first, second = (found[0] for found in pair)
    scaled = scale_by_baseline(request.scene, given.metres, None, (first, second))
    metres = scaled.baseline((first, second)) / request.scene.baseline((first, second))
    details = {"photos": [images[first], images[second]], "length_m": given.metres}
    return ScaleEstimate("baseline", metres, None, details)


SCALE_SOURCES: Mapping[str, Callable[[ScaleRequest], ScaleEstimate]] = {
    "gps": _by_gps,
    "marker": _by_markers,
    "baseline": _by_baseline,
}


@options.group("World")
class WorldCameras(BaselineCameras):
    intrinsics: str | None = changed(BaselineCameras, "intrinsics", heading="Cameras")
    fov_deg: float | None = changed(BaselineCameras, "fov_deg", heading="Cameras")
    baseline: Baseline | None = option(
        "--baseline METRES|A,B,METRES",
        "True distance between the first two cameras, or those of the photos A and B, in metres. Sets the scale.",
        BaselineType(),
        heading="Cameras",
    )
    scale_from: str | None = option(
        f"--scale-from [{'|'.join(SCALE_SOURCES)}]",
        "Source of metres. gps: the photos' positions. marker: square markers of --marker-size. baseline: --baseline.",
        default_text="what the other options give; else gps, where the photos' EXIF tells it to 2 %",
    )
    crs: str | None = option(
        "--crs EPSG:N|enu",
        "World of the output: a projected coordinate system, less an offset that the JSON has, or local east, north, "
        "up. The photos' positions place the scene in it.",
    )
    gps: str | None = option(
        "--gps FILE",
        "Positions of the photos: a table with the columns photo, lat, lon, alt or photo, x, y, z, or OpenDroneMap's "
        "geo.txt.",
        default_text="EXIF and XMP",
    )
    gps_crs: str | None = option(
        "--gps-crs EPSG:N", "Coordinate system of x, y, z in --gps.", default_text="that of the file, else --crs"
    )
    upright: bool = option(
        "--upright",
        "Turn the world of the first camera so that y points down along gravity, by the gimbal's angles in XMP, "
        "vertical edges in the photos, or the photos' level.",
    )
    marker_size: float | None = option(
        "--marker-size METRES", "Edge of the black square of ArUco or AprilTag markers, in metres.", POSITIVE_NUMBER
    )
    marker_dictionary: str | None = option(
        f"--marker-dictionary [{MARKER_KINDS}]", "Family of the markers.", default_text="all of them"
    )

    @property
    def first_baseline(self) -> float | None:
        """The distance between the first two cameras, where that is the one that is given."""
        return None if self.baseline is None or self.baseline.names is not None else self.baseline.metres

    def check_systems(self) -> None:
        """UserError for unknown coordinate systems, PackageMissing without what knows them."""
        from dune_cli.io.crs import ENU, open_crs

        for name in (self.crs, self.gps_crs):
            if name is not None and name.lower() != ENU:
                open_crs(name)

    def placement(self, photos: Sequence[Path], poses: str | None, geojson: str | None) -> Placement:
        """How a scene of these photos gets its metres and its place. UserError for options that contradict each other
        and for positions and systems that are no use; PackageMissing without what a system needs."""
        from dune_cli.sfm import georeference
        from dune_cli.sfm import placement as placements

        source = self._source(poses)
        if self.upright and (taken := self._own_world(poses)) is not None:
            raise UserError(f"{taken} has a world of its own, which --upright would turn; give one of them")
        placed = self.crs is not None or self.gps is not None
        if geojson is not None and not placed:
            raise UserError(f"--geojson {geojson} needs a place on earth; add --crs or --gps")
        if not placed and source != "gps":
            self._check_names(photos)
            return Placement(self, source, None, None)
        if len(photos) < georeference.MIN_POSITIONS:
            raise UserError(
                f"positions place three photos or more, and {len(photos)} were given; name more, or leave --crs, --gps "
                "and --scale-from gps out"
            )
        self._check_names(photos)
        crs = placements.named_crs(self.crs)
        positions = placements.find_positions(photos, self.gps, self.gps_crs, crs)
        frame = placements.frame_of(self.crs, positions, crs) if placed else None
        if geojson is not None and frame is not None:
            self._check_geojson(geojson, frame)
        return Placement(self, source, positions, frame)

    def _source(self, poses: str | None) -> str | None:
        """The source of the scale; None where none was asked for."""
        words = {"baseline": self.baseline, "marker": self.marker_size}
        given = [name for name, value in words.items() if value is not None]
        asked = [f"--{name}" for name in ("crs", "gps", "scale-from", "marker-size") if self._value(name) is not None]
        if poses is not None and (self.baseline is not None or asked):
            one = asked[0] if asked else "--baseline"
            raise UserError(f"--poses and {one} both set the scale; give one of them")
        if self.scale_from is None and len(given) > 1:
            raise UserError("--baseline and --marker-size both set the scale; choose with --scale-from, or give one")
        source = self.scale_from or (given[0] if given else "gps" if self.crs or self.gps else None)
        if source in words and words[source] is None:
            needed = {"baseline": "--baseline", "marker": "--marker-size"}[source]
            raise UserError(f"--scale-from {source} needs {needed}; add it, or name another source")
        if self.first_baseline is not None and source != "baseline":
            raise UserError(f"--scale-from {source} and --baseline both set the scale; give one of them")
        if self.marker_dictionary is not None and source != "marker":
            raise UserError("--marker-dictionary goes with --marker-size; add that, or leave it out")
        if self.gps_crs is not None and self.gps is None:
            raise UserError("--gps-crs is the system of x, y, z in --gps; add that file, or leave it out")
        return source

    def _own_world(self, poses: str | None) -> str | None:
        """The option that sets the world's axes."""
        given = {"--poses": poses, "--crs": self.crs, "--gps": self.gps}
        return next((name for name, value in given.items() if value is not None), None)

    def _value(self, name: str) -> Any:
        return getattr(self, name.replace("-", "_"))

    def _check_names(self, photos: Sequence[Path]) -> None:
        """UserError for a --baseline between photos that are not there."""
        from dune_cli.io.photo_names import matching_keys

        names = self.baseline.names if self.baseline is not None else None
        if names is None:
            return
        found = list(matching_keys([str(photo) for photo in photos], names).values())
        for name in names:
            if found.count(name) != 1:
                how = "is none" if name not in found else "are several"
                raise UserError(f"--baseline names {name}, which {how} of the {len(photos)} photos; name one of them")

    def _check_geojson(self, geojson: str, frame: WorldFrame) -> None:
        from dune_cli.io.crs import NamelessFrame

        if isinstance(frame, NamelessFrame):
            raise UserError(
                f"--geojson {geojson} has longitudes and latitudes, and it is not known where on earth the positions "
                f"of {self.gps} are; name their system with --gps-crs"
            )


@dataclass(frozen=True)
class Placement:
    """What a scene gets after it is made: metres by a `source`, or a place in a `frame` by `positions`."""

    cameras: WorldCameras
    source: str | None
    positions: CameraPositions | None
    frame: WorldFrame | None

    def priors(self, photos: Sequence[Path], poses: str | None) -> PositionPriors | None:
        """The positions that the cameras are adjusted to: those that place the scene, else those of EXIF, where they
        are good and nothing else tells the scale."""
        from dune_cli.sfm.georeference import PositionPriors

        if self.positions is not None:
            return PositionPriors(self.positions)
        if self.source is None and poses is None and self.cameras.baseline is None:
            return PositionPriors.unasked(photos)
        return None

    def check(self, scene: Scene, photos: Sequence[Path], compute: SeededOptions) -> None:
        """JobFailed for a scene that its positions do not place. Its points do not matter."""
        if self.positions is not None and self.source == "gps":
            self._in_metres(replace(scene, sparse=None), photos, compute)

    def apply(self, scene: Scene, photos: Sequence[Path], compute: SeededOptions) -> Scene:
        """The scene in metres, and upright or in its place. JobFailed where nothing tells these."""
        from dune_cli.sfm.upright import upright

        scene = self._in_metres(scene, photos, compute)
        return upright(scene, photos, compute.seed) if self.cameras.upright else scene

    def _in_metres(self, scene: Scene, photos: Sequence[Path], compute: SeededOptions) -> Scene:
        """The scene in metres, and in its place. JobFailed where the source does not tell them."""
        from dune_cli.sfm.georeference import exif_positions, georeference, scale_by_positions

        estimate: ScaleEstimate | None = None
        positions = self.positions
        if self.source is None:
            if scene.scale != "metric" and scene.world is None and len(scene.registered) > 2:
                positions = exif_positions(photos)
                estimate = positions and scale_by_positions(scene, positions, compute.seed, auto=True)
        elif self.source != "gps" or self.frame is None:
            request = ScaleRequest(scene, photos, self.cameras, compute, positions)
            estimate = SCALE_SOURCES[self.source](request)
        if self.frame is not None:
            assert positions is not None
            notes = () if estimate is None else estimate.notes
            return georeference(
                replace(scene, notes=(*scene.notes, *notes)), positions, self.frame, estimate, compute.seed
            )
        if estimate is None or (self.source == "baseline" and scene.scale == "metric" and not estimate.details):
            return scene
        scaled = scene.scaled(estimate.metres, "metric", None)
        return replace(scaled, scale_from=estimate, notes=(*scene.notes, *estimate.notes))
