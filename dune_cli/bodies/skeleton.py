"""Anny's skeleton without its skin: the places of landmarks as functions of pose and shape, with their derivatives.

In the rig "light" every joint has axes at a reference pose that all shapes share (x to the body's left, y to its back,
z up). With G the world rotation of a joint in these axes, the chain is plain: G_child = G_parent R_child and
p_child = p_parent + G_parent o_child(shape). Joints that the fit does not turn are folded into the offsets.
Geometry in float64. `Anny.forward` gives the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from dune_cli.bodies.anny import Anny, corner_weights
from dune_cli.bodies.kinematics import nearest_rotation

SIDES = (("left", "L"), ("right", "R"))
# joints that the fit turns, parents first
FREE_JOINTS = (
    *("root", "spine05", "spine04", "spine03", "spine02", "spine01", "neck01", "neck02", "neck03", "head"),
    *(
        f"{name}.{side}"
        for _, side in SIDES
        for name in ("clavicle", "shoulder01", "upperarm01", "lowerarm01", "wrist", "upperleg01", "lowerleg01", "foot")
    ),
)
FREE_SHAPE = ("gender", "height", "proportions")  # phenotypes that the fit changes
ADULT = {"gender": 0.5, "age": 2 / 3, "muscle": 0.5, "weight": 0.5, "height": 0.4, "proportions": 0.5}

# A landmark that is a joint of the body, and where BlazePose puts it: centimetres from the joint, in the axes of the
# joint's parent, on the body's left side. One that is a point of the surface is found on the resting body. Measured on
# renderings of Anny (docs/models/people.md, "Where the landmarks lie").
_JOINTS = {
    "eye": ("eye", (-0.3, -0.0, -0.5)),
    "shoulder": ("upperarm01", (-1.9, -0.2, 2.6)),
    "elbow": ("lowerarm01", (-2.2, -2.2, 1.6)),
    "wrist": ("wrist", (-0.8, -1.7, -1.3)),
    "pinky": ("finger5-1", (-1.9, -0.8, 1.1)),
    "index": ("finger2-1", (0.1, 2.5, -0.8)),
    "thumb": ("finger1-2", (2.9, 0.9, -2.0)),
    "hip": ("upperleg01", (-1.6, -2.7, -0.2)),
    "knee": ("lowerleg01", (-0.5, 0.0, -0.9)),
    "ankle": ("foot", (0.2, -1.6, 2.9)),
}
_SURFACE = {
    "ear": ("head", (-3.4, -3.6, -1.2)),
    "heel": ("foot", (-0.6, -3.4, 1.0)),
    "foot_index": ("foot", (3.1, 5.0, 0.6)),
}
_MIDDLE = {"nose": ("head", (0.0, 1.3, 0.3)), "head_top": ("head", (0.0, 0.0, 0.0))}
LANDMARKS = (
    *_MIDDLE,
    *(f"{side}_{name}" for name in (*_JOINTS, *_SURFACE) for side, _ in SIDES),
)
INDEX = {name: number for number, name in enumerate(LANDMARKS)}


@dataclass(frozen=True)
class Offsets:
    """What depends on the shapes of P bodies, in metres and in each carrying joint's reference axes.

    joints (P, F, 3): each free joint from its nearest free ancestor. landmarks (P, M, 3): each landmark from its
    carrier. root_rest (P, 3, 3): the root's axes at rest. stature (P,): from the soles to the top of the head.
    """

    joints: np.ndarray
    landmarks: np.ndarray
    root_rest: np.ndarray
    stature: np.ndarray


@dataclass(frozen=True)
class PosedLandmarks:
    """P bodies, root at the origin: landmarks (P, M, 3), free joints (P, F, 3), their world rotations (P, F, 3, 3)."""

    landmarks: np.ndarray
    joints: np.ndarray
    rotations: np.ndarray


class AnnySkeleton:
    """LANDMARKS of a body of the rig "light". `shifted`: where BlazePose puts them, else at the body's own joints."""

    def __init__(self, body: Anny, shifted: bool = True) -> None:
        if body.rig != "light":
            raise ValueError(f"the skeleton is that of Anny's rig 'light', received {body.rig!r}")
        self.body = body
        self.free = [body.joint_names.index(name) for name in FREE_JOINTS]
        self.shape_columns = [body.shape_names.index(name) for name in FREE_SHAPE]
        self.mean_shape = np.array([ADULT[name] for name in body.shape_names])
        self._coefficients = body.coefficients.double()
        self._reference = body.reference.double()

        places, vertices = self._surface_points()
        joints, carriers, self._shift = [], [], np.zeros((len(LANDMARKS), 3))
        for number, name in enumerate(LANDMARKS):
            side, _, part = name.partition("_")
            bone, shift = _MIDDLE.get(name) or (_JOINTS | _SURFACE)[part]
            bone += f".{side[0].upper()}" if name not in _MIDDLE and bone != "head" else ""
            joint = body.joint_names.index(bone)
            joints.append(joint)
            carriers.append(joint if name in places else body.parents[joint])
            if shifted:
                self._shift[number] = np.array(shift) / 100 * ([-1, 1, 1] if side == "right" else [1, 1, 1])
        self._ends = joints  # the joint that a landmark is, or that carries its vertex
        self._on_surface = [LANDMARKS.index(name) for name in places]
        self.carrier = np.array([self._slot(joint) for joint in carriers])  # free joint that moves each landmark
        self.parent = np.array([-1, *(self._slot(body.parents[joint]) for joint in self.free[1:])])
        self.moves = np.zeros((len(LANDMARKS), len(self.free)), bool)  # whether a free joint moves a landmark
        for number, slot in enumerate(self.carrier):
            while slot >= 0:
                self.moves[number, slot] = True
                slot = self.parent[slot]
        self._keep_bases(vertices)

    def _slot(self, joint: int) -> int:
        """The nearest free joint from `joint` on upwards, as its place in `free`."""
        while joint not in self.free:
            joint = self.body.parents[joint]
        return self.free.index(joint)

    def _surface_points(self) -> tuple[dict[str, int], list[int]]:
        """Vertices of the landmarks on the surface, by name; and all that are kept: these, the top, the sole."""
        body = self.body
        with torch.no_grad():
            shape = torch.tensor(self.mean_shape, dtype=torch.float32)[None]
            rest = body(body.rest_rotations(), shape)  # x to its left, y down, z away from where it looks
        v = rest.vertices[0].double().numpy()
        used = np.zeros(len(v), bool)
        used[body.surface.numpy()] = True
        eye = rest.joints[0, body.joint_names.index("eye.L")].double().numpy()
        head = used & (body.weights[:, body.head].numpy() > 0.9)
        low = v[used, 1].max()

        def extreme(among: np.ndarray, value: np.ndarray) -> int:
            """The vertex of the smallest value."""
            return int(np.flatnonzero(among)[np.argmin(value[among])])

        near_nose = head & (np.abs(v[:, 0]) < 0.01) & (np.abs(v[:, 1] - eye[1] - 0.045) < 0.03)
        found = {"nose": extreme(near_nose, v[:, 2]), "head_top": extreme(head, v[:, 1])}
        for side, sign in (("left", -1), ("right", 1)):
            half = used & (sign * v[:, 0] < 0)
            found[f"{side}_ear"] = extreme(head & (np.abs(v[:, 1] - eye[1] - 0.02) < 0.02), sign * v[:, 0])
            found[f"{side}_heel"] = extreme(half & (v[:, 1] > low - 0.04), -v[:, 2])
            found[f"{side}_foot_index"] = extreme(half & (v[:, 1] > low - 0.06), v[:, 2])
        found = {name: found[name] for name in LANDMARKS if name in found}
        return found, [*found.values(), extreme(used, -v[:, 1])]

    def _keep_bases(self, vertices: list[int]) -> None:
        """The linear parts of the body that the landmarks need, in float64."""
        body, parents = self.body, self.body.parents
        chain: set[int] = set()
        for joint in (*self._ends, *self.free):
            while joint >= 0:
                chain.add(joint)
                joint = parents[joint]
        self._chain = sorted(chain)
        self._place = {joint: number for number, joint in enumerate(self._chain)}
        self.reference = self._reference[self._chain]  # (C, 3, 3): axes of the chain's joints
        self._above = [self._chain.index(max(parents[joint], 0)) for joint in self._chain]

        # sums of steps from the carrying free joint on: (F, C) to free joints, (M, C) to landmarks or their carriers
        self._steps_to_joints = np.stack([np.zeros(len(self._chain)), *map(self._steps_to, self.free[1:])])
        on_free = [number in self._on_surface and end in self.free for number, end in enumerate(self._ends)]
        self._steps_to_landmarks = np.stack([self._steps_to(e) * (not f) for e, f in zip(self._ends, on_free)])
        self._ends_on_surface = [self._place[self._ends[number]] for number in self._on_surface]

        def rows(name: str, kept: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            template, basis = body.get_buffer(f"{name}_template"), body.get_buffer(f"{name}_basis")
            return template[kept].double(), basis.unflatten(-1, template.shape)[:, kept].double()

        self._vertex, self._joint = rows("vertex", vertices), rows("joint", self._chain)
        self._correlation = rows("correlation", self._chain)

    def _steps_to(self, joint: int) -> np.ndarray:
        """(C,): 1 for each joint of the chain from below the nearest free ancestor of `joint` down to `joint`."""
        marked = np.zeros(len(self._chain))
        marked[self._place[joint]] = 1
        joint = self.body.parents[joint]
        while joint not in self.free:
            marked[self._place[joint]] = 1
            joint = self.body.parents[joint]
        return marked

    def family(self, shape: np.ndarray) -> ShapeFamily:
        """The bodies of shapes (P, 6) with any values of FREE_SHAPE."""
        corners = []
        for corner in product((0.0, 1.0), repeat=len(FREE_SHAPE)):
            at = np.array(shape, np.float64)
            at[:, self.shape_columns] = corner
            corners.append(corner_weights(torch.from_numpy(at)) @ self._coefficients)
        coefficients = torch.stack(corners, 1)  # (P, 8, R)

        def linear(part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            template, basis = part
            return template + torch.tensordot(coefficients, basis, 1)

        return ShapeFamily(self, linear(self._vertex), linear(self._joint), linear(self._correlation))

    def offsets(self, shape: np.ndarray) -> Offsets:
        """Of shapes (P, 6)."""
        return self.family(shape).offsets(np.asarray(shape)[:, self.shape_columns])

    def assemble(
        self,
        vertices: torch.Tensor,
        joints: torch.Tensor,
        axes: torch.Tensor,
        root_rest: torch.Tensor,
        shifted: bool,
    ) -> Offsets:
        """Steps between the places given, turned by `axes` (P, C, 3, 3). `shifted`: the landmarks' shift is added."""
        step = (axes[:, self._above] @ (joints - joints[:, self._above])[..., None])[..., 0].numpy()
        landmarks = self._steps_to_landmarks @ step
        ends = self._ends_on_surface
        from_end = (axes[:, ends] @ (vertices[:, : len(ends)] - joints[:, ends])[..., None])[..., 0].numpy()
        landmarks[:, self._on_surface] += from_end
        if shifted:
            landmarks += self._shift
        top, sole = self._on_surface.index(INDEX["head_top"]), vertices.shape[1] - 1
        return Offsets(
            self._steps_to_joints @ step,
            landmarks,
            root_rest.numpy(),
            (vertices[:, top, 2] - vertices[:, sole, 2]).numpy(),
        )

    def forward(self, rotations: np.ndarray, offsets: Offsets) -> PosedLandmarks:
        """rotations (P, F, 3, 3) of the free joints: the root's is from reference to world axes, another's is relative
        to its nearest free ancestor."""
        turned = [rotations[:, 0]]
        for slot in range(1, len(self.free)):
            turned.append(turned[self.parent[slot]] @ rotations[:, slot])
        world = np.stack(turned, 1)
        joints, landmarks = self.place(world, offsets)
        return PosedLandmarks(landmarks, joints, world)

    def place(self, world: np.ndarray, offsets: Offsets) -> tuple[np.ndarray, np.ndarray]:
        """Free joints (P, F, 3) and landmarks (P, M, 3) for world rotations (P, F, 3, 3): linear in the offsets."""
        steps = (world[:, np.maximum(self.parent, 0)] @ offsets.joints[..., None])[..., 0]
        placed = [np.zeros_like(steps[:, 0])]
        for slot in range(1, len(self.free)):
            placed.append(placed[self.parent[slot]] + steps[:, slot])
        joints = np.stack(placed, 1)
        return joints, joints[:, self.carrier] + (world[:, self.carrier] @ offsets.landmarks[..., None])[..., 0]

    def body_rotations(self, rotations: np.ndarray, offsets: Offsets) -> np.ndarray:
        """(P, J, 3, 3): the rotations that `Anny.forward` takes, from those of `forward`."""
        full = np.tile(np.eye(3), (len(rotations), len(self.body.joint_names), 1, 1))
        full[:, self.free] = rotations
        full[:, 0] = rotations[:, 0] @ self._reference[0].numpy() @ offsets.root_rest.transpose(0, 2, 1)
        return full


class ShapeFamily:
    """P bodies whose FREE_SHAPE is free: each linear quantity at the 8 corners of the cube [0, 1]³."""

    def __init__(
        self, skeleton: AnnySkeleton, vertices: torch.Tensor, joints: torch.Tensor, correlation: torch.Tensor
    ) -> None:
        self.skeleton, self.vertices, self.joints, self.correlation = skeleton, vertices, joints, correlation

    def __getitem__(self, chosen: np.ndarray) -> ShapeFamily:
        """Some of the bodies."""
        return ShapeFamily(self.skeleton, self.vertices[chosen], self.joints[chosen], self.correlation[chosen])

    def offsets(self, free: np.ndarray) -> Offsets:
        """Of the numbers `free` (P, 3) in [0, 1]."""
        return self._offsets(_corner_shares(free), [])[0]

    def offsets_and_slopes(self, free: np.ndarray) -> tuple[Offsets, list[Offsets]]:
        """The same and its derivative by each of the numbers."""
        shares = [_corner_shares(free, slope_of=number) for number in range(len(FREE_SHAPE))]
        value, *slopes = self._offsets(_corner_shares(free), shares)
        return value, slopes

    def _offsets(self, shares: np.ndarray, slopes: Sequence[np.ndarray]) -> list[Offsets]:
        skeleton = self.skeleton

        def linear(shares: np.ndarray) -> list[torch.Tensor]:
            weights = torch.from_numpy(shares)
            parts = (self.vertices, self.joints, self.correlation)
            return [torch.einsum("pc,pcn...->pn...", weights, part) for part in parts]

        vertices, joints, correlation = linear(shares)
        rest = nearest_rotation(correlation)
        axes = skeleton.reference @ rest.mT  # from rest to reference axes
        results = [skeleton.assemble(vertices, joints, axes, rest[:, 0], shifted=True)]
        for one in slopes:
            d_vertices, d_joints, d_correlation = linear(one)
            d_rest = _nearest_rotation_slope(correlation, rest, d_correlation)
            moved = skeleton.assemble(d_vertices, d_joints, axes, d_rest[:, 0], shifted=False)
            turned = skeleton.assemble(vertices, joints, skeleton.reference @ d_rest.mT, d_rest[:, 0], shifted=False)
            results.append(
                Offsets(
                    moved.joints + turned.joints, moved.landmarks + turned.landmarks, moved.root_rest, moved.stature
                )
            )
        return results


def _corner_shares(free: np.ndarray, slope_of: int | None = None) -> np.ndarray:
    """(P, 8): the weights of the corners for numbers (P, 3), or their derivative by one of the numbers."""
    shares = np.ones((len(free), 1))
    for number, value in enumerate(free.T):
        both = [-np.ones_like(value), np.ones_like(value)] if number == slope_of else [1 - value, value]
        shares = (shares[:, :, None] * np.stack(both, -1)[:, None]).reshape(len(free), -1)
    return shares


def _nearest_rotation_slope(matrices: torch.Tensor, nearest: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """The derivative (P, C, 3, 3) of the nearest rotation (P, C, 3, 3) of matrices along `moves` (P, C, 3, 3).

    With M = R H, H symmetric, dR = R W where the skew matrix W solves W H + H W = Rᵀ dM - dMᵀ R. In vectors:
    (trace(H) I - H) w = the axial vector of the right side.
    """
    stretch = nearest.mT @ matrices
    skew = nearest.mT @ moves
    skew = skew - skew.mT
    axial = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    trace = stretch.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    system = trace * torch.eye(3, dtype=matrices.dtype) - (stretch + stretch.mT) / 2
    w = torch.linalg.solve(system, axial[..., None])[..., 0]
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return nearest @ torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
