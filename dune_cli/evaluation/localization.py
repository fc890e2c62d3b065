"""Relocalization in a map, one photo left out at a time, and photos of other places, which ought to be refused.

Layout: under a root, each `cameras.json` is a place: {"name", "scale" ("metric …" | "arbitrary"), "frames": [{"file"
(relative to the json), "K" (3x3), "T_cam_to_world" (4x4), "width", "height", "dist_k1" (COLMAP's first radial term;
0 where absent)}]}; OpenCV axes, pixel centres at integers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry import epipolar
from dune_cli.geometry.poses import subtract_world_offset, world_offset
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import LARGEST_RADIAL, LARGEST_SIDE_PX, pinhole_matrix, rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.photos import read_photo
from dune_cli.io.safe_read import is_file, read_json, shown
from dune_cli.matchers.matcher import Matcher
from dune_cli.sfm.cameras import Camera
from dune_cli.sfm.landmarks import LandmarkConfig, Landmarks
from dune_cli.sfm.localization import LocalizationConfig, Query, localize
from dune_cli.sfm.photo_map import MapImage, PhotoMap
from dune_cli.sfm.retrieval import Candidates

NEAR_M, NEAR_DEG, NEAR_SHARE = 0.25, 2.0, 0.05  # of the size of the place, where the scale is arbitrary
MIN_FRAMES = 4  # a map of three is left
KEYS = ("file", "K", "T_cam_to_world")


class NoGroundTruthError(Exception):
    """A set that cannot be scored: it says why."""


@dataclass(frozen=True)
class PosedSet:
    """Photos of one place with known poses. `extent`: the largest distance between two of the cameras. `frames`: the
    indices of the photos in the file's list."""

    name: str
    map: PhotoMap
    extent: float
    frames: tuple[int, ...]

    @property
    def metric(self) -> bool:
        return self.map.scale == "metric"

    @property
    def near(self) -> float:
        """How far off a camera may be found, in the place's unit."""
        return NEAR_M if self.metric else NEAR_SHARE * self.extent


@dataclass(frozen=True)
class QueryScore:
    """One query, left out of its `place` or (`other`: from which place) none of it. Errors in degrees and the place's
    unit, infinite where no pose was given out; `control_*` those of the map photo that has most matches with it."""

    place: str
    query: str
    other: str | None
    success: bool
    rotation_deg: float
    position: float
    near: bool
    control_rotation_deg: float
    control_position: float
    control_near: bool
    matches: int
    inliers: int
    confidence: float
    seconds: float


@dataclass(frozen=True)
class LocalizationSummary:
    """A place, or all of them: medians over all queries (`position_share`: of the place's extent), shares, and the
    share of queries from other places that is refused. `seconds`: the median a query."""

    queries: int
    located: int
    rotation_deg: float
    position: float
    position_share: float
    near: float
    control_rotation_deg: float
    control_position_share: float
    control_near: float
    wrong_queries: int
    refused: float
    seconds: float


def read_posed_sets(root: str | Path, names: Sequence[str] = ()) -> list[PosedSet]:
    """The places under `root` (only `names`, if any), sorted by file.

    Photos without true intrinsics or a true pose are left out with a note, and so are places with too few others.
    UserError where no place is left, and for a broken one.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder above the cameras.json files")
    files = sorted(root.rglob("cameras.json"))
    if not files:
        raise UserError(f"no cameras.json in {root} or the folders below it")
    places, left_out = [], []
    for file in files:
        try:
            places.append(_read_place(file))
        except NoGroundTruthError as reason:
            left_out.append(str(reason))
            console.note(f"left out, for there is no truth to score it by: {reason}")
    if not places:
        raise UserError(f"no set under {root} has a truth to score it by: {left_out[0]}")
    known = [place.name for place in places]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown set {', '.join(unknown)}; this folder has: {', '.join(known)}")
    return [place for place in places if not names or place.name in names]


def score_set(
    matcher: Matcher,
    place: PosedSet,
    others: Sequence[PosedSet],
    config: LocalizationConfig,
    points: LandmarkConfig | None = None,
) -> Iterator[QueryScore]:
    """Each photo of the place in the map of the other ones, then each photo of `others` in the map of all of them.

    Cameras are the true ones; every map photo is matched with every query.
    """
    everything = Landmarks(place.map, matcher, points or LandmarkConfig(seed=config.seed), WorkFolder(None))
    for index, image in enumerate(place.map.images):
        yield _score(image, everything.without(index), place, None, config)
    for other in others:
        for image in other.map.images:
            yield _score(image, everything, place, other.name, config)


def summarise(scores: Sequence[QueryScore], places: Sequence[PosedSet]) -> LocalizationSummary:
    """Over the scores of one matcher at `places`."""
    extents = {place.name: place.extent for place in places}
    own = [score for score in scores if score.other is None]
    wrong = [score for score in scores if score.other is not None]

    def median(values: list[float]) -> float:
        return float(np.median(values)) if values else float("nan")

    def share(values: list[bool]) -> float:
        return float(np.mean(values)) if values else float("nan")

    return LocalizationSummary(
        queries=len(own),
        located=sum(score.success for score in own),
        rotation_deg=median([score.rotation_deg for score in own]),
        position=median([score.position for score in own]),
        position_share=median([score.position / extents[score.place] for score in own]),
        near=share([score.near for score in own]),
        control_rotation_deg=median([score.control_rotation_deg for score in own]),
        control_position_share=median([score.control_position / extents[score.place] for score in own]),
        control_near=share([score.control_near for score in own]),
        wrong_queries=len(wrong),
        refused=share([not score.success for score in wrong]),
        seconds=median([score.seconds for score in scores]),
    )


def _score(
    image: MapImage, map_points: Landmarks, place: PosedSet, other: str | None, config: LocalizationConfig
) -> QueryScore:
    query = Query(read_photo(image.file), image.camera, "given")
    candidates: Candidates = [(index, None) for index in range(len(map_points.map.images))]
    for index, _ in candidates:
        map_points.points(index)  # of the map, not of the query: not in its seconds
    start = time.perf_counter()
    found = localize(query, map_points, candidates, config)
    seconds = time.perf_counter() - start
    control = map_points.map.images[int(np.argmax([seen.matches for seen in found.retrieved]))].world_from_cam
    errors = [float("inf"), float("inf")] if other else _errors(found.world_from_query, image.world_from_cam)
    by_control = [float("inf"), float("inf")] if other else _errors(control, image.world_from_cam)
    return QueryScore(
        place.name,
        image.name,
        other,
        found.success,
        *errors,
        errors[0] <= NEAR_DEG and errors[1] <= place.near,
        *by_control,
        by_control[0] <= NEAR_DEG and by_control[1] <= place.near,
        found.matches,
        found.inliers,
        found.confidence,
        seconds,
    )


def _errors(found: np.ndarray | None, truth: np.ndarray) -> list[float]:
    """Rotation in degrees and the distance of the centres; both infinite without a pose."""
    if found is None:
        return [float("inf"), float("inf")]
    rotation = float(np.degrees(epipolar.rotation_error(found[:3, :3], truth[:3, :3])))
    return [rotation, float(np.linalg.norm(found[:3, 3] - truth[:3, 3]))]


def _read_place(file: Path) -> PosedSet:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise NoGroundTruthError(f'{file} is no set of posed photos: it needs an object with a list "frames"')
    fields = Fields(content, str(file))
    read = [_read_frame(file, index, frame) for index, frame in enumerate(content["frames"])]
    kept = tuple(index for index, image in enumerate(read) if isinstance(image, MapImage))
    images = tuple(image for image in read if isinstance(image, MapImage))
    reasons = [reason for reason in read if isinstance(reason, str)]
    if len(images) < MIN_FRAMES:
        why = f" ({reasons[0]})" if reasons else ""
        raise NoGroundTruthError(
            f"{file} has {len(images)} photos with a true pose{why}; leaving one out takes at least {MIN_FRAMES}"
        )
    if reasons:
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        console.note(f"left out, for there is no truth to score it by: {reasons[0]}{more}")
    scale = "metric" if fields.text("scale", "").startswith("metric") else "arbitrary"
    centres = np.stack([image.world_from_cam[:3, 3] for image in images])
    offset = world_offset(centres)  # no error depends on where the origin is
    images = tuple(
        replace(image, world_from_cam=subtract_world_offset(image.world_from_cam, offset)) for image in images
    )
    extent = float(np.linalg.norm(centres[:, None] - centres, axis=-1).max())
    if extent == 0:
        raise NoGroundTruthError(f"the cameras of {file} all stand in one place; leaving one out says nothing")
    name = fields.text("name", None) or file.parent.name
    return PosedSet(name, PhotoMap(file.parent, images, scale, None, (file,)), extent, kept)


def _read_frame(file: Path, index: int, value: Any) -> MapImage | str:
    """The photo, or why it has no truth."""
    frame = Fields(value, f"{file}, frame {index}")
    unknown = [key for key in KEYS if key != "file" and frame.get(key) is None]
    if unknown:
        return f"{frame.where} lacks {', '.join(unknown)}"
    photo = file.parent / frame.text("file")
    if not is_file(photo):
        raise UserError(f"{frame.where}: the photo {shown(str(photo), 200)} is not there")
    width, height = (frame.integer(side, low=1, high=LARGEST_SIDE_PX) for side in ("width", "height"))
    K = pinhole_matrix(frame["K"], f"{frame.where}: K", width, height)
    pose = rigid_pose(frame["T_cam_to_world"], f"{frame.where}: T_cam_to_world")
    k1 = frame.number("dist_k1", 0.0, -LARGEST_RADIAL, LARGEST_RADIAL)
    lens = Camera.radial(K, k1, width, height) if k1 else Camera.pinhole(K, width, height)
    return MapImage(photo.name, photo, lens, pose)
