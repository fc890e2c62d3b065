"""Where the fit of a body starts: rotations in closed form from the directions between 3-D landmarks.

Trunk and head get the rotation that takes their own frame to that of the landmarks; each limb is swung onto its
direction, and twisted so that elbow or knee bends about its hinge. Without such landmarks the body stands upright.
"""

from __future__ import annotations

import numpy as np

from dune_cli.bodies.fit_targets import TORSO, FitTargets
from dune_cli.bodies.skeleton import FREE_JOINTS, INDEX, LANDMARKS, AnnySkeleton, Offsets
from dune_cli.geometry.poses import rotation_from_rotvec, rotvec_from_rotation

# elbows and knees: the free joint, and the landmarks before, at and after it
HINGES = tuple(
    (f"{joint}.{side[0].upper()}", *(INDEX[f"{side}_{name}"] for name in names))
    for side in ("left", "right")
    for joint, *names in (("lowerarm01", "shoulder", "elbow", "wrist"), ("lowerleg01", "hip", "knee", "ankle"))
)
# limbs: free joints and landmarks from the trunk on; the last two landmarks give the hand's or foot's frame
_LIMBS = (
    (("upperarm01", "lowerarm01", "wrist"), ("shoulder", "elbow", "wrist", "index", "pinky"), "chest"),
    (("upperleg01", "lowerleg01", "foot"), ("hip", "knee", "ankle", "foot_index", "heel"), "root"),
)
UPRIGHT = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # camera axes from reference axes, facing the camera
_STRAIGHT, _BENT = 0.15, 0.45  # sines between which the hinge's frame gains on the smallest turn
_LARGEST_HAND_TURN = 0.8  # radians
_START_DISTANCE_M = 3.0  # where the linear solution is behind the camera


def starts(skeleton: AnnySkeleton, targets: FitTargets, offsets: Offsets) -> list[tuple[np.ndarray, np.ndarray]]:
    """Starts for all people: rotations (P, F, 3, 3) and translations (P, 3). One where 3-D landmarks give the trunk of
    everybody, else four that look ahead, to both sides and away."""
    if targets.points is not None and (targets.point_weights[:, TORSO] > 0).all():
        rotations = [rotations_from_landmarks(skeleton, targets, offsets)]
    else:
        rotations = []
        for turn in (0, 1, 2, 3):
            one = np.tile(np.eye(3), (len(targets), len(FREE_JOINTS), 1, 1))
            one[:, 0] = _rolls(targets) @ rotation_from_rotvec(np.array([0, turn * np.pi / 2, 0])) @ UPRIGHT
            rotations.append(one)
    return [(r, translation(skeleton.forward(r, offsets).landmarks, targets)) for r in rotations]


def hinge_axes(skeleton: AnnySkeleton, offsets: Offsets) -> tuple[np.ndarray, np.ndarray]:
    """Of each of HINGES: the unit axis (P, H, 3), in reference axes, about which it bends the right way, and the least
    angle (P, H) about it, at which the limb is straight."""
    rest = skeleton.forward(np.tile(np.eye(3), (len(offsets.stature), len(FREE_JOINTS), 1, 1)), offsets).landmarks
    axes, least = [], []
    for _, before, at, after in HINGES:
        upper, lower = rest[:, at] - rest[:, before], rest[:, after] - rest[:, at]
        axis = np.cross(upper, lower)
        length = np.linalg.norm(axis, axis=-1)
        axes.append(axis / length[:, None])
        least.append(-np.arcsin(length / np.linalg.norm(upper, axis=-1) / np.linalg.norm(lower, axis=-1)))
    return np.stack(axes, 1), np.stack(least, 1)


def rotations_from_landmarks(skeleton: AnnySkeleton, targets: FitTargets, offsets: Offsets) -> np.ndarray:
    """(P, F, 3, 3): see the module. What a limb's landmarks do not tell stays as at rest."""
    people = len(targets)
    identity = np.tile(np.eye(3), (people, 1, 1))
    rest = skeleton.forward(np.tile(np.eye(3), (people, len(FREE_JOINTS), 1, 1)), offsets).landmarks
    points, seen = targets.points, targets.point_weights > 0
    found = dict.fromkeys(FREE_JOINTS, identity)

    def between(places: np.ndarray, end: str, start: str) -> np.ndarray:
        return places[:, INDEX[end]] - places[:, INDEX[start]]

    def middle(places: np.ndarray, part: str) -> np.ndarray:
        return (places[:, INDEX[f"left_{part}"]] + places[:, INDEX[f"right_{part}"]]) / 2

    def known(*names: str) -> np.ndarray:
        return seen[:, [INDEX[name] for name in names]].all(1)[:, None, None]

    up_rest, up = (middle(places, "shoulder") - middle(places, "hip") for places in (rest, points))
    hips, shoulders = (
        tuple(between(places, f"left_{part}", f"right_{part}") for places in (rest, points))
        for part in ("hip", "shoulder")
    )
    root = _aligned(hips[0], up_rest, hips[1], up)
    chest = _aligned(up_rest, shoulders[0], up, shoulders[1])
    # the hips' own direction is noisy: halfway between it and the trunk's
    root = root @ _power(root.transpose(0, 2, 1) @ chest, 0.5)
    found["root"] = root
    spine = _power(root.transpose(0, 2, 1) @ chest, 1 / 5)
    found |= {name: spine for name in FREE_JOINTS if name.startswith("spine")}

    ears = [between(places, "left_ear", "right_ear") for places in (rest, points)]
    faces = [places[:, INDEX["nose"]] - middle(places, "ear") for places in (rest, points)]
    head = _aligned(ears[0], faces[0], ears[1], faces[1])
    neck = _power(chest.transpose(0, 2, 1) @ head, 1 / 4)
    neck = np.where(known("nose", "left_ear", "right_ear"), neck, identity)
    found |= {name: neck for name in FREE_JOINTS if name.startswith(("neck", "head"))}

    for side in ("left", "right"):
        for joints, parts, base_name in _LIMBS:
            base = chest if base_name == "chest" else root
            a, b, c, tip, other = (f"{side}_{part}" for part in parts)
            upper_rest, upper = between(rest, b, a), between(points, b, a)
            lower_rest, lower = between(rest, c, b), between(points, c, b)
            swung = _swing(_turn(base, upper_rest), upper) @ base
            bend = np.linalg.norm(np.cross(_unit(upper), _unit(lower)), axis=-1)
            share = np.clip((bend - _STRAIGHT) / (_BENT - _STRAIGHT), 0, 1)
            hinged = _aligned(upper_rest, lower_rest, upper, lower)
            first = swung @ _power(swung.transpose(0, 2, 1) @ hinged, np.where(known(a, b, c)[:, 0, 0], share, 0))
            first = np.where(known(a, b), first, base)
            second = np.where(known(b, c), _swing(_turn(first, lower_rest), lower) @ first, first)
            tips_rest = between(rest, tip, c), between(rest, other, c)
            tips = between(points, tip, c), between(points, other, c)
            turn = rotvec_from_rotation(second.transpose(0, 2, 1) @ _aligned(*tips_rest, *tips))
            angle = np.linalg.norm(turn, axis=-1, keepdims=True)
            last = second @ rotation_from_rotvec(turn * np.minimum(1, _LARGEST_HAND_TURN / np.maximum(angle, 1e-9)))
            last = np.where(known(c, tip, other), last, second)
            for name, above, own in zip(joints, (base, first, second), (first, second, last)):
                found[f"{name}.{side[0].upper()}"] = above.transpose(0, 2, 1) @ own
    return np.stack([found[name] for name in FREE_JOINTS], 1)


def translation(landmarks: np.ndarray, targets: FitTargets) -> np.ndarray:
    """(P, 3): linear least squares that put landmarks (P, M, 3) on the rays of their pixels, or on metric points."""
    if targets.pixels is None:
        weights = targets.point_weights[..., None]
        return ((targets.points - landmarks) * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)
    homogeneous = np.concatenate([targets.pixels, np.ones((*targets.pixels.shape[:2], 1))], -1)
    rays = homogeneous @ np.linalg.inv(targets.K).swapaxes(-1, -2)
    rows = np.zeros((len(targets), len(LANDMARKS), 2, 3))
    rows[..., 0, 0] = rows[..., 1, 1] = 1
    rows[..., 2] = -rays[..., :2]
    right = rays[..., :2] * landmarks[..., 2:] - landmarks[..., :2]
    weights = (targets.pixel_weights**2)[..., None, None]
    normal = (rows.swapaxes(-1, -2) @ (rows * weights)).sum(1) + 1e-9 * np.eye(3)
    solved = np.linalg.solve(normal, (rows * weights * right[..., None]).sum((1, 2))[..., None])[..., 0]
    seen = targets.pixel_weights[..., None]
    ahead = (rays * seen).sum(1) / np.maximum(seen.sum(1), 1e-9) * _START_DISTANCE_M
    return np.where(solved[:, 2:] > 0.3, solved, ahead)


def _rolls(targets: FitTargets) -> np.ndarray:
    """(P, 3, 3): turns in the image plane that bring the upright trunk onto the one seen; none where it is not."""
    angle = np.zeros(len(targets))
    if targets.pixels is not None:
        left, right, left_hip, right_hip = (targets.pixels[:, number] for number in TORSO)
        trunk = left + right - left_hip - right_hip
        seen = (targets.pixel_weights[:, TORSO] > 0).all(1) & (np.linalg.norm(trunk, axis=-1) > 1e-6)
        angle = np.where(seen, np.arctan2(trunk[:, 0], -trunk[:, 1]), 0)
    return rotation_from_rotvec(angle[:, None] * np.array([0.0, 0, 1]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Directions; the first axis for vectors without one."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 1e-9, vectors / np.maximum(length, 1e-9), [1.0, 0, 0])


def _turn(rotations: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (rotations @ vectors[..., None])[..., 0]


def _frame(kept: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """(P, 3, 3): axes, the first along `kept`, the third in its plane with `beside`; any where these are parallel."""
    first = _unit(kept)
    normal = np.cross(first, beside)
    spare = np.cross(first, np.where(np.abs(first[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    normal = _unit(np.where(np.linalg.norm(normal, axis=-1, keepdims=True) > 1e-9, normal, spare))
    return np.stack([first, normal, np.cross(first, normal)], -1)


def _aligned(kept: np.ndarray, beside: np.ndarray, kept_to: np.ndarray, beside_to: np.ndarray) -> np.ndarray:
    """(P, 3, 3): takes direction `kept` onto `kept_to`, and `beside` into the plane of that and `beside_to`."""
    return _frame(kept_to, beside_to) @ _frame(kept, beside).transpose(0, 2, 1)


def _swing(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(P, 3, 3): the smallest rotations that take directions (P, 3) onto others."""
    start, end = _unit(start), _unit(end)
    axis, cosine = np.cross(start, end), (start * end).sum(-1, keepdims=True)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    spare = np.cross(start, np.where(np.abs(start[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
    axis = _unit(np.where(sine > 1e-9, axis, spare))
    return rotation_from_rotvec(axis * np.arctan2(sine, cosine))


def _power(rotations: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """(P, 3, 3): a share of each turn."""
    return rotation_from_rotvec(rotvec_from_rotation(rotations) * np.reshape(share, (-1, 1)))
