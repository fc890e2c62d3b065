"""A result as nodes of viser's scene: points, surfaces, cameras with photos; coloured, cropped, and found by a ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.framing import hit_triangle, nearest_to_ray
from dune_cli.geometry.poses import quaternion_from_rotation
from dune_cli.io.contact_sheet import TILE_PX, reduced
from dune_cli.io.formats import SceneData
from dune_cli.io.formats.glb import glb_bytes
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.photos import read_small
from dune_cli.io.results import StoredResult
from dune_cli.io.scene_colors import colorings, recolored

if TYPE_CHECKING:
    from viser import SceneApi

OPENCV_FROM_GLTF = (0.0, 1.0, 0.0, 0.0)  # half a turn about x, as w, x, y, z
MOST_PHOTOS = 60  # cameras that carry their photo, evenly spread
CLICK_RAD = 0.006  # a point is hit within this angle of the ray
CAMERA_COLOR = (230, 60, 15)
CAMERA_SHARE = 0.03  # length of a camera, of the view's distance


@dataclass(frozen=True)
class Look:
    """How layers are shown. `box`: (2, 3) lowest and highest coordinates, None for all. `distance`: of the view from
    what it shows, which sizes of points and cameras follow."""

    coloring: str = "color"
    point_size: float = 1.0
    points: bool = True
    surfaces: bool = True
    cameras: bool = True
    box: np.ndarray | None = None
    up: tuple[float, float, float] = (0.0, -1.0, 0.0)
    distance: float = 1.0


class SceneLayer:
    """A result in the page's coordinates, which are the result's less `origin` (3,)."""

    def __init__(self, name: str, result: StoredResult, origin: np.ndarray, most_points: int) -> None:
        self.name, self.metric = name, result.metric
        self.data = _moved(_thinned(result.data, most_points, name), origin)
        self._photos = result.photos
        self._shown = self.data  # cropped

    @property
    def colorings(self) -> list[str]:
        return colorings(self.data)

    @cached_property
    def photos(self) -> dict[int, np.ndarray]:
        """Small pictures (h, w, 3) of the cameras' photos by the cameras' number; unreadable ones are left out."""
        here = [index for index, path in enumerate(self._photos) if path is not None]
        step = max(1, -(-len(here) // MOST_PHOTOS))
        pictures = {}
        for index in console.progress(here[::step], "photos of the cameras", unit="photo"):
            try:
                pictures[index] = reduced(read_small(self._photos[index], TILE_PX))  # type: ignore[arg-type]
            except UserError as error:
                console.note(f"a camera without its photo: {error}")
        return pictures

    def show(self, scene: SceneApi, look: Look) -> None:
        """Adds or replaces the layer's nodes; those that are not to be seen are removed."""
        self._shown = _cropped(self.data, look.box)
        coloring = look.coloring if look.coloring in self.colorings else "color"
        data = _cropped(recolored(self.data, coloring, np.array(look.up)), look.box)
        node = f"/{self.name}"
        scene.remove_by_name(node)
        if look.points and data.points is not None and len(data.points):
            size = 0.0016 * look.distance * look.point_size
            kinds = {"point_shape": "circle", "point_shading": "flat", "precision": "float32"}
            scene.add_point_cloud(f"{node}/points", data.points, data.colors, point_size=size, **kinds)
        surfaces = [mesh for mesh in data.meshes if len(mesh.faces)]
        if look.surfaces and surfaces:
            turned = {"wxyz": OPENCV_FROM_GLTF, "cast_shadow": False, "receive_shadow": False}
            scene.add_glb(f"{node}/surface", glb_bytes(surfaces), **turned)
        if look.cameras:
            for index, camera in enumerate(self.data.cameras):
                self._add_camera(scene, f"{node}/cameras/{index}", index, camera, CAMERA_SHARE * look.distance)

    def _add_camera(self, scene: SceneApi, node: str, index: int, camera: Frustum, length: float) -> None:
        K, pose = camera.K, camera.world_from_cam
        scene.add_camera_frustum(
            node,
            2 * float(np.arctan(camera.height / 2 / K[1, 1])),
            float(camera.width / K[0, 0] / (camera.height / K[1, 1])),
            scale=length,
            thickness=0.02 * length,
            color=CAMERA_COLOR,
            image=self.photos.get(index),
            wxyz=quaternion_from_rotation(pose[:3, :3]),
            position=pose[:3, 3],
        )

    def hit(self, origin: np.ndarray, direction: np.ndarray, look: Look) -> np.ndarray | None:
        """Where a ray meets what is shown of the layer: (3,), the nearest point or place on a surface."""
        direction = direction / np.linalg.norm(direction)
        places = []
        if look.points and self._shown.points is not None and len(self._shown.points):
            index = nearest_to_ray(self._shown.points, origin, direction, CLICK_RAD)
            if index is not None:
                places.append(self._shown.points[index])
        for mesh in self._shown.meshes if look.surfaces else ():
            along = hit_triangle(mesh.vertices, mesh.faces, origin, direction)
            if along is not None:
                places.append(origin + along * direction)
        return min(places, key=lambda place: float(np.linalg.norm(place - origin)), default=None)


def _thinned(data: SceneData, most: int, name: str) -> SceneData:
    """At most `most` of the points, chosen at random with seed 0."""
    if data.points is None or len(data.points) <= most:
        return data
    console.note(f"{name}: {most} of {len(data.points)} points are shown; --max-points sets how many")
    return data.kept(np.sort(np.random.default_rng(0).choice(len(data.points), most, replace=False)))


def _moved(data: SceneData, origin: np.ndarray) -> SceneData:
    def moved(camera: Frustum) -> Frustum:
        pose = camera.world_from_cam.copy()
        pose[:3, 3] -= origin
        return replace(camera, world_from_cam=pose)

    return replace(
        data,
        points=None if data.points is None else data.points - origin,
        meshes=tuple(replace(mesh, vertices=mesh.vertices - origin) for mesh in data.meshes),
        cameras=tuple(moved(camera) for camera in data.cameras),
    )


def _cropped(data: SceneData, box: np.ndarray | None) -> SceneData:
    """The points in the box, and the triangles whose corners are."""
    if box is None:
        return data

    def inside(points: np.ndarray) -> np.ndarray:
        return ((points >= box[0]) & (points <= box[1])).all(-1)

    meshes = tuple(_part(mesh, inside(mesh.vertices)) for mesh in data.meshes)
    cropped = replace(data, meshes=meshes)
    return cropped if data.points is None else cropped.kept(inside(data.points))


def _part(mesh: Mesh, keep: np.ndarray) -> Mesh:
    faces = mesh.faces[keep[mesh.faces].all(1)]
    used = np.unique(faces)
    number = np.zeros(len(mesh.vertices), np.int64)
    number[used] = np.arange(len(used))
    colors = None if mesh.colors is None else mesh.colors[used]
    return Mesh(mesh.vertices[used], number[faces], colors, mesh.name)
