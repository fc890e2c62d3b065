"""People as files: one mesh a person, and the JSON `dune.human/1` (docs/file-formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.bodies.body import person_name
from dune_cli.geometry.camera_models import Camera
from dune_cli.io import formats
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.png import save_png
from dune_cli.io.rendering import distinct_color, overlay, shaded, top_view
from dune_cli.tasks.human.fitted import BodyFitter, FittedHumanModel, FittedPerson
from dune_cli.tasks.human.model import HumanModel, Person
from dune_cli.tasks.human.photo import PhotoPeople

SCHEMA = "dune.human/1"
BodiedModel = HumanModel | FittedHumanModel | BodyFitter  # what poses the body of the people's parameters


def meshes(model: BodiedModel, people: Sequence[Person], ids: Sequence[int] | None = None) -> list[Mesh]:
    """One mesh a person, named and coloured by `ids` (None: 0, 1, ...), in the camera's frame, in metres."""
    faces = model.body.faces.cpu().numpy()
    return [
        Mesh(
            person.vertices.double().numpy(),
            faces,
            np.full((len(person.vertices), 3), distinct_color(number), np.uint8),
            person_name(number),
        )
        for number, person in zip(range(len(people)) if ids is None else ids, people)
    ]


def write_meshes(path: Path, meshes: Sequence[Mesh], people: PhotoPeople) -> None:
    """Writes the meshes, and in GLB the camera, to `path` in the format of its extension. In formats that are rendered
    without light, the colours are shaded."""
    photo = people.photo
    camera = Frustum(people.pinhole_K, np.eye(4), photo.width, photo.height, photo.path.stem)
    written = [shaded(mesh) for mesh in meshes] if formats.constant(path, "UNLIT", False) else meshes
    formats.of(path).write_scene(path, formats.SceneData(meshes=written, cameras=[camera]))


def write_overlay(path: Path, meshes: Sequence[Mesh], people: PhotoPeople) -> None:
    """The photo as a PNG with the bodies over it."""
    save_png(path, overlay(people.photo.rgb, meshes, people.K, lens=people.lens))


def write_top_view(path: Path, meshes: Sequence[Mesh], people: PhotoPeople) -> None:
    """The bodies from above as a PNG, with the camera and its field of view on a grid in metres."""
    save_png(path, top_view(meshes, K=people.pinhole_K, width=people.photo.width).image)


def document(
    model: BodiedModel, people: PhotoPeople, mesh_file: Path | None, provenance: dict[str, Any]
) -> dict[str, Any]:
    """The JSON of a photo (`dune.human/1`). mesh_file: the meshes beside it, if any."""
    photo = describe_photo(people, mesh_file)
    listed = photo.pop("people")
    return {**photo, "body_model": describe_body(model), "people": listed, "provenance": provenance}


def describe_body(model: BodiedModel) -> dict[str, Any]:
    """The body of the people's parameters, for `dune.human/1`."""
    body = model.body
    rig = {"rig": body.rig} if getattr(body, "rig", "full") == "light" else {}
    return {
        "name": body.name,
        **rig,
        "vertices": model.vertex_count,
        "joints": list(body.joint_names),
        "parents": list(body.parents),
        "rotvec_joints": list(model.rotation_names),
    }


def describe_photo(people: PhotoPeople, mesh_file: Path | None) -> dict[str, Any]:
    """A photo's size, camera and people, for `dune.human/1`."""
    photo, K, assumed = people.photo, people.K, people.assumed_height
    scale: dict[str, Any] = {"scale": "metric"}
    if assumed is not None:
        scale = {
            "scale": "given" if assumed.given else "assumed",
            "assumed_height": {"mean": assumed.mean, "sd": assumed.sd},
        }
    return {
        "schema": SCHEMA,
        **scale,
        "image": {"file": str(photo.path), "width": photo.width, "height": photo.height},
        "camera": {
            **{"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "source": people.camera_source},
            **({} if people.lens is None else _lens_fields(people, people.lens)),
        },
        "people": [
            _person(number, person, None if mesh_file is None else f"{mesh_file.name}#{person_name(number)}")
            for number, person in zip(people.ids, people.people)
        ],
    }


def _lens_fields(people: PhotoPeople, lens: Camera) -> dict[str, Any]:
    return {"model": lens.model, "params": list(lens.params), "undistorted_K": people.pinhole_K}


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
        **(_fit(person) if isinstance(person, FittedPerson) else {}),
        "mesh": mesh,
    }


def _fit(person: FittedPerson) -> dict[str, Any]:
    """What only a fitted body has."""
    residual = person.fit_residual_px
    return {
        "height": round(person.height, 4),
        "fit_confidence": round(person.fit_confidence, 3),
        "fit_residual_px": None if residual is None else round(residual, 2),
        "joints_seen": list(person.joints_seen),
        "joint_confidence": {name: round(value, 3) for name, value in person.joint_confidence.items()},
    }


def _numbers(values: torch.Tensor) -> Any:
    """Float32 values as the shortest decimals that restore them."""
    return np.vectorize(lambda value: float(str(np.float32(value))), otypes=[float])(values.numpy()).tolist()
