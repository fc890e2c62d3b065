"""Colours of a scene's points and triangles: their own, shaded, or by normal, height, confidence or class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.colormaps import apply_colormap, between_percentiles
from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Mesh
from dune_cli.io.rendering import AMBIENT, LIGHT_CAM, vertex_normals

COLORINGS = ("color", "shaded", "normal", "height", "confidence", "class")
GREY = 200
FEW_COLORS = 64  # a mesh with fewer has no picture on it: it is shaded


def colorings(data: SceneData) -> list[str]:
    """Those of COLORINGS that the scene has what they need for."""
    surfaces = [mesh for mesh in data.meshes if len(mesh.faces)]
    has_points = data.points is not None and len(data.points) > 0
    normals = bool(surfaces) or data.normals is not None
    offered = {"color": True, "shaded": normals, "normal": normals, "height": True}
    offered["confidence"] = has_points and data.confidence is not None
    offered["class"] = has_points and data.class_colors is not None
    return [name for name in COLORINGS if offered[name]]


def recolored(data: SceneData, coloring: str, up: np.ndarray, world_from_cam: np.ndarray | None = None) -> SceneData:
    """The scene with the colours of one of COLORINGS on points and triangles.

    `up` (3,): the direction in which height grows. `world_from_cam` (4, 4): the camera that light comes from and that
    normals are seen from (right: red, up: green, towards it: blue); None: the world's axes. "color" leaves colours as
    they are, makes what has none grey, and shades meshes of fewer than FEW_COLORS. UserError for what the scene lacks.
    """
    if coloring not in colorings(data):
        raise UserError(
            f"the colours {coloring!r} need what this scene does not have; allowed here: {', '.join(colorings(data))}"
        )
    axes = np.eye(3) if world_from_cam is None else np.asarray(world_from_cam)[:3, :3]
    points = np.zeros((0, 3)) if data.points is None else data.points
    heights = np.concatenate([points, *(mesh.vertices for mesh in data.meshes)]) @ up
    height_colors = apply_colormap(between_percentiles(heights)) if coloring == "height" else None
    first, meshes = len(points), []
    for mesh in data.meshes:
        if height_colors is not None:
            colors = height_colors[first : first + len(mesh.vertices)]
        else:
            colors = _mesh_colors(mesh, coloring, axes)
        meshes.append(replace(mesh, colors=colors))
        first += len(mesh.vertices)
    if height_colors is not None:
        colors = height_colors[: len(points)]
    else:
        colors = _point_colors(data, len(points), coloring, axes)
    return replace(data, colors=None if data.points is None else colors, meshes=tuple(meshes))


def _point_colors(data: SceneData, count: int, coloring: str, axes: np.ndarray) -> np.ndarray:
    grey = np.full((count, 3), GREY, np.uint8)
    if coloring == "confidence" and data.confidence is not None:
        return apply_colormap(between_percentiles(np.nan_to_num(data.confidence).astype(np.float64)))
    if coloring == "class" and data.class_colors is not None:
        return data.class_colors
    if coloring == "normal" and data.normals is not None:
        return _normal_colors(data.normals, axes)
    if coloring == "shaded" and data.normals is not None:
        return _shaded(grey, data.normals, axes)
    return grey if coloring == "shaded" or data.colors is None else data.colors


def _mesh_colors(mesh: Mesh, coloring: str, axes: np.ndarray) -> np.ndarray:
    grey = np.full((len(mesh.vertices), 3), GREY, np.uint8)
    own = grey if mesh.colors is None or coloring == "shaded" else mesh.colors
    plain = own is grey or (len(own) > 0 and len(np.unique(own[:: max(1, len(own) // 4096)], axis=0)) < FEW_COLORS)
    if coloring == "normal":
        return _normal_colors(vertex_normals(mesh.vertices, mesh.faces), axes)
    return _shaded(own, vertex_normals(mesh.vertices, mesh.faces), axes) if plain else own


def _shaded(colors: np.ndarray, normals: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Under a light beside the camera; both sides are lit alike."""
    light = np.abs(np.asarray(normals, np.float64) @ (axes @ LIGHT_CAM))
    return np.rint(colors * (AMBIENT + (1 - AMBIENT) * light.clip(0, 1))[:, None]).astype(np.uint8)


def _normal_colors(normals: np.ndarray, axes: np.ndarray) -> np.ndarray:
    seen = np.asarray(normals, np.float64) @ axes * [1, -1, -1]
    return np.rint(127.5 * (1 + seen.clip(-1, 1))).astype(np.uint8)
