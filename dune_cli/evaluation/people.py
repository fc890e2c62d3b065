"""People against labelled joints: `dune eval people`.

Two kinds of sets, each a JSON file (docs/models/people.md, "Evaluation"): joints labelled in photos ("items"), and
joints in 3-D without photos ("sequences"). For the second Anny is fitted to the joints and rendered; the picture's body
is then the truth. A method gives the joints of HINGED in pixels, in 3-D, or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fitting import FittedBodies, fit_anny, shape_of_stature
from dune_cli.bodies.skeleton import INDEX, LANDMARKS
from dune_cli.errors import UserError
from dune_cli.geometry.cameras import K_from_fov, project
from dune_cli.geometry.poses import rotation_from_rotvec
from dune_cli.geometry.sim3 import similarity_from_points
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.joint_files import canonical_name
from dune_cli.io.json_files import Fields, finite_array
from dune_cli.io.meshes import Mesh
from dune_cli.io.photos import Photo, read_photo
from dune_cli.io.rendering import overlay
from dune_cli.io.safe_read import MIB, read_json
from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.tasks.human import BodyFitter, FittedHumanModel, FittedPerson, HumanModel, predict
from dune_cli.tasks.human.model import Person

HINGED = tuple(
    f"{side}_{name}" for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")
)
_OF_ANNY = {
    **{"upperarm01": "shoulder", "lowerarm01": "elbow", "wrist": "wrist"},
    **{"upperleg01": "hip", "lowerleg01": "knee", "foot": "ankle"},
}
TORSO_SHARE, HEAD_SHARE = 0.2, 0.5  # of PCK's two thresholds
MIN_OVERLAP = 0.5  # of the boxes around joints, from which a person counts as found
LIMIT_BYTES = 256 * MIB
LANDMARK_METHOD, MEAN_POSE = "BlazePose, unfitted", "mean pose in the label's box"
BODY_AT_LANDMARKS = "fitted body, at BlazePose's places"
FIT_TO_TRUTH = "Anny fitted to the 3-D joints"
_SIZE, _FOV_DEG, _DISTANCE_M = (640, 480), 55.0, 4.2  # of the pictures of 3-D joints
_SKIN, _GREY = (205, 150, 120), 128
# joints that skeletons of motion capture put elsewhere than a body's
_LOOSE, _LOOSE_WEIGHT = ("head_top", "left_foot_index", "right_foot_index"), 0.3
_TURN_RAD = 2.399963  # the golden angle, so that the pictures' views differ


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and the joints of one person in it: pixels (12, 2) of HINGED, NaN where not labelled; head_px: the length
    from neck to top, NaN where not labelled."""

    path: Path
    pixels: np.ndarray
    head_px: float

    @property
    def torso_px(self) -> float:
        """From the middle of the shoulders to that of the hips, px."""
        middle = [self.pixels[[HINGED.index(f"{s}_{part}") for s in ("left", "right")]].mean(0) for part in _TORSO]
        return float(np.linalg.norm(middle[0] - middle[1]))


_TORSO = ("shoulder", "hip")


@dataclass(frozen=True)
class LabelledPose:
    """Joints of one person in 3-D, in metres, x right, y down, z away: names and points (J, 3)."""

    name: str
    names: tuple[str, ...]
    points: np.ndarray


@dataclass(frozen=True)
class JointSetFile:
    """A set: its name, and photos or poses. complete: every person of the photos is labelled."""

    name: str
    path: Path
    photos: tuple[LabelledPhoto, ...]
    poses: tuple[LabelledPose, ...]
    complete: bool


@dataclass(frozen=True)
class LabelledPhotoScore:
    """A method on joints labelled in photos. found: the share of labelled people; precision: of the people it finds,
    None where others than those labelled are in the photos. pck_torso, pck_head: over all labelled joints, those of
    people not found count as wrong; pck_found: as pck_torso, of people found by all methods."""

    set: str
    method: str
    people: int
    found: float
    precision: float | None
    pck_torso: float | None
    pck_head: float | None
    pck_found: float | None


@dataclass(frozen=True)
class LabelledPoseScore:
    """A method on rendered poses. Errors in mm over the people found: mpjpe_mm after moving the hips' middle onto the
    true one, pa_mpjpe_mm after the best similarity, pve_mm of vertices as mpjpe_mm; None where it has none, or found
    nobody."""

    set: str
    method: str
    people: int
    found: float
    mpjpe_mm: float | None
    pa_mpjpe_mm: float | None
    pve_mm: float | None


def read_sets(root: Path, names: Sequence[str] = ()) -> list[JointSetFile]:
    """The sets of a folder, or those of `names`. UserError for a folder without, and for damaged ones."""
    found = {path.stem: path for path in sorted(root.glob("*.json"))}
    unknown = [name for name in names if name not in found]
    if unknown or not found:
        wrong = f"has no set {unknown[0]}" if unknown else "has no sets of labelled joints (*.json)"
        raise UserError(f"{root} {wrong}; it has: {', '.join(found) or 'nothing'}")
    return [_read_set(found[name]) for name in (names or found)]


def _read_set(path: Path) -> JointSetFile:
    fields = Fields(read_json(path, "labelled joints", LIMIT_BYTES), str(path))
    name, complete = fields.text("set", path.stem), fields.flag("all_people_labelled", False)
    if "items" in fields:
        joints = [canonical_name(str(joint)) for joint in fields.items_of("joints")]
        photos = tuple(_read_item(item, joints, path.parent) for item in fields.objects("items"))
        return JointSetFile(name, path, photos, (), complete)
    if "sequences" in fields:
        poses = tuple(pose for one in fields.objects("sequences") for pose in _read_sequence(one))
        return JointSetFile(name, path, (), poses, complete)
    raise UserError(f"{path} has neither 'items' (photos) nor 'sequences' (3-D joints); see docs/models/people.md")


def _read_item(item: Fields, joints: Sequence[str], folder: Path) -> LabelledPhoto:
    xy, seen = item.array("xy", (len(joints), 2)), item.array("visible", (len(joints),)) > 0
    places = {name: place for name, place, one in zip(joints, xy, seen) if one}
    nothing = np.full(2, np.nan)
    image = folder / item.text("image")
    beside = folder.parent / item.text("image")  # paths are relative to the folder of sets, or to its parent
    neck, top = places.get("neck", nothing), places.get("head_top", nothing)
    return LabelledPhoto(
        image if image.is_file() else beside,
        np.array([places.get(name, nothing) for name in HINGED]),
        float(np.linalg.norm(neck - top)),
    )


def _read_sequence(sequence: Fields) -> Iterator[LabelledPose]:
    joints = tuple(canonical_name(str(joint)) for joint in sequence.items_of("joints"))
    frames = finite_array(sequence.items_of("xyz_mm"), (None, len(joints), 3), f"{sequence.where}: xyz_mm")
    for number, frame in enumerate(frames):
        yield LabelledPose(f"{sequence.text('file')} {number}", joints, frame / 1000 * [1, -1, -1])


# --- methods ---


@dataclass(frozen=True)
class MethodPeople:
    """What a method found in a picture: pixels (P, 12, 2) of HINGED, and in 3-D points (P, 12, 3) in metres and
    vertices (P, V, 3) of Anny's rig "light", each None where it gives none."""

    pixels: np.ndarray
    points: np.ndarray | None = None
    vertices: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)


Methods = Callable[[np.ndarray, Path, np.ndarray | None], dict[str, MethodPeople]]


def run_model(model: HumanModel | FittedHumanModel, name: str) -> Methods:
    """The methods of a model for a picture (H, W, 3), its path and its camera: the body's own joints, and of fitted
    bodies also their landmarks and the joints that they were fitted to."""

    def run(rgb: np.ndarray, path: Path, K: np.ndarray | None) -> dict[str, MethodPeople]:
        photo = Photo(path, rgb, "", None)
        if not isinstance(model, FittedHumanModel):
            known = None if K is None else PhotoCamera.of_matrix(K, "given", photo.width, photo.height)
            found = predict(model, photo, known)
            same_mesh = getattr(model.body, "rig", "") == "light"
            return {name: _bodies(found.people, model.body.joint_names, with_vertices=same_mesh)}
        size = (photo.width, photo.height)
        camera = K_from_fov(_FOV_DEG, *size) if K is None else K
        joints = model.find_in_photo(rgb)
        people = model.fit(joints, camera, size)
        columns = [BLAZEPOSE_NAMES.index(joint) for joint in HINGED]
        shown = np.array([_landmarks_px(person) for person in people]).reshape(-1, len(HINGED), 2)
        return {
            LANDMARK_METHOD: MethodPeople(joints.pixels[:, columns], joints.world[:, columns]),
            BODY_AT_LANDMARKS: MethodPeople(shown),
            name: _bodies(people, model.body.joint_names, with_vertices=True),
        }

    return run


def _landmarks_px(person: FittedPerson) -> np.ndarray:
    return person.landmarks2d[[INDEX[name] for name in HINGED]]


def _bodies(people: Sequence[Person], names: Sequence[str], with_vertices: bool = False) -> MethodPeople:
    columns = _hinged_columns(names)

    def stacked(values: list[torch.Tensor], *size: int) -> np.ndarray:
        return np.array([value.double().numpy() for value in values]).reshape(-1, *size)

    pixels = stacked([person.joints2d[columns] for person in people], len(HINGED), 2)
    points = stacked([person.joints3d[columns] for person in people], len(HINGED), 3)
    vertices = np.array([person.vertices.double().numpy() for person in people]) if with_vertices and people else None
    return MethodPeople(pixels, points, vertices)


def _hinged_columns(names: Sequence[str]) -> list[int]:
    """Where HINGED are among the joints of a body, Anny or SMPL-X."""

    def word(name: str) -> str:
        bone, dot, side = name.partition(".")
        return f"{'left' if side == 'L' else 'right'}_{_OF_ANNY.get(bone, bone)}" if dot else name

    known = {word(name): number for number, name in reversed(list(enumerate(names)))}
    return [known[name] for name in HINGED]


# --- photos ---


def score_photos(labels: JointSetFile, models: Mapping[str, Methods]) -> Iterator[tuple[LabelledPhoto, dict]]:
    """Of each photo: the joints (12, 2) px that each method gives of the labelled person (None if not found) and the
    number of people that it found."""
    for photo in labels.photos:
        picture = read_photo(photo.path)
        found = {}
        for run in models.values():
            for name, people in run(picture.rgb, photo.path, None).items():
                found[name] = (_matched(photo, people.pixels), len(people))
        yield photo, found


def _matched(photo: LabelledPhoto, pixels: np.ndarray) -> np.ndarray | None:
    """The joints of the person who fits the label best, if their boxes overlap enough."""
    seen = np.isfinite(photo.pixels).all(1)
    if not len(pixels) or not seen.any():
        return None
    apart = np.linalg.norm(np.nan_to_num(pixels[:, seen], nan=1e9) - photo.pixels[seen], axis=-1).mean(1)
    best = pixels[int(np.argmin(apart))]
    seen &= np.isfinite(best).all(1)
    return best if seen.any() and _overlap(best[seen], photo.pixels[seen]) >= MIN_OVERLAP else None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of the boxes around points (N, 2)."""
    low = np.array([np.nanmin(one, 0), np.nanmin(other, 0)])
    high = np.array([np.nanmax(one, 0), np.nanmax(other, 0)])
    inner = np.prod(np.clip(high.min(0) - low.max(0), 0, None))
    total = np.prod(high - low, axis=1).sum() - inner
    return float(inner / total) if total > 0 else 0.0


def total_photos(labels: JointSetFile, scored: Sequence[tuple[LabelledPhoto, dict]]) -> list[LabelledPhotoScore]:
    """The rows of the table: the control first."""
    methods = list(scored[0][1]) if scored else []
    means = _mean_poses([photo for photo, _ in scored])
    rows = {MEAN_POSE: [(mean, 1) for mean in means]}
    rows |= {name: [found[name] for _, found in scored] for name in methods}
    by_all = [all(rows[name][k][0] is not None for name in methods) for k in range(len(scored))]
    scores = []
    for name, found in rows.items():
        torso, head, common = [], [], []
        for (photo, _), (pixels, _), everybody in zip(scored, found, by_all):
            seen = np.isfinite(photo.pixels).all(1)
            apart = np.full(len(HINGED), np.inf) if pixels is None else np.linalg.norm(pixels - photo.pixels, axis=1)
            if np.isfinite(photo.torso_px):
                right = apart[seen] < TORSO_SHARE * photo.torso_px
                torso.append(right)
                if everybody:
                    common.append(right)
            if np.isfinite(photo.head_px):
                head.append(apart[seen] < HEAD_SHARE * photo.head_px)
        matched = sum(pixels is not None for pixels, _ in found)
        count = sum(number for _, number in found)
        with_people = name != MEAN_POSE
        scores.append(
            LabelledPhotoScore(
                labels.name,
                name,
                len(scored),
                matched / max(len(scored), 1) if with_people else 1.0,
                matched / max(count, 1) if labels.complete and with_people else None,
                _mean(torso),
                _mean(head),
                _mean(common),
            )
        )
    return scores


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    return float(np.concatenate(parts).mean()) if parts else None


def _mean_poses(photos: Sequence[LabelledPhoto]) -> list[np.ndarray]:
    """Of each photo the mean of the other photos' joints in their boxes, placed in its own box: (12, 2) px."""
    boxes = [(np.nanmin(photo.pixels, 0), np.nanmax(photo.pixels, 0)) for photo in photos]
    shares = np.array([(p.pixels - low) / np.maximum(high - low, 1) for p, (low, high) in zip(photos, boxes)])
    known = np.isfinite(shares)
    total, count = np.where(known, shares, 0).sum(0), known.sum(0)
    return [
        low + (total - np.where(known[k], shares[k], 0)) / np.maximum(count - known[k], 1) * (high - low)
        for k, (low, high) in enumerate(boxes)
    ]


# --- poses ---


@dataclass(frozen=True)
class RenderedPose:
    """A picture of a body in a labelled pose: rgb (H, W, 3), K (3, 3), points (12, 3) of HINGED and vertices (V, 3) in
    metres; residual_mm: distances of its joints from the labelled ones, and after the best similarity."""

    rgb: np.ndarray
    K: np.ndarray
    points: np.ndarray
    vertices: np.ndarray
    residual_mm: tuple[float, float]


def render(fitter: BodyFitter, pose: LabelledPose, number: int) -> RenderedPose:
    """Anny in the labelled pose, turned by `number` golden angles, in front of grey."""
    names = [name for name in pose.names if name in (*HINGED, *_LOOSE)]
    points, weights = np.zeros((1, len(LANDMARKS), 3)), np.zeros((1, len(LANDMARKS)))
    turn = rotation_from_rotvec(np.array([0, number * _TURN_RAD, 0]))
    for name in names:
        points[0, INDEX[name]] = turn @ pose.points[pose.names.index(name)]
        weights[0, INDEX[name]] = 1 if name in HINGED else _LOOSE_WEIGHT
    own = [INDEX[name] for name in names]
    points[0, own] += [0, 0, _DISTANCE_M] - (points[0, own].min(0) + points[0, own].max(0)) / 2
    stature = np.array([1.70])
    targets = FitTargets(stature, np.full(1, 0.2), points=points, point_weights=weights, metric=True)
    fitted = fit_anny(fitter.joint_skeleton, targets, shape=shape_of_stature(fitter.joint_skeleton, stature))
    vertices, joints = _surface(fitter, fitted)
    hinged = joints[_hinged_columns(fitter.body.joint_names)]
    labelled = points[0, [INDEX[name] for name in HINGED]]
    K = K_from_fov(_FOV_DEG, *_SIZE)
    surface = fitter.body.surface.numpy()
    faces = fitter.body.surface_faces().numpy()
    colours = np.full((len(surface), 3), _SKIN, np.uint8)
    background = np.full((_SIZE[1], _SIZE[0], 3), _GREY, np.uint8)
    rgb = overlay(background, [Mesh(vertices[surface], faces, colours)], K, 1.0)
    residual = np.linalg.norm(hinged - labelled, axis=1).mean(), _aligned_error(hinged, labelled)
    return RenderedPose(rgb, K, hinged, vertices, (float(residual[0] * 1000), float(residual[1] * 1000)))


def _surface(fitter: BodyFitter, fitted: FittedBodies) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        posed = fitter.pose(torch.from_numpy(fitted.rotations).float(), torch.from_numpy(fitted.shape).float())
    move = fitted.translation[0]
    return posed.vertices[0].double().numpy() + move, posed.joints[0].double().numpy() + move


def score_poses(
    labels: JointSetFile, fitter: BodyFitter, models: Mapping[str, Methods], limit: int | None = None
) -> Iterator[tuple[RenderedPose, dict[str, tuple[np.ndarray, np.ndarray | None] | None]]]:
    """Of each pose (`limit` of them, evenly spaced): its picture, and the joints and vertices that each method gives of
    the body in it; None where it finds none."""
    for number in spaced(len(labels.poses), limit):
        picture = render(fitter, labels.poses[number], number)
        true_px = project(picture.points, picture.K)
        found = {}
        for run in models.values():
            for name, people in run(picture.rgb, Path("rendered"), picture.K).items():
                if people.points is None:
                    continue
                label = LabelledPhoto(Path("rendered"), true_px, np.nan)
                matched = _matched(label, people.pixels)
                found[name] = None
                if matched is not None:
                    k = next(
                        k for k, pixels in enumerate(people.pixels) if pixels is matched or (pixels == matched).all()
                    )
                    found[name] = people.points[k], None if people.vertices is None else people.vertices[k]
        yield picture, found


def spaced(count: int, limit: int | None) -> list[int]:
    """`limit` of the numbers below `count`, evenly spaced; all without a limit."""
    kept = count if limit is None else min(limit, count)
    return [number * count // kept for number in range(kept)]


def total_poses(labels: JointSetFile, scored: Sequence[tuple[RenderedPose, dict]]) -> list[LabelledPoseScore]:
    """The rows of the table: how the body fits the labels, the control, the methods."""
    fit = np.array([picture.residual_mm for picture, _ in scored]).mean(0)
    scores = [LabelledPoseScore(labels.name, FIT_TO_TRUTH, len(scored), 1.0, float(fit[0]), float(fit[1]), None)]
    centred = np.array([_centred(picture.points) for picture, _ in scored])
    others = [(centred.sum(0) - own) / max(len(centred) - 1, 1) for own in centred]
    rows: dict[str, list] = {MEAN_POSE: [(points, None) for points in others]}
    rows |= {name: [found[name] for _, found in scored] for name in (scored[0][1] if scored else {})}
    for name, found in rows.items():
        joint, aligned, surface = [], [], []
        for (picture, _), one in zip(scored, found):
            if one is None:
                continue
            points, vertices = one
            joint.append(np.linalg.norm(_centred(points) - _centred(picture.points), axis=1).mean())
            aligned.append(_aligned_error(points, picture.points))
            if vertices is not None:
                move = _hips(picture.points) - _hips(points)
                surface.append(np.linalg.norm(vertices + move - picture.vertices, axis=1).mean())
        scores.append(
            LabelledPoseScore(
                labels.name,
                name,
                len(scored),
                len(joint) / max(len(scored), 1),
                *(1000 * float(np.mean(values)) if values else None for values in (joint, aligned, surface)),
            )
        )
    return scores


def _hips(points: np.ndarray) -> np.ndarray:
    return points[[HINGED.index("left_hip"), HINGED.index("right_hip")]].mean(0)


def _centred(points: np.ndarray) -> np.ndarray:
    return points - _hips(points)


def _aligned_error(points: np.ndarray, true: np.ndarray) -> float:
    """Mean distance after the similarity that fits best, metres."""
    true_from_own = similarity_from_points(true, points)
    moved = points @ true_from_own[:3, :3].T + true_from_own[:3, 3]
    return float(np.linalg.norm(moved - true, axis=1).mean())
