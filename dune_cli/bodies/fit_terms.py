"""What the fit of a body lowers: residuals of reprojection, directions, positions, pose and shape, with Jacobians.

The parameters of a person are the turns of FREE_JOINTS about their own axes (3 F numbers), FREE_SHAPE, and its place.
A Jacobian's columns are in this order. docs/models/people.md gives the terms and what each is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.fit_start import HINGES
from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.skeleton import (
    ADULT,
    FREE_JOINTS,
    FREE_SHAPE,
    INDEX,
    LANDMARKS,
    AnnySkeleton,
    Offsets,
    PosedLandmarks,
)
from dune_cli.geometry.poses import cross_matrix, rotvec_from_rotation

# Pairs of landmarks whose directions the landmarks in metres give, and what a direction counts for.
BONES = (
    *((("left_shoulder", "right_shoulder"), 1.0), (("left_hip", "right_hip"), 1.0)),
    *((("left_ear", "right_ear"), 0.6), (("left_ear", "nose"), 0.6), (("right_ear", "nose"), 0.6)),
    *(
        ((f"{side}_{start}", f"{side}_{end}"), share)
        for side in ("left", "right")
        for start, end, share in (
            ("shoulder", "hip", 1.0),
            ("shoulder", "elbow", 1.0),
            ("elbow", "wrist", 1.0),
            ("hip", "knee", 1.0),
            ("knee", "ankle", 1.0),
            ("ankle", "foot_index", 1.0),
            ("heel", "foot_index", 1.0),
            ("wrist", "index", 0.4),
            ("wrist", "pinky", 0.4),
        )
    ),
)
# 1 / radians: how much a joint's rotation vector is held to the rest pose
_PRIOR = {
    **{"root": 0.0, "spine": 6.0, "neck": 6.0, "head": 3.0, "clavicle": 8.0, "shoulder01": 8.0, "upperarm01": 0.4},
    **{"lowerarm01": 0.3, "wrist": 2.0, "upperleg01": 0.5, "lowerleg01": 0.2, "foot": 1.5},
}
# radians that a joint may turn away from the rest pose before it costs; the root may turn as it will
_LIMIT = {
    **{"spine": 0.45, "neck": 0.5, "head": 0.8, "clavicle": 0.5, "shoulder01": 0.5, "upperarm01": 2.5},
    **{"lowerarm01": 2.6, "wrist": 1.4, "upperleg01": 2.4, "lowerleg01": 2.6, "foot": 0.9},
}
TURNS = 3 * len(FREE_JOINTS)  # numbers of the rotations
BODY = TURNS + len(FREE_SHAPE)  # with those of the shape; what follows places the body


@dataclass(frozen=True)
class FitConfig:
    """sigma_px: deviation of a landmark, as a share of the body's size in the photo. robust: in such deviations, where
    an outlier's cost levels off. sigma_direction: of a bone's unit direction. sigma_m: of a position in metres. prior,
    limit: weights of the pose prior and the joint limits (1 / radians). sigma_shape: of FREE_SHAPE. iterations,
    tolerance: the fit of a person ends after so many steps, or when one lowers the cost by less than this share.
    """

    sigma_px: float = 0.025
    robust: float = 6.0
    sigma_direction: float = 0.2
    sigma_m: float = 0.02
    prior: float = 1.0
    limit: float = 4.0
    sigma_shape: tuple[float, float, float] = (0.25, 2.0, 0.25)  # the height number follows from the stature
    iterations: int = 30
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        positive = (self.sigma_px, self.robust, self.sigma_direction, self.sigma_m, *self.sigma_shape)
        if min(positive) <= 0 or min(self.prior, self.limit, self.tolerance) < 0 or self.iterations < 1:
            raise ValueError(f"deviations and iterations must be positive, weights not negative: {self}")


@dataclass(frozen=True)
class Term:
    """A group of residuals: cost (P,), values (P, R) and jacobian (P, R, N), of which half the cost's gradient is
    jacobianᵀ values."""

    cost: np.ndarray
    values: np.ndarray
    jacobian: np.ndarray


def _by_joint(table: dict[str, float]) -> np.ndarray:
    """(F,): the value of each of FREE_JOINTS in a table by the beginning of its name."""
    return np.array([next(v for k, v in table.items() if name.startswith(k)) for name in FREE_JOINTS])


_PRIOR_OF_JOINT = _by_joint(_PRIOR)
_LIMIT_OF_JOINT = _by_joint({**_LIMIT, "root": 1e3})


def joint_limits() -> np.ndarray:
    """(F,): radians that each of FREE_JOINTS may turn away from the rest pose before it costs; the root's is large."""
    return _LIMIT_OF_JOINT.copy()


_STARTS = np.array([INDEX[start] for (start, _), _ in BONES])
_ENDS = np.array([INDEX[end] for (_, end), _ in BONES])
_SHARES = np.array([share for _, share in BONES])
_HINGE_SLOTS = np.array([FREE_JOINTS.index(name) for name, *_ in HINGES])


def project_landmarks(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(P, M, 2) px of points (P, M, 3), with depths of at least 1 mm. K: (3, 3), or (P, 3, 3)."""
    image = points @ K.swapaxes(-1, -2)
    return image[..., :2] / np.maximum(image[..., 2:], 1e-3)


def _term(cost: np.ndarray, values: np.ndarray, jacobian: np.ndarray | None) -> Term:
    people = len(cost)
    rows = values.reshape(people, -1)
    return Term(cost, rows, np.zeros((people, 0, 0)) if jacobian is None else jacobian.reshape(*rows.shape, -1))


def landmark_jacobian(skeleton: AnnySkeleton, posed: PosedLandmarks, slopes: list[Offsets], width: int) -> np.ndarray:
    """(P, M, 3, width): the derivatives of the landmarks by the numbers of rotations and shape; 0 beyond these."""
    people = len(posed.landmarks)
    jacobian = np.zeros((people, len(LANDMARKS), 3, width))
    # a small turn d of a free joint, in its own axes, moves what it carries by (G d) x (landmark - joint)
    arms = (posed.landmarks[:, :, None] - posed.joints[:, None]) * skeleton.moves[..., None]
    moved = -cross_matrix(arms) @ posed.rotations[:, None]  # (P, M, F, 3, 3)
    jacobian[..., :TURNS] = moved.transpose(0, 1, 3, 2, 4).reshape(people, len(LANDMARKS), 3, TURNS)
    for number, slope in enumerate(slopes):
        jacobian[..., TURNS + number] = skeleton.place(posed.rotations, slope)[1]
    return jacobian


def reprojection_term(targets: FitTargets, config: FitConfig, points: np.ndarray, jacobian: np.ndarray | None) -> Term:
    K, weights = targets.K, targets.pixel_weights / (config.sigma_px * targets.size_px()[:, None])
    pixels = project_landmarks(points, K)
    residual = (pixels - targets.pixels) * weights[..., None]
    squared, limit = (residual**2).sum(-1), config.robust**2
    robust = limit / (limit + squared)  # of Geman-McClure, so that values and jacobian give the true gradient
    cost = (squared * robust).sum(-1)
    if jacobian is not None:
        depth = np.maximum(points[..., 2], 1e-3)
        K = np.broadcast_to(K, (len(points), 3, 3))[:, None]
        by_point = np.zeros((*points.shape[:2], 2, 3))
        by_point[..., 0, 0], by_point[..., 1, 1] = K[..., 0, 0] / depth, K[..., 1, 1] / depth
        by_point[..., 0, 1] = K[..., 0, 1] / depth
        by_point[..., 2] = -(pixels - K[..., :2, 2]) / depth[..., None]
        jacobian = by_point @ jacobian * (weights * robust)[..., None, None]
    return _term(cost, residual * robust[..., None], jacobian)


def direction_term(targets: FitTargets, config: FitConfig, points: np.ndarray, jacobian: np.ndarray | None) -> Term:
    bones = points[:, _ENDS] - points[:, _STARTS]
    length = np.linalg.norm(bones, axis=-1, keepdims=True)
    unit = bones / length
    wanted = targets.points[:, _ENDS] - targets.points[:, _STARTS]
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=-1, keepdims=True), 1e-9)
    seen = np.minimum(targets.point_weights[:, _ENDS], targets.point_weights[:, _STARTS])
    weights = _SHARES * np.where(seen > 0, 0.3 + 0.7 * seen, 0) / config.sigma_direction
    values = (unit - wanted) * weights[..., None]
    if jacobian is not None:
        across = (np.eye(3) - unit[..., None] * unit[..., None, :]) / length[..., None]
        jacobian = across @ (jacobian[:, _ENDS] - jacobian[:, _STARTS]) * weights[..., None, None]
    return _term((values**2).sum((1, 2)), values, jacobian)


def position_term(targets: FitTargets, config: FitConfig, points: np.ndarray, jacobian: np.ndarray | None) -> Term:
    weights = targets.point_weights[..., None] / config.sigma_m
    values = (points - targets.points) * weights
    return _term((values**2).sum((1, 2)), values, None if jacobian is None else jacobian * weights[..., None])


def _inverse_right_jacobian(rotvec: np.ndarray) -> np.ndarray:
    """(..., 3, 3): d rotvec / d turn for R exp(turn) with R = exp(rotvec) (Solà et al., 2018, equation 144)."""
    angle = np.linalg.norm(rotvec, axis=-1)[..., None, None]
    cross = cross_matrix(rotvec)
    safe = np.clip(angle, 1e-4, 3.1)
    factor = np.where(angle > 1e-4, 1 / safe**2 - (1 + np.cos(safe)) / (2 * safe * np.sin(safe)), 1 / 12)
    return np.eye(3) + cross / 2 + factor * (cross @ cross)


def pose_terms(
    config: FitConfig, hinges: tuple[np.ndarray, np.ndarray], rotations: np.ndarray, width: int | None
) -> list[Term]:
    """The prior, limits of the angle, and elbows and knees, which bend about one axis and not backwards.

    hinges: unit axes (P, H, 3), and the least angle (P, H) about each. width: of the Jacobians; None: without these.
    """
    people = len(rotations)
    rotvec = rotvec_from_rotation(rotations)
    angle = np.linalg.norm(rotvec, axis=-1)
    prior = rotvec * (_PRIOR_OF_JOINT * config.prior)[:, None]
    beyond = np.maximum(angle - _LIMIT_OF_JOINT, 0) * config.limit
    axes, least = hinges
    about = rotvec[:, _HINGE_SLOTS]
    along = (about * axes).sum(-1)
    aside = (about - along[..., None] * axes) * config.limit
    back = np.minimum(along - least, 0) * 2 * config.limit
    values = [prior, beyond, aside, back]
    jacobians: list[np.ndarray | None] = [None] * len(values)
    if width is not None:
        by_turn = _inverse_right_jacobian(rotvec)
        made = [np.zeros((people, *value.shape[1:], width)) for value in values]
        direction = rotvec / np.maximum(angle, 1e-9)[..., None]
        for slot in range(len(FREE_JOINTS)):
            own = slice(3 * slot, 3 * slot + 3)
            made[0][:, slot, :, own] = by_turn[:, slot] * (_PRIOR_OF_JOINT[slot] * config.prior)
            made[1][:, slot, own] = direction[:, slot] * (beyond[:, slot, None] > 0) * config.limit
        for number, slot in enumerate(_HINGE_SLOTS):
            own = slice(3 * slot, 3 * slot + 3)
            axis = axes[:, number]
            flat = np.eye(3) - axis[:, :, None] * axis[:, None]
            made[2][:, number, :, own] = config.limit * flat @ by_turn[:, slot]
            turned = (axis[:, None] @ by_turn[:, slot])[:, 0]
            made[3][:, number, own] = turned * (back[:, number, None] < 0) * 2 * config.limit
        jacobians = list(made)
    return [_term((v**2).reshape(people, -1).sum(1), v, j) for v, j in zip(values, jacobians)]


def shape_term(
    stature: tuple[np.ndarray, np.ndarray],
    config: FitConfig,
    shape: np.ndarray,
    offsets: Offsets,
    slopes: list[Offsets] | None,
    width: int,
) -> Term:
    """The phenotypes about their means, and the standing height about the assumed or given one. stature: mean and
    deviation (P,). width: of the Jacobian, which is left out without `slopes`."""
    mean, deviation = stature
    values = (shape - [ADULT[name] for name in FREE_SHAPE]) / config.sigma_shape
    height = (offsets.stature - mean) / deviation
    values = np.concatenate([values, height[:, None]], 1)
    jacobian = None
    if slopes is not None:
        jacobian = np.zeros((*values.shape, width))
        for number, slope in enumerate(slopes):
            jacobian[:, number, TURNS + number] = 1 / config.sigma_shape[number]
            jacobian[:, -1, TURNS + number] = slope.stature / deviation
    return _term((values**2).sum(1), values, jacobian)
