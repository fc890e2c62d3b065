"""People as files: one mesh a person, and the JSON `dune.human/1` (docs/file-formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.io import formats
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.png import save_png
from dune_cli.io.rendering import AMBIENT, LIGHT_CAM, distinct_color, overlay, top_view, vertex_normals
from dune_cli.tasks.human.model import HumanModel, Person
from dune_cli.tasks.human.photo import PhotoPeople

SCHEMA = "dune.human/1"


def name_of(number: int) -> str:
    """The name of a person's mesh."""
    return f"person_{number:03d}"


def meshes(model: HumanModel, people: Sequence[Person], ids: Sequence[int] | None = None) -> list[Mesh]:
    """One mesh a person, named and coloured by `ids` (None: 0, 1, ...), in the camera's frame (OpenCV axes), vertices
    numbered as the body's."""
    faces = model.body.faces.cpu().numpy()
    return [
        Mesh(
            person.vertices.double().numpy(),
            faces,
            np.full((len(person.vertices), 3), distinct_color(number), np.uint8),
            name_of(number),
        )
        for number, person in zip(range(len(people)) if ids is None else ids, people)
    ]


def write_meshes(path: Path, found: Sequence[Mesh], people: PhotoPeople) -> None:
    """Writes `path` in the format of its extension: the meshes and, in GLB, the camera. Where the format is shown
    without a light, the colours are shaded."""
    photo = people.photo
    camera = Frustum(people.K, np.eye(4), photo.width, photo.height, photo.path.stem)
    shown = [_lit(mesh) for mesh in found] if formats.constant(path, "UNLIT", False) else found
    formats.of(path).write_scene(path, formats.SceneData(meshes=shown, cameras=[camera]))


def write_overlay(path: Path, found: Sequence[Mesh], people: PhotoPeople) -> None:
    """The photo as a PNG with the bodies over it."""
    save_png(path, overlay(people.photo.rgb, found, people.K))


def write_top_view(path: Path, found: Sequence[Mesh], people: PhotoPeople) -> None:
    """The bodies from above as a PNG, with the camera and its field of view on a grid in metres."""
    save_png(path, top_view(found, K=people.K, width=people.photo.width).image)


def document(
    model: HumanModel, found: PhotoPeople, mesh_file: Path | None, provenance: dict[str, Any]
) -> dict[str, Any]:
    """The object of `dune.human/1`; `mesh_file` is what was written beside it, if anything."""
    facts = photo_facts(found, mesh_file)
    people = facts.pop("people")
    return {**facts, "body_model": body_facts(model), "people": people, "provenance": provenance}


def body_facts(model: HumanModel) -> dict[str, Any]:
    """What `dune.human/1` says of the body that the people's parameters are of."""
    body = model.body
    return {
        "name": body.name,
        "vertices": model.vertex_count,
        "joints": list(body.joint_names),
        "parents": list(body.parents),
        "rotvec_joints": list(model.rotation_names),
    }


def photo_facts(found: PhotoPeople, mesh_file: Path | None) -> dict[str, Any]:
    """What `dune.human/1` says of one photo: its size, camera and people."""
    photo, K = found.photo, found.K
    return {
        "schema": SCHEMA,
        "scale": "metric",
        "image": {"file": str(photo.path), "width": photo.width, "height": photo.height},
        "camera": {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "source": found.camera_source},
        "people": [
            _person(number, person, None if mesh_file is None else f"{mesh_file.name}#{name_of(number)}")
            for number, person in zip(found.ids, found.people)
        ],
    }


def _person(number: int, person: Person, mesh: str | None) -> dict[str, Any]:
    tensors = ("bbox_xyxy", "head_px", "translation", "head", "offset", "rotvec")
    return {
        "id": number,
        "score": person.score,
        **{name: _numbers(getattr(person, name)) for name in tensors},
        "shape": {name: _numbers(value) for name, value in person.shape.items()},
        "expression": None if person.expression is None else _numbers(person.expression),
        "joints3d": _numbers(person.joints3d),
        "joints2d": _numbers(person.joints2d),
        "mesh": mesh,
    }


def _numbers(values: torch.Tensor) -> Any:
    """Float32 values as the shortest decimals that give them again."""
    return np.vectorize(lambda value: float(str(np.float32(value))), otypes=[float])(values.numpy()).tolist()


def _lit(mesh: Mesh) -> Mesh:
    """`mesh` with its colours as a lamp behind the camera shows them: GLB materials here are unlit."""
    light = np.abs(vertex_normals(mesh.vertices, mesh.faces) @ LIGHT_CAM)
    colors = mesh.colors * (AMBIENT + (1 - AMBIENT) * light[:, None])
    return replace(mesh, colors=np.rint(colors).astype(np.uint8))
