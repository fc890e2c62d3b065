"""Bodies fitted to the joints of a file, without a network (docs/models/people.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fitting import fit_anny, shape_of_stature
from dune_cli.bodies.found_joints import SEEN, fit_confidence
from dune_cli.bodies.skeleton import INDEX, LANDMARKS
from dune_cli.bodies.statures import assumed_height
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.joint_files import JointSet
from dune_cli.io.photos import Photo
from dune_cli.tasks.human.fitted import BodyFitter
from dune_cli.tasks.human.photo import PhotoPeople, through_lens

MIN_JOINTS = 4  # that a body can be fitted to
_STATURE_SD_M = 0.06  # of a standing height that 3-D joints tell by their bones
# pairs of landmarks whose distance grows with the body
_LENGTHS = tuple(
    (f"{side}_{start}", f"{side}_{end}")
    for side in ("left", "right")
    for start, end in (
        ("shoulder", "hip"),
        ("hip", "knee"),
        ("knee", "ankle"),
        ("shoulder", "elbow"),
        ("elbow", "wrist"),
    )
)


def predict_from_joints(
    fitter: BodyFitter,
    photo: Photo,
    joints: JointSet,
    camera: PhotoCamera | None = None,
    heights: Sequence[float] | None = None,
) -> PhotoPeople:
    """The people of a photo whose joints are known, in the order of the file.

    camera: of the photo; None: 55 degrees across the long side. heights: standing, in metres, one for all or one a
    person; None: assumed, or for 3-D joints told by their bones. People with fewer than MIN_JOINTS joints that the body
    has are left out. UserError where the file's joints are none that the body has.
    """
    if camera is None:
        (camera,) = resolve_cameras([photo], None, None)
    K, lens = camera.K, camera.lens
    in_photo = joints.values
    if lens is not None and not joints.metric:
        joints = _undistorted(joints, lens)
    columns = [number for number, name in enumerate(joints.names) if name in INDEX]
    if len(columns) < MIN_JOINTS:
        raise UserError(
            f"of the joints {', '.join(joints.names[:6])}{', ...' if len(joints.names) > 6 else ''} the body knows "
            f"{len(columns)}, and needs {MIN_JOINTS}; known: {', '.join(LANDMARKS)}"
        )
    known = joints.confidence[:, columns] > 0
    chosen = np.flatnonzero(known.sum(1) >= MIN_JOINTS)
    assumed = None if joints.metric and heights is None else assumed_height(heights)
    if not len(chosen):
        return PhotoPeople(photo, (), K, camera.source, assumed_height=assumed, lens=lens)
    targets, shape = _targets(fitter, joints, chosen, K, heights)
    bodies = fit_anny(fitter.joint_skeleton, targets, shape=shape)
    if lens is not None:
        bodies = replace(bodies, landmarks_px=lens.distort(bodies.landmarks_px))
    confidence = joints.confidence[chosen]
    details = []
    for k, person in enumerate(chosen):
        seen = confidence[k] >= SEEN
        residual = None
        if not joints.metric:
            pairs = [(INDEX[joints.names[c]], c) for c in columns if joints.confidence[person, c] > 0]
            body, own = (np.array(column) for column in zip(*pairs))
            residual = float(np.linalg.norm(bodies.landmarks_px[k, body] - in_photo[person, own], axis=-1).mean())
        details.append(
            {
                "joint_confidence": dict(zip(joints.names, map(float, confidence[k]))),
                "joints_seen": tuple(name for name, one in zip(joints.names, seen) if one),
                "fit_residual_px": residual,
                "fit_confidence": fit_confidence(float(bodies.cost[k]), 1.0),
            }
        )
    scores = confidence[:, columns].mean(1)
    people = tuple(fitter.people(bodies, K, scores, details))
    if lens is not None:
        people = tuple(through_lens(person, lens, fitter.body.surface) for person in people)
    return PhotoPeople(photo, people, K, camera.source, assumed_height=assumed, lens=lens)


def _undistorted(joints: JointSet, lens: Camera) -> JointSet:
    """The joints at the pixels of the pinhole camera `lens.K`; those without such a pixel are not known."""
    pixels = lens.undistort(joints.values)
    known = np.isfinite(pixels).all(-1)
    return replace(joints, values=np.where(known[..., None], pixels, 0.0), confidence=joints.confidence * known)


def _targets(
    fitter: BodyFitter, joints: JointSet, chosen: np.ndarray, K: np.ndarray, heights: Sequence[float] | None
) -> tuple[FitTargets, np.ndarray]:
    """The targets of the people `chosen`, and the shapes to start from."""
    people, axes = len(chosen), joints.values.shape[-1]
    values, weights = np.zeros((people, len(LANDMARKS), axes)), np.zeros((people, len(LANDMARKS)))
    for number, name in enumerate(joints.names):
        if name in INDEX:
            values[:, INDEX[name]] = joints.values[chosen, number]
            weights[:, INDEX[name]] = joints.confidence[chosen, number]
    if heights is not None and len(heights) == len(joints.values):
        heights = [heights[person] for person in chosen]
    stature, deviation, shape = fitter.statures(heights, people)
    if not joints.metric:
        return FitTargets(stature, deviation, K, values, weights), shape
    if heights is None:
        stature, deviation = _statures_of(fitter, values, weights, stature), np.full(people, _STATURE_SD_M)
        shape = shape_of_stature(fitter.joint_skeleton, stature)
    return FitTargets(stature, deviation, points=values, point_weights=weights, metric=True), shape


def _statures_of(fitter: BodyFitter, points: np.ndarray, weights: np.ndarray, assumed: np.ndarray) -> np.ndarray:
    """Standing heights (P,) by the median ratio of the bones known to those of an average adult; `assumed` without."""
    skeleton = fitter.joint_skeleton
    offsets = skeleton.offsets(skeleton.mean_shape[None])
    rest = skeleton.forward(np.eye(3)[None, None].repeat(len(skeleton.free), 1), offsets).landmarks[0]
    start, end = (np.array([INDEX[pair[k]] for pair in _LENGTHS]) for k in (0, 1))
    ratio = np.linalg.norm(points[:, end] - points[:, start], axis=-1) / np.linalg.norm(
        rest[end] - rest[start], axis=-1
    )
    known = (weights[:, start] > 0) & (weights[:, end] > 0)
    told = np.ma.median(np.ma.masked_array(ratio, ~known), axis=1)
    heights = np.where(known.any(1), np.ma.filled(told, 1.0) * offsets.stature[0], assumed)
    return np.clip(heights, 0.5, 2.3)
