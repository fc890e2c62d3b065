"""The interface of all parametric bodies: parameters in, vertices and named joints out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dune_cli.errors import CheckpointError
from dune_cli.io.safe_read import MIB, read_npz
from dune_cli.provenance import Source

LIMIT_BYTES = 1024 * MIB  # of a body's .npz file; SMPLX_NEUTRAL.npz unpacks to 250 MB


def person_name(number: int) -> str:
    """The name of a person's mesh."""
    return f"person_{number:03d}"


@dataclass(frozen=True)
class BodyOutput:
    """A posed body in metres: `vertices (B, V, 3)` and `joints (B, J, 3)`, the joints' centres, in the same axes."""

    vertices: Tensor
    joints: Tensor


class Body(nn.Module, ABC):
    """A parametric body; differentiable in all its parameters, on whatever device and dtype its buffers have.

    name: "anny" or "smplx".
    source: file, hash and licence of the model's data.
    joint_names, parents: the skeleton, parents before children; the root is joint 0 and its parent -1.
    head: index of the head joint, by which human heads of networks place a body.
    shape_names: the columns of `shape`; expression_size: the columns of `expression`, 0 where there is none.
    faces (F, 3): triangles, counter-clockwise seen from outside.
    surface (S,): the vertices that triangles use, ascending; the others are helpers without a surface.
    upright (3, 3): the root rotation with which a resting body stands upright in OpenCV camera axes, facing the camera.
    """

    name: str
    source: Source
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    head: int
    shape_names: tuple[str, ...]
    expression_size: int
    faces: Tensor
    surface: Tensor
    upright: Tensor

    @abstractmethod
    def forward(self, rotations: Tensor, shape: Tensor, expression: Tensor | None = None) -> BodyOutput:
        """Poses the body.

        rotations (B, J, 3, 3): one rotation a joint; the root's turns the whole body, another's is relative to its
            parent. The class says in which axes and from which pose; the identity everywhere is the resting body.
        shape (B, len(shape_names)), expression (B, expression_size) or None for the neutral face.
        Raises ValueError with the sizes when they do not fit.
        """

    def rest_rotations(self, batch: int = 1) -> Tensor:
        """(B, J, 3, 3): the resting pose, upright and facing an OpenCV camera."""
        rotations = torch.eye(3, dtype=self.upright.dtype, device=self.upright.device)
        rotations = rotations.repeat(batch, len(self.joint_names), 1, 1)
        rotations[:, 0] = self.upright
        return rotations

    def surface_faces(self) -> Tensor:
        """(F, 3): the triangles in the numbering of `surface`, for use with `vertices[:, surface]`."""
        return torch.searchsorted(self.surface, self.faces)

    def check_inputs(self, rotations: Tensor, shape: Tensor, expression: Tensor | None) -> None:
        """Raises ValueError when a parameter's size is not the one that this body takes."""
        expected = {"rotations": (len(self.joint_names), 3, 3), "shape": (len(self.shape_names),)}
        given = {"rotations": rotations, "shape": shape}
        if expression is not None:
            expected["expression"], given["expression"] = (self.expression_size,), expression
        for name, tensor in given.items():
            if tuple(tensor.shape[1:]) != expected[name] or len(tensor) != len(rotations):
                wanted = ", ".join(str(size) for size in (len(rotations), *expected[name]))
                raise ValueError(f"{self.name} takes {name} of shape ({wanted}), received {tuple(tensor.shape)}")


def read_arrays(path: Path, what: str, cure: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays `names` of the file, or all. Others are not touched, so pickled ones among them do no harm.

    Raises CheckpointError for what is no .npz file, damaged, over 1 GiB, lacks a name, or holds anything but numbers
    and texts under one; its sentence calls the file `what` and ends with `cure`.
    """
    try:
        return read_npz(path, what, names, LIMIT_BYTES, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {cure}") from error
