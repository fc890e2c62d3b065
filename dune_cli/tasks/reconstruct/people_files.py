"""People of a scene as files: their meshes, and what the scene's JSON says of them (docs/file-formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.bodies.body import person_name
from dune_cli.io import formats
from dune_cli.io.meshes import Mesh
from dune_cli.io.outputs import sibling
from dune_cli.io.rendering import distinct_color, shaded
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct.people import PeopleInScene, PlacedBody, ScenePerson

OWN_FILE = "-people.obj"  # beside a scene file whose meshes have no names, in the same axes


def people_file(scene_file: Path) -> Path:
    """Where the people's meshes go: the scene's file, or an OBJ beside it."""
    return scene_file if formats.constant(scene_file, "NAMED", False) else sibling(scene_file, OWN_FILE)


def people_meshes(people: PeopleInScene, path: Path) -> list[Mesh]:
    """One mesh for each person that has a place, named and coloured by its number, for the format of `path`."""
    faces = people.body.faces.numpy()
    meshes = [
        Mesh(one.body.vertices, faces, np.full(one.body.vertices.shape, distinct_color(number), np.uint8), name)
        for number, one in enumerate(people.people)
        for name in [person_name(number)]
        if one.body is not None
    ]
    return [shaded(mesh) for mesh in meshes] if formats.constant(path, "UNLIT", False) else meshes


def write_people(meshes: Sequence[Mesh], scene: Scene, path: Path) -> None:
    """The people alone, in a file beside the scene's."""
    formats.of(path).write_scene(path, formats.SceneData(meshes=meshes, world_offset=scene.world_offset))


def people_json(people: PeopleInScene, scene: Scene, file: Path | None) -> dict[str, Any]:
    """The fields of `dune.scene/1` about people. file: of their meshes, None where there is none."""
    body, scale, assumed = people.body, people.scale, people.assumed
    told = None
    if scale is not None:
        told = {"metres_per_unit": scale.metres_per_unit, "sd": round(scale.sd, 4), "people": scale.people}
    return {
        "people": [_person(number, one, scene, file) for number, one in enumerate(people.people)],
        "people_scale": told,
        "assumed_height": {"mean": assumed.mean, "sd": assumed.sd, "given": assumed.given},
        "body_model": {
            "name": body.name,
            "rig": body.rig,
            "vertices": len(body.weights),
            "joints": list(body.joint_names),
            "parents": list(body.parents),
            "rotvec_joints": list(body.joint_names),
        },
    }


def _person(number: int, person: ScenePerson, scene: Scene, file: Path | None) -> dict[str, Any]:
    used = [one.residual_px for one in person.sightings if one.used and one.residual_px is not None]
    views = [
        {
            "camera": one.view,
            "image": scene.views[one.view].image,
            "score": round(one.score, 4),
            "fit_residual_px": None if one.residual_px is None else round(one.residual_px, 2),
            "used": one.used,
            "joints_seen": list(one.joints_seen),
        }
        for one in person.sightings
    ]
    document = {
        "id": number,
        "score": round(person.score, 4),
        "fit_confidence": round(person.fit_confidence, 3),
        "fit_residual_px": round(float(np.mean(used)), 2) if used else None,
        "placed_by": person.placed_by,
        "views": views,
    }
    return document | _placed(number, person.body, scene, file)


def _placed(number: int, body: PlacedBody | None, scene: Scene, file: Path | None) -> dict[str, Any]:
    if body is None:
        return dict.fromkeys(("translation", "rotvec", "shape", "height", "units_per_metre", "joints3d", "mesh"))
    return {
        "translation": scene.in_world(body.translation.astype(np.float32)),
        "rotvec": body.rotvec.astype(np.float32),
        "shape": {name: np.float32(value) for name, value in body.shape.items()},
        "height": round(body.height, 4),
        "units_per_metre": body.size,
        "joints3d": scene.in_world(body.joints3d.astype(np.float32)),
        "mesh": None if file is None else f"{file.name}#{person_name(number)}",
    }
