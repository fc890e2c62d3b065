"""Photos to a scene by feature matches.

Two photos: a stereo pair (`two_view`). More photos, or known poses: features, pairs, matches, verification, structure
from motion, and multi-view stereo. Where no three photos connect, the scene is that of the best pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.poses import inverse, subtract_world_offset, transform_points, vector_angle, world_offset
from dune_cli.io.cache import WorkFolder
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import CacheableMatcher, Matcher
from dune_cli.progress import amount
from dune_cli.provenance import Run, Source
from dune_cli.sfm.calibration_notes import calibration_notes
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.device_cameras import with_shared_cameras
from dune_cli.sfm.features import FeatureStore, ImageFeatures, extract_features
from dune_cli.sfm.global_mapping import map_globally
from dune_cli.sfm.known_poses import known_pose_notes
from dune_cli.sfm.lens_residuals import lens_notes
from dune_cli.sfm.mapper import FEW, MIN_PHOTOS, Draft, MappingConfig, map_once
from dune_cli.sfm.matching import Correspondences, match_counts_text
from dune_cli.sfm.retrieval import DescriptorExtractor
from dune_cli.sfm.rig_estimation import MappedInRigs, map_in_rigs
from dune_cli.sfm.scale import check_distinct_centres, same_viewpoint_notes, scale_by_baseline, scale_by_motion
from dune_cli.sfm.scene import LARGE_COORDINATES_NOTE, Calibration, Observations, Scene, SfmModel, SparsePoints, View
from dune_cli.sfm.verification import VerifiedPairs
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig
from dune_cli.tasks.reconstruct.left_out import reason_left_out
from dune_cli.tasks.reconstruct.lookalikes import settled, without_lookalikes
from dune_cli.tasks.reconstruct.mapped_photos import MappedPhotos
from dune_cli.tasks.reconstruct.matched_again import SecondMatcher, weakly_tied
from dune_cli.tasks.reconstruct.matched_photos import (
    MatchedPhotos,
    OnlyTurned,
    hardly_moved_notes,
    match_photos,
    rotation_note,
    uses_descriptors,
    without_pure_rotations,
)
from dune_cli.tasks.reconstruct.panoramas import reconstruct_panoramas
from dune_cli.tasks.reconstruct.two_view import reconstruct_matched, reconstruct_pair

SCALE_UNKNOWN = "photos do not tell lengths: the median step between cameras that moved is 1; give --baseline METRES"
SCALE_OF_POSES = "lengths are those of --poses"
SCALE_OF_RIGS = "lengths are those of --rig: metres where its translations are"
NO_POSE = np.full((4, 4), np.nan)
PAIRS_TO_TRY = 3  # where no three photos connect
WEAK_UP_TO = 0.3  # of the photos, for which another matcher is tried before the first one's cameras are calibrated
TURNED_SHARE = 0.8  # of the photos: where the camera turned between so many, there is no scene for another matcher
LoadDescriptors = Callable[[], DescriptorExtractor | None]  # None where keypoints are to make the descriptors


def reconstruct(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    matcher: Matcher,
    config: MatchesConfig,
    run: Run,
    cache: WorkFolder | None = None,
    descriptors: LoadDescriptors | None = None,
    known_poses: Mapping[Path, np.ndarray] | None = None,
    fallback: Callable[[], Matcher] | None = None,
) -> Scene:
    """The scene of two or more photos.

    `cameras_of` gives the camera of each photo. Of more than two photos: `cache` keeps features and matches
    for the next run (None: nothing is kept); `descriptors` loads what makes the global descriptors of pair retrieval,
    where these are needed (None: keypoints do); `known_poses`, photo -> `world_from_cam` (4, 4), set the world, less
    the scene's `world_offset` where coordinates are large; `fallback` loads a second matcher, for the photos that the
    first one leaves out.

    Raises JobFailed where no two photos give a scene. UserError for a matcher that cannot cache features, for pairs
    that do not fit, and for a baseline beside known poses.
    """
    if config.is_stereo_pair(paths, known_poses):
        with run.stage("read"):
            photos = [read_photo(path) for path in paths]
            cameras = cameras_of([photo.info for photo in photos])
        return reconstruct_pair(photos, cameras, matcher, config, run)
    if cache is None:
        with scratch_folder() as folder:
            cache = WorkFolder(folder)
            return reconstruct(paths, cameras_of, matcher, config, run, cache, descriptors, known_poses, fallback)
    if config.spheres:

        def of_parts(parts: Sequence[Path], cameras: CamerasOf, settings: MatchesConfig, known: Any) -> Scene:
            return reconstruct(parts, cameras, matcher, settings, run, cache, descriptors, known, fallback)

        return reconstruct_panoramas(paths, cameras_of, config, cache, known_poses, of_parts)
    check_distinct_centres(known_poses or {})
    known_poses = known_poses or {}
    scene = _reconstruct_many(paths, cameras_of, matcher, config, run, cache, descriptors, known_poses, fallback)
    if config.dense is None or scene.is_dense:
        return scene
    if config.check is not None:
        config.check(scene)
    from dune_cli.mvs.densify import densify

    return densify(scene, paths, config.dense, config.mesh, run, config.min_confidence, config.masks, config.fill)


@dataclass(frozen=True)
class ManyPhotos:
    """The photos of a reconstruction and all that goes with them. `known`: photo -> pose."""

    paths: Sequence[Path]
    cameras_of: CamerasOf
    config: MatchesConfig
    run: Run
    cache: WorkFolder
    descriptors: LoadDescriptors | None
    known: Mapping[int, np.ndarray]

    def mapped(self, matcher: Matcher) -> MappedPhotos:
        """By one matcher. Raises as `matched`."""
        return self.calibrated(self.matched(matcher))

    def matched(self, matcher: Matcher) -> MappedPhotos:
        """Without models. JobFailed where the camera only turned; UserError for a matcher of two photos only."""
        if not isinstance(matcher, CacheableMatcher):
            raise UserError(f"the matcher {matcher.name} compares two photos only; give another --matcher")
        descriptors = self._descriptors(matcher)
        with self.run.stage("features"):
            images = extract_features(self.paths, matcher, self.cache, descriptors)
        matched, images = match_photos(images, self.cameras_of, matcher, self.config, self.run, self.cache)
        return MappedPhotos(self._with_parallax(matched), images, [], matcher, (matcher.source,))

    def _drafted(self, mapped: MappedPhotos) -> MappedPhotos:
        """Many photos only as a draft, few with calibrated models."""
        if not self._is_drafted(mapped):
            return self.calibrated(mapped)
        return self._with_draft(mapped)

    def _is_drafted(self, mapped: MappedPhotos) -> bool:
        few = len(self.paths) <= FEW or len(mapped.matched.verified.geometry) == 0
        return not (self.known or few or mapped.matched.cameras.rigs.estimated)

    def _draft(self, mapped: MappedPhotos, folder: Path) -> Draft:
        if self.config.mapper == "global":
            return map_globally(*self._given(mapped), folder)
        return map_once(*self._given(mapped), folder, all_points=len(self.paths) > FEW)

    def _consistent_draft(self, mapped: MappedPhotos) -> MappedPhotos:
        """A draft of few photos, without the pairs that heavier ones contradict: with them, it would be calibrated in
        vain."""
        first = self._with_draft(mapped)
        if len(first.placed) < MIN_PHOTOS:
            return first
        return settled(first, self._with_draft, self.run, bridges=False)[0]

    def _with_draft(self, mapped: MappedPhotos) -> MappedPhotos:
        with self.run.stage("map", "mapping"), self.cache.scratch() as folder:
            draft = self._draft(mapped, folder)
        return replace(mapped, models=_with_points(draft.models), draft=draft)

    def _has_consistent_draft(self, mapped: MappedPhotos) -> bool:
        few = len(self.paths) <= FEW and len(mapped.matched.verified.geometry) > 0
        return few and self.config.mapper == "incremental" and self._is_judged(mapped)

    def _tried(self, mapped: MappedPhotos) -> MappedPhotos:
        """As `_drafted`, of few photos a draft as well, unless it leaves out many of them."""
        if not self._has_consistent_draft(mapped):
            return self._drafted(mapped)
        draft = self._consistent_draft(mapped)
        return draft if len(draft.left_out) <= WEAK_UP_TO * len(self.paths) else self.finished(draft)

    def finished(self, mapped: MappedPhotos) -> MappedPhotos:
        """With calibrated models instead of a draft."""
        return mapped if mapped.draft is None else self.calibrated(mapped)

    def calibrated(self, mapped: MappedPhotos) -> MappedPhotos:
        """With calibrated models."""
        held = MappedInRigs([], mapped.matched.cameras)
        if mapped.draft is None and self._has_consistent_draft(mapped):
            mapped = self._consistent_draft(mapped)
        with self.run.stage("map", "mapping"):
            if len(mapped.matched.verified.geometry) > 0 or len(self.known) > 1:
                with self.cache.scratch() as folder:
                    draft = mapped.draft
                    if draft is None and self.config.mapper == "global" and self._is_drafted(mapped):
                        draft = self._draft(mapped, folder)
                    found, verified, cameras, settings = self._given(mapped)
                    held = map_in_rigs(found, verified, cameras, settings, folder, self.known, draft)
                    if not self.known:
                        held = with_shared_cameras(held, found, verified, settings, folder)
        models = held.models if self.known else _with_points(held.models)
        matched, notes = replace(mapped.matched, cameras=held.cameras), (*mapped.notes, *held.notes)
        return replace(mapped, matched=matched, models=models, notes=notes, draft=None)

    def _given(self, mapped: MappedPhotos) -> tuple[Correspondences, VerifiedPairs, PhotoCameras, MappingConfig]:
        """What the mapper takes."""
        settings = MappingConfig(self.config.mapper, self.config.seed, self.config.fixed_poses)
        matched = mapped.matched
        return matched.correspondences, matched.verified.without(mapped.given_up), matched.cameras, settings

    def consistent(self, mapped: MappedPhotos) -> MappedPhotos:
        """Without the verified pairs that contradict the models, and mapped again where it is these that are wrong."""
        if len(mapped.placed) < MIN_PHOTOS or not self._is_judged(mapped):
            return mapped
        return without_lookalikes(mapped, self.calibrated, self.run)

    def _is_judged(self, mapped: MappedPhotos) -> bool:
        """Whether pairs may contradict the models: not where poses or rigs are known."""
        rigs = mapped.matched.cameras.rigs
        return not (self.known or rigs.mounts or rigs.estimated)

    def _with_parallax(self, matched: MatchedPhotos) -> MatchedPhotos:
        return matched if self.known else without_pure_rotations(matched)

    def _descriptors(self, matcher: Matcher) -> DescriptorExtractor | None:
        """What makes global descriptors, where pairs of the `matcher` need them."""
        if self.descriptors is None or not uses_descriptors(len(self.paths), matcher, self.config):
            return None
        with self.run.stage("load"):
            return self.descriptors()

    def mapped_again(self, first: MappedPhotos, fallback: Callable[[], Matcher]) -> MappedPhotos:
        """By the fallback as well, where the first matcher left photos out; where it placed less than half of them, or
        both together not three, by the fallback alone. The result that places more photos."""
        left_out = self._weakly_tied(first.matched)
        if not left_out:
            first = self._drafted(first)
            if first.draft is not None and len(first.left_out) > WEAK_UP_TO * len(self.paths):
                first = self.finished(first)
            left_out = first.left_out
        if not left_out:
            return self.finished(first)
        with self.run.stage("load"):
            matcher = fallback()
            if len(self.paths) > FEW:
                matcher = matcher.for_many()
        counted = amount(len(left_out), "photo")
        console.note(f"{first.matcher.name} leaves out {counted}, and {matcher.name} matches again")
        if first.models and 2 * len(first.placed) < len(self.paths):
            return _better(first, self.mapped(matcher))
        assert isinstance(matcher, CacheableMatcher)
        images = self._described(first, matcher)
        second = SecondMatcher(first.matched, images, matcher, self.config, self.run, self.cache)
        sources = (*first.sources, matcher.source)
        note = f"{matcher.name} matched what {first.matcher.name} left out: {counted}"
        best = first
        for every in (False, False, True):
            before = len(second.tried)
            matched, again = second.match(best.left_out if best.models else left_out, every)
            if len(second.tried) > before:
                mapped = MappedPhotos(self._with_parallax(matched), again, [], first.matcher, sources, (note,))
                best = _better(best, self._tried(mapped))
            if best.models and not best.left_out:
                break
        best = self.finished(best if best.models else self._drafted(first))
        if self.known or len(best.placed) > 2:
            return best
        alone = self.mapped(matcher)  # the scene of a pair is made of the features of one matcher
        return alone if alone.matched.verified.geometry else self.finished(self._drafted(first))

    def _weakly_tied(self, matched: MatchedPhotos) -> list[int]:
        """The photos that the mapper would hardly place, of many photos that are well tied otherwise."""
        if self.known or len(self.paths) <= FEW or matched.cameras.rigs.mounts:
            return []
        weak = weakly_tied(matched.verified, len(matched.photos), matched.duplicates)
        return weak if len(weak) <= WEAK_UP_TO * len(self.paths) else []

    def _described(self, first: MappedPhotos, matcher: Matcher) -> Sequence[ImageFeatures]:
        """The features of the first matcher, with the global descriptors that pairs of the other `matcher` need."""
        descriptors = self._descriptors(matcher)
        if descriptors is None:
            return first.images
        with self.run.stage("features"):
            found = extract_features(self.paths, first.matcher, self.cache, descriptors)
        return [replace(image, descriptor=other.descriptor) for image, other in zip(first.images, found)]


def _better(first: MappedPhotos, second: MappedPhotos) -> MappedPhotos:
    """The one that places more photos, or holds more of them firmly."""
    counts = [(len(mapped.placed), -len(mapped.left_out)) for mapped in (first, second)]
    return second if counts[1] > counts[0] else first


def _with_points(models: Sequence[SfmModel]) -> list[SfmModel]:
    return [model for model in models if len(model.points_world)]


def _reconstruct_many(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    matcher: Matcher,
    config: MatchesConfig,
    run: Run,
    cache: WorkFolder,
    descriptors: LoadDescriptors | None,
    known_poses: Mapping[Path, np.ndarray],
    fallback: Callable[[], Matcher] | None,
) -> Scene:
    """The scene of structure from motion, without dense points, or that of the best pair."""
    known = {i: known_poses[path] for i, path in enumerate(paths) if path in known_poses}
    offset = world_offset(np.array([pose[:3, 3] for pose in known.values()]))
    known = {index: subtract_world_offset(pose, offset) for index, pose in known.items()}
    job = ManyPhotos(paths, cameras_of, config, run, cache, descriptors, known)
    try:
        mapped = job.matched(matcher)
    except JobFailed as error:
        turned = isinstance(error, OnlyTurned) and error.photos >= TURNED_SHARE * len(paths)
        if fallback is None or turned:
            raise  # another matcher sees no more, and on walls that repeat it sees what is not there
        mapped, fallback = job.matched(fallback()), None
    first = mapped.matched
    mapped = job.calibrated(mapped) if fallback is None else job.mapped_again(mapped, fallback)
    mapped = job.consistent(mapped)
    matched, models = mapped.matched, mapped.models
    if known and not models:
        raise JobFailed("no point is seen from two of the known poses; check that --poses are world_from_cam")
    if known or (models and len(models[0].world_from_cam) > 2):
        adjustment, notes = None, [] if offset is None else [LARGE_COORDINATES_NOTE]
        if config.positions is not None:
            with run.stage("positions"):
                given = matched.correspondences, matched.cameras, config.seed
                model, adjustment, told = config.positions.adjust(models[0], *given)
            models, notes = [model, *models[1:]], [*notes, *told]
        if known and config.fixed_poses:
            notes += known_pose_notes(models[0], matched.correspondences, matched.verified, known)
        scene = to_scene(matched, models, mapped.sources, bool(known))
        if not known and matched.cameras.rigs.has_baseline:
            scene = _with_scale_of_rigs(scene, config)
        else:
            scene = _scaled(scene, config, bool(known), matched.correspondences.pixel_size)
        scene = replace(scene, world_offset=offset, adjustment=adjustment, notes=(*scene.notes, *notes))
    else:
        scene = _best_pair_scene(matched, models, mapped.images, mapped.matcher, config, cache, run)
    if config.min_confidence > 0:
        scene = _confident_points(scene, config.min_confidence)
    notes = filter(None, [*mapped.notes, rotation_note(mapped.images), *hardly_moved_notes(first, len(mapped.placed))])
    lenses = lens_notes(models[0], matched.correspondences, matched.cameras) if models else ()
    viewpoints = same_viewpoint_notes([view.image for view in scene.views], matched.correspondences)
    scene = replace(scene, notes=(*scene.notes, *notes, *viewpoints, *lenses, *calibration_notes(scene.views)))
    return scene.with_masks(matched.masked)


def to_scene(
    matched: MatchedPhotos, models: Sequence[SfmModel], sources: tuple[Source, ...], world_given: bool
) -> Scene:
    """The scene of the largest of `models`. The world becomes the first registered camera, unless it is `world_given`,
    that of the known poses."""
    model, cameras, correspondences = models[0], matched.cameras, matched.correspondences
    registered = sorted(model.world_from_cam)
    scene_from_model = np.eye(4) if world_given else inverse(model.world_from_cam[registered[0]])
    components = connected_components(matched, models)
    views = []
    for index, own in enumerate(matched.own):
        if index not in model.world_from_cam:
            views.append(_unregistered_view(index, matched, components, registered))
            continue
        is_world = index == registered[0] and not world_given
        pose = np.eye(4) if is_world else scene_from_model @ model.world_from_cam[index]
        shared, number, calibration = cameras.of(index), cameras.ids[index], None
        camera = shared.camera if shared.fixed and shared.lens_known else model.cameras[number]
        if number in model.camera_sd:
            focal_before_px = float(np.sqrt(own.K[0, 0] * own.K[1, 1]))
            calibration = Calibration(focal_before_px, *model.camera_sd[number], model.modes[index])
            calibration = calibration.transformed(scene_from_model[:3, :3])
        photo = matched.photos[index]
        views.append(
            View(
                image=matched.names[index],
                width=photo.width,
                height=photo.height,
                K=camera.K,
                focal_source=own.source if shared.fixed else "estimated",
                world_from_cam=pose,
                lens=None if camera.model == "PINHOLE" else camera,
                orientation=photo.orientation,
                calibration=calibration,
            )
        )
    points = transform_points(scene_from_model, model.points_world)
    observations, color_sums, counts = [], np.zeros((len(points), 3)), np.zeros(len(points))
    unobserved = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for index in range(len(views)):
        point, keypoint = model.observations.get(index, unobserved)
        observations.append((point, correspondences.keypoints[index][keypoint]))
        np.add.at(color_sums, point, correspondences.colors[index][keypoint])
        np.add.at(counts, point, 1)
    sparse = SparsePoints(
        points,
        np.rint(color_sums / np.maximum(counts, 1)[:, None]).astype(np.uint8),
        (1 / (1 + (model.errors_px / correspondences.pixel_size) ** 2)).astype(np.float32),
        tuple(observations),
    )
    return Scene(
        method="matches",
        views=tuple(views),
        pairs=tuple(matched.verified.pairs()),
        sparse=sparse,
        scale="arbitrary",
        scale_note=SCALE_OF_POSES if world_given else SCALE_UNKNOWN,
        reprojection_error_px=model.error_px if len(points) else float("nan"),
        parallax_deg=_parallax_deg(points, views, observations),
        sources=sources,
        components=tuple(components) if len(components) > 1 else (),
        world="that of --poses" if world_given else None,
        rigs=matched.cameras.rigs,
    )


def _unregistered_view(
    index: int, matched: MatchedPhotos, components: Sequence[tuple[int, ...]], registered: Sequence[int]
) -> View:
    photo, own = matched.photos[index], matched.own[index]
    return View(
        image=matched.names[index],
        width=photo.width,
        height=photo.height,
        K=own.K,
        focal_source=own.source,
        world_from_cam=NO_POSE,
        lens=None if own.camera.model == "PINHOLE" else own.camera,
        registered=False,
        reason=reason_left_out(index, matched, components, registered),
        orientation=photo.orientation,
    )


def connected_components(matched: MatchedPhotos, models: Sequence[SfmModel]) -> list[tuple[int, ...]]:
    """Groups of two or more photos that connect: those of the models, then the connected components of verified pairs
    that have no photo of a model."""
    components = []
    grouped: set[int] = set()
    for model in models:
        members = tuple(sorted(set(model.world_from_cam) - grouped))
        if len(members) > 1:
            components.append(members)
            grouped |= set(members)
    for component in sorted(map(tuple, matched.verified.components(len(matched.photos)))):
        if len(component) > 1 and not grouped & set(component):
            components.append(component)
    return components


def _parallax_deg(points: np.ndarray, views: Sequence[View], observations: Sequence[Observations]) -> float:
    """Median over the points of the widest angle between their first view and another one, in degrees."""
    first = np.full((len(points), 3), np.nan)
    widest = np.zeros(len(points))
    for view, (index, _) in zip(views, observations):
        rays = view.world_from_cam[:3, 3] - points[index]
        new = np.isnan(first[index, 0])
        first[index[new]] = rays[new]
        np.maximum.at(widest, index, vector_angle(first[index], rays))
    return float(np.degrees(np.median(widest))) if len(points) else 0.0


def _scaled(scene: Scene, config: MatchesConfig, world_given: bool, pixel_size: float) -> Scene:
    if not world_given:
        if config.baseline is None:
            return scale_by_motion(scene, pixel_size)
        return scale_by_baseline(scene, config.baseline, pixel_size)
    if config.baseline is not None:
        raise UserError("--poses and --baseline both set the scale; give one of them")
    return scene


def _with_scale_of_rigs(scene: Scene, config: MatchesConfig) -> Scene:
    if config.baseline is not None:
        raise UserError("--rig and --baseline both set the scale; give one of them")
    return replace(scene, scale_note=SCALE_OF_RIGS)


def _confident_points(scene: Scene, min_confidence: float) -> Scene:
    assert scene.sparse is not None
    keep = scene.sparse.confidence >= min_confidence
    new_index = np.cumsum(keep) - 1
    sparse = replace(
        scene.sparse,
        points_world=scene.sparse.points_world[keep],
        colors=scene.sparse.colors[keep],
        confidence=scene.sparse.confidence[keep],
        observations=tuple((new_index[i[keep[i]]], pixels[keep[i]]) for i, pixels in scene.sparse.observations),
    )
    return replace(scene, sparse=sparse)


def _best_pair_scene(
    matched: MatchedPhotos,
    models: Sequence[SfmModel],
    images: Sequence[ImageFeatures],
    matcher: CacheableMatcher,
    config: MatchesConfig,
    cache: WorkFolder,
    run: Run,
) -> Scene:
    """Two-view fallback where no three photos connect: the scene of the model's pair, or of one with many inliers.

    JobFailed where no pair gives one.
    """
    photos, verified = matched.photos, matched.verified
    ranked = sorted(verified.geometry, key=lambda pair: -verified.counts[pair][1])
    if models:
        pair = tuple(sorted(models[0].world_from_cam))
        ranked = [pair, *(other for other in ranked if other != pair)]
    store = FeatureStore(matcher, cache)
    failures = []
    for pair in ranked[:PAIRS_TO_TRY]:
        decoded = [read_photo(photos[index].path) for index in pair]
        cameras = [matched.own[index] for index in pair]
        matches = matcher.match_features(*(store.load(images[index]) for index in pair))
        if config.masks is not None:
            matches, _ = config.masks.matches_without_masked(matches, [photo.path for photo in decoded])
        baseline = config.baseline if pair == (0, 1) else None
        settings = MatchesConfig(baseline=baseline, seed=config.seed, masks=config.masks, fill=config.fill)
        try:
            scene = reconstruct_matched(decoded, cameras, matches, matcher.source, settings, run)
        except JobFailed as error:
            failures.append(str(error))
            continue
        return _with_unregistered(scene, pair, matched)
    if failures:
        raise JobFailed(f"no three of the {len(photos)} photos connect, and the best pair fails: {failures[0]}")
    if verified.static_matches and not verified.geometry:
        pair = max(verified.static_matches, key=verified.static_matches.__getitem__)
        one, two = (photos[index].path.name for index in pair)
        raise JobFailed(
            f"no two of the {len(photos)} photos agree in more than what lies at the same pixels of both: {one} and "
            f"{two} have {verified.static_matches[pair]} such matches (a caption, a logo, a border or a part of the "
            "mount), which tell nothing of how the camera moved; crop it away, and take photos that overlap by half or "
            "more"
        )
    pair = max(verified.counts, key=verified.counts.__getitem__)
    one, two = (matched.names[index] for index in pair)
    raise JobFailed(
        f"no two of the {len(photos)} photos show enough of the same place: {one} and {two}, the best pair, have "
        f"{match_counts_text(*verified.counts[pair], 'a motion')}; take photos that overlap by half or more, or try "
        "another --matcher"
    )


def _with_unregistered(scene: Scene, pair: tuple[int, int], matched: MatchedPhotos) -> Scene:
    """The scene of a `pair` as one of all photos, the others unregistered."""
    assert scene.sparse is not None
    names = matched.names
    components = [pair, *(group for group in connected_components(matched, []) if not set(group) & set(pair))]
    views, observations = [], []
    for index in range(len(matched.photos)):
        if index in pair:
            views.append(replace(scene.views[pair.index(index)], image=names[index]))
            observations.append(scene.sparse.observations[pair.index(index)])
        else:
            views.append(_unregistered_view(index, matched, components, pair))
            observations.append((np.zeros(0, np.int64), np.zeros((0, 2))))
    return replace(
        scene,
        views=tuple(views),
        pairs=tuple(matched.verified.pairs()),
        sparse=replace(scene.sparse, observations=tuple(observations)),
        components=tuple(components) if len(components) > 1 else (),
        notes=(*scene.notes, f"only two photos could be placed: {names[pair[0]]} and {names[pair[1]]}"),
    )
