"""N photos to a scene by matches: chosen pairs, verified matches, structure from motion. Dense points come later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.fixed_pixels import Thumbnail
from dune_cli.geometry.world_offset import removed, world_offset
from dune_cli.io.photos import PhotoFacts, read_photo
from dune_cli.io.work_folder import WorkFolder
from dune_cli.matchers.base import FeatureMatcher, Matcher, SplitMatcher
from dune_cli.matchers.retrieval import describe_keypoints
from dune_cli.provenance import Run
from dune_cli.tasks.reconstruct import lengths, pairing
from dune_cli.tasks.reconstruct import matches as two_views
from dune_cli.tasks.reconstruct.assemble import assemble
from dune_cli.tasks.reconstruct.calibration_notes import calibration_notes
from dune_cli.tasks.reconstruct.correspondences import Correspondences, match_pairs
from dune_cli.tasks.reconstruct.fallback import two_of_many
from dune_cli.tasks.reconstruct.gallery import Describer, FeatureShelf, Looked, look_at
from dune_cli.tasks.reconstruct.mapping import MappingConfig, map_photos
from dune_cli.tasks.reconstruct.orientation import turn_strays
from dune_cli.tasks.reconstruct.scene import LARGE, Scene
from dune_cli.tasks.reconstruct.turning import find_turned
from dune_cli.tasks.reconstruct.verification import Lens, Verified, verify

Intrinsics = Sequence[tuple[np.ndarray, str]]
SAME_SIZE_SHARE = 0.8  # of photos without a known focal length: then one camera took all of a size


@dataclass(frozen=True)
class ManyConfig:
    """`pairs` auto | retrieval | sequential | all, or a file; `neighbours` of a photo; `mapper` incremental | global.
    `fixed_poses`: known poses stay as they are, else their positions are priors. `baseline` between the first two
    photos in metres, where it is known. `min_confidence` of points in [0, 1]. `ordered`: whether the photos follow one
    another, as a video's frames do. `seed` of every random choice."""

    pairs: str = "auto"
    neighbours: int = pairing.NEIGHBOURS
    mapper: str = "incremental"
    fixed_poses: bool = True
    baseline: float | None = None
    min_confidence: float = 0.0
    ordered: bool = False
    seed: int = 0


def reconstruct(
    paths: Sequence[Path],
    intrinsics_of: Callable[[Sequence[PhotoFacts]], Intrinsics],
    matcher: Matcher,
    config: ManyConfig,
    work: WorkFolder,
    run: Run,
    describer: Describer | None = None,
    known_poses: Mapping[Path, np.ndarray] | None = None,
) -> Scene:
    """The scene of three or more photos, without dense points.

    `intrinsics_of` gives (K, source) of each; `describer` makes the global descriptors where pairs are retrieved
    (without one, keypoints do); `known_poses`: photo -> `world_from_cam` (4, 4), in whose world the scene is, less its
    `world_offset` where coordinates are large. Raises JobFailed where no two photos
    give a scene, UserError for matchers that cannot share their work and pairs that do not fit.
    """
    lengths.check_apart(known_poses or {})
    if not isinstance(matcher, SplitMatcher):
        raise UserError(f"the matcher {matcher.name} compares two photos only; give another --matcher")
    wants = wants_descriptors(len(paths), config)
    with run.stage("look"):
        looks = look_at(paths, matcher, work, describer if wants else None)
    same = _same_photos([look.facts for look in looks])
    own = [index for index in range(len(looks)) if index not in same]
    if len(own) == 1:
        raise JobFailed(f"all {len(looks)} photos are the same picture; take photos from different places")
    facts = [look.facts for look in looks]
    intrinsics = intrinsics_of(facts)
    lenses, lens_of = share_lenses(facts, intrinsics)
    with run.stage("pair"):
        plan = _plan(looks, own, same, matcher, config, work)
    console.note(f"{len(looks)} photos, {len(plan.pairs)} pairs ({plan.way})")
    with run.stage("match"):
        found = match_pairs(looks, plan.pairs, matcher, work)
    scale = _scale(found)
    with run.stage("verify"):
        thumbnails = _Thumbnails(paths)
        verified = verify(found, lenses, lens_of, config.seed, scale, thumbnails.of)
    with run.stage("turn"):
        turned = turn_strays(looks, plan.pairs, verified, same, matcher, work, config.seed)
        told = _told_turns(turned)
        if told:
            looks = turned
            console.note(told)
            found = match_pairs(looks, plan.pairs, matcher, work)
            verified = verify(found, lenses, lens_of, config.seed, scale, thumbnails.of)
    known = {i: known_poses[path] for i, path in enumerate(paths) if known_poses and path in known_poses}
    offset = world_offset(np.array([pose[:3, 3] for pose in known.values()]))
    known = {index: removed(pose, offset) for index, pose in known.items()}
    if not known:
        verified = _without_turned(found, verified, lenses, lens_of, scale)
    with run.stage("map", "mapping"):
        settings = MappingConfig(config.mapper, config.seed, config.fixed_poses)
        enough = len(verified.geometry) > 0 or len(known) > 1
        models = map_photos(found, verified, lenses, lens_of, settings, scale, work.folder, known) if enough else []
    models = [model for model in models if known or len(model.points_world)]
    if known or (models and len(models[0].world_from_cam) > 2):
        if not models:
            raise JobFailed("no point is seen from two of the known poses; check that --poses are world_from_cam")
        scene = assemble(
            facts, intrinsics, lens_of, lenses, found, verified, models, same, matcher.source, scale, bool(known)
        )
        scene = replace(_scaled(scene, config, bool(known), scale), world_offset=offset)
        if offset is not None:
            scene = replace(scene, notes=(*scene.notes, LARGE))
    else:
        pair = two_views.MatchesConfig(baseline=config.baseline, seed=config.seed)
        scene = two_of_many(facts, intrinsics, verified, models, same, matcher, looks, pair, work, run)
    if config.min_confidence > 0:
        scene = _confident(scene, config.min_confidence)
    if told:
        scene = replace(scene, notes=(*scene.notes, told))
    standing = lengths.standing_notes([view.image for view in scene.views], found)
    return replace(scene, notes=(*scene.notes, *standing, *calibration_notes(scene.views)))


class _Thumbnails:
    """Small grey copies of photos, each made when it is first needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._made = paths, dict[int, Thumbnail]()

    def of(self, index: int) -> Thumbnail:
        if index not in self._made:
            self._made[index] = Thumbnail.of(read_photo(self._paths[index]).rgb)
        return self._made[index]


def _told_turns(looks: Sequence[Looked]) -> str:
    """Which photos were matched in turned copies; empty for none."""
    parts = []
    for turns in sorted({look.turns for look in looks} - {0}):
        names = [look.facts.path.name for look in looks if look.turns == turns]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[:3])}{more} were turned clockwise by {90 * turns} degrees to be matched")
    return "; ".join(parts)


def _without_turned(
    found: Correspondences, verified: Verified, lenses: Sequence[Lens], lens_of: Sequence[int], scale: float
) -> Verified:
    """Without the groups of photos whose camera only turned; JobFailed where no other group is left."""
    turned = find_turned(found, verified, lenses, lens_of, scale)
    if not turned.pairs:
        return verified
    rest = {pair: geometry for pair, geometry in verified.geometry.items() if pair not in turned.pairs}
    if not rest:
        photos = len({index for pair in turned.pairs for index in pair})
        raise JobFailed(
            f"the camera only turned between the photos: turning it on the spot explains {turned.explained} of "
            f"{turned.matches} matches of the {photos} photos that hang together, so depth cannot be seen; move it "
            "between photos, a step to the side of about a tenth of the distance"
        )
    return replace(verified, geometry=rest, turned=turned.pairs)


def wants_descriptors(count: int, config: ManyConfig) -> bool:
    """Whether photos are to be compared by global descriptors."""
    return config.pairs == "retrieval" or (config.pairs == "auto" and count > pairing.ALL_UP_TO)


def _plan(
    looks: Sequence[Looked],
    own: Sequence[int],
    same: Mapping[int, int],
    matcher: Matcher,
    config: ManyConfig,
    work: WorkFolder,
) -> pairing.PairPlan:
    """Pairs of the photos that are no copies (`own`); a pair of a user's list that names a copy means the first."""
    paths = [look.facts.path for look in looks]
    if config.pairs not in pairing.WAYS:
        named = [(same.get(i, i), same.get(j, j)) for i, j in pairing.read_pairs(config.pairs, paths)]
        pairs = sorted({(min(pair), max(pair)) for pair in named if pair[0] != pair[1]})
        return pairing.PairPlan(pairs, f"from {config.pairs}")
    plan = pairing.plan(
        config.pairs,
        [paths[index] for index in own],
        config.neighbours,
        config.ordered,
        lambda: _descriptors([looks[index] for index in own], matcher, work, config.seed),
    )
    return pairing.PairPlan([(own[i], own[j]) for i, j in plan.pairs], plan.way)


def _descriptors(looks: Sequence[Looked], matcher: Matcher, work: WorkFolder, seed: int) -> np.ndarray:
    rows = [look.descriptor for look in looks if look.descriptor is not None]
    if len(rows) == len(looks):
        return np.stack(rows)
    if not isinstance(matcher, FeatureMatcher):
        raise UserError(
            f"{len(looks)} photos need an encoder to choose pairs, and the matcher {matcher.name} has no keypoints to "
            "do it with; name one with --retrieval-model, or give --pairs sequential, all or a file"
        )
    shelf = FeatureShelf(matcher, work)
    return describe_keypoints(len(looks), lambda i: shelf.descriptors(looks[i]), seed)


def share_lenses(facts: Sequence[PhotoFacts], intrinsics: Intrinsics) -> tuple[list[Lens], list[int]]:
    """The cameras, and which of them took each photo: one for photos of the same size and the same given or EXIF
    intrinsics. Of unknown focal length, photos of a size share a camera where most photos have one size (a video, one
    camera's folder), and else each has its own (pictures of many people)."""
    sizes = [(photo.width, photo.height) for photo in facts]
    most = max(sizes.count(size) for size in set(sizes)) / len(sizes)
    lenses: list[Lens] = []
    place: dict[tuple[object, ...], int] = {}
    lens_of = []
    for index, (photo, (K, source)) in enumerate(zip(facts, intrinsics)):
        key: tuple[object, ...] = (photo.width, photo.height, source, tuple(K.ravel().tolist()))
        if source == "default" and most < SAME_SIZE_SHARE:
            key = (index,)
        if key not in place:
            place[key] = len(lenses)
            lenses.append(Lens(photo.width, photo.height, K, source == "given", source == "exif"))
        lens_of.append(place[key])
    return lenses, lens_of


def _same_photos(facts: Sequence[PhotoFacts]) -> dict[int, int]:
    """Photos whose file is that of an earlier one -> that one."""
    first: dict[str, int] = {}
    return {i: first[photo.sha256] for i, photo in enumerate(facts) if first.setdefault(photo.sha256, i) != i}


def _scale(found: Correspondences) -> float:
    """Pixels of a photo per matched pixel, at least 1: what errors are measured in."""
    used = sorted({index for pair in found.matches for index in pair})
    return max(1.0, float(np.median([found.pixel_sizes[index] for index in used]))) if used else 1.0


def _scaled(scene: Scene, config: ManyConfig, poses_given: bool, pixel_size: float) -> Scene:
    if poses_given:
        if config.baseline is not None:
            raise UserError("--poses and --baseline both say how long things are; give one of them")
        return scene
    if config.baseline is None:
        return lengths.by_motion(scene, pixel_size)
    return lengths.by_baseline(scene, config.baseline, pixel_size)


def _confident(scene: Scene, minimum: float) -> Scene:
    assert scene.sparse is not None
    keep = scene.sparse.confidence >= minimum
    place = np.cumsum(keep) - 1
    observations = tuple((place[i[keep[i]]], pixels[keep[i]]) for i, pixels in scene.sparse.observations)
    sparse = replace(
        scene.sparse,
        points_world=scene.sparse.points_world[keep],
        colors=scene.sparse.colors[keep],
        confidence=scene.sparse.confidence[keep],
        observations=observations,
    )
    return replace(scene, sparse=sparse)
