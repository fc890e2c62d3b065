"""The SMPL-X body (Pavlakos et al., CVPR 2019) from the user's own model file, skinned by the `smplx` package.

Neither is shipped: the file is for non-commercial use, from https://smpl-x.is.tue.mpg.de after registration.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dune_cli.bodies.body import Body, BodyOutput, read_arrays
from dune_cli.errors import CheckpointError, PackageMissing
from dune_cli.provenance import Source

ADDRESS = "https://smpl-x.is.tue.mpg.de"
LICENCE = "SMPL-X model licence (non-commercial)"
FETCH = f"fetch SMPLX_NEUTRAL.npz (SMPL-X v1.1) from {ADDRESS} again"
ARRAYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
EXPRESSION_START = {"old": 10, "new": 300}  # where expressions begin in `shapedirs` of 20 or of 400 columns
LARGEST_VALUE = 1e3  # metres: people are smaller
OTHER_MODELS = {5: "FLAME", 16: "MANO", 24: "SMPL", 52: "SMPL-H"}  # by their number of joints

_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
JOINTS = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle"),
    *("spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "jaw", "left_eye", "right_eye"),
    *(f"{side}_{finger}{i}" for side in ("left", "right") for finger in _FINGERS for i in (1, 2, 3)),
)
PARENTS = (
    *(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15),
    *(wrist if i == 0 else 25 + 15 * k + 3 * finger + i - 1 for k, wrist in enumerate((20, 21))
      for finger in range(5) for i in range(3)),
)  # fmt: skip


class SmplX(Body):
    """SMPL-X, neutral: betas, expression, no PCA of the hands; the hands are flat at rest.

    Axes: x to the body's left, y up, the body looks along z. Metres. 55 joints; the pelvis is the root.
    A joint's rotation is relative to its parent's, in the body's axes; the root's turns the body about the pelvis,
    which stays where the shape puts it (near the origin). The identity everywhere is the T-pose.
    """

    name = "smplx"

    def __init__(self, arrays: dict[str, np.ndarray], betas: int, expression: int, source: Source) -> None:
        """`arrays` as `read_model` returns them. Raises PackageMissing without the `smplx` package."""
        super().__init__()
        try:
            from smplx.lbs import lbs
        except ImportError as error:
            raise PackageMissing(f"SMPL-X bodies need the package smplx ({error}); run 'pip install smplx'") from error
        self._lbs = lbs
        self.source = source
        self.joint_names, self.parents, self.head = JOINTS, PARENTS, JOINTS.index("head")
        self.shape_names = tuple(f"beta{i}" for i in range(betas))
        self.expression_size = expression
        directions = arrays["shapedirs"]
        start = EXPRESSION_START["old" if directions.shape[2] == 20 else "new"]
        directions = np.concatenate([directions[..., :betas], directions[..., start : start + expression]], -1)
        faces = torch.from_numpy(arrays["f"].astype(np.int64))
        buffers = {
            "template": _float32(arrays["v_template"]),
            "directions": _float32(directions),
            "pose_directions": _float32(arrays["posedirs"].reshape(-1, 9 * (len(JOINTS) - 1)).T),
            "joint_regressor": _float32(arrays["J_regressor"]),
            "weights": _float32(arrays["weights"]),
            "parent_indices": torch.tensor(PARENTS),
            "faces": faces,
            "surface": faces.unique(),
            "upright": torch.diag(torch.tensor([1.0, -1.0, -1.0])),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, rotations: Tensor, shape: Tensor, expression: Tensor | None = None) -> BodyOutput:
        """See `Body.forward` and the class. rotations (B, 55, 3, 3), shape (B, betas), expression (B, E) or None."""
        self.check_inputs(rotations, shape, expression)
        if expression is None:
            expression = shape.new_zeros(len(shape), self.expression_size)
        vertices, joints = self._lbs(
            torch.cat([shape, expression], 1),
            rotations,
            self.template,
            self.directions,
            self.pose_directions,
            self.joint_regressor,
            self.parent_indices,
            self.weights,
            pose2rot=False,
        )
        return BodyOutput(vertices, joints)


def read_model(path: Path, betas: int, expression: int) -> dict[str, np.ndarray]:
    """The arrays of a SMPL-X model file that its skinning needs.

    Raises CheckpointError naming the array and its shape when the file is cut, another model's, or lacks `betas` shape
    or `expression` expression directions. Published files also hold pickled arrays; those are never opened.
    """
    arrays = read_arrays(path, "a SMPL-X model", FETCH, ARRAYS)
    vertices, joints = len(np.atleast_1d(arrays["v_template"])), len(JOINTS)
    regressor = arrays["J_regressor"].shape
    if regressor and regressor[0] in OTHER_MODELS:
        raise CheckpointError(
            f"{path} is a {OTHER_MODELS[regressor[0]]} model ({regressor[0]} joints), SMPL-X has {joints}; {FETCH}"
        )
    columns = arrays["shapedirs"].shape[-1] if arrays["shapedirs"].ndim else 0
    expected = {
        "v_template": (vertices, 3),
        "f": (len(np.atleast_1d(arrays["f"])), 3),
        "shapedirs": (vertices, 3, columns),
        "posedirs": (vertices, 3, 9 * (joints - 1)),
        "J_regressor": (joints, vertices),
        "weights": (vertices, joints),
        "kintree_table": (2, joints),
    }
    for name, size in expected.items():
        if arrays[name].shape != size:
            raise CheckpointError(f"{path}: {name} has shape {arrays[name].shape}, SMPL-X's is {size}; {FETCH}")
        if arrays[name].dtype.kind not in ("iu" if name in ("f", "kintree_table") else "f"):
            raise CheckpointError(f"{path}: {name} has numbers of type {arrays[name].dtype}; {FETCH}")
        if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite; {FETCH}")
        if arrays[name].dtype.kind == "f" and np.abs(arrays[name]).max(initial=0) > LARGEST_VALUE:
            raise CheckpointError(f"{path}: {name} has values beyond {LARGEST_VALUE:g}; {FETCH}")
    for name in ("J_regressor", "weights"):
        if not np.allclose(arrays[name].sum(1), 1, atol=1e-2):
            raise CheckpointError(f"{path}: the rows of {name} do not add up to 1; {FETCH}")
    if columns != 20 and columns < 400:
        raise CheckpointError(f"{path}: shapedirs has {columns} columns, SMPL-X's has 400 or 20; {FETCH}")
    available = 10 if columns == 20 else 300, 10 if columns == 20 else columns - 300
    if betas > available[0] or expression > available[1]:
        raise CheckpointError(
            f"{path} has {available[0]} shape and {available[1]} expression directions, needed are {betas} and "
            f"{expression}; {FETCH}"
        )
    if tuple(arrays["kintree_table"][0, 1:].tolist()) != PARENTS[1:]:
        raise CheckpointError(f"{path}: kintree_table is not SMPL-X's skeleton; {FETCH}")
    if not arrays["f"].size:
        raise CheckpointError(f"{path}: f has no triangles; {FETCH}")
    if not 0 <= arrays["f"].min() <= arrays["f"].max() < vertices:
        raise CheckpointError(f"{path}: f names vertices beyond the {vertices} there are; {FETCH}")
    return arrays


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
