"""Binary glTF 2.0 (GLB): triangle meshes, points, cameras and skinned animations in one file (Khronos specification,
"GLB File Format", "Skins", "Animations").

Own code, because trimesh's exporter writes one camera and no unlit material, without which viewers show photographed
colours as shaded metal, and writes sRGB values where glTF has linear ones.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.geometry.poses import continuous_quaternions, from_rotation_translation
from dune_cli.io.animation import AnimationData, SkinnedMotion, strongest_influences
from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Frustum, Mesh, check_colors, check_points
from dune_cli.io.outputs import atomic_path
from dune_cli.io.png import png_bytes
from dune_cli.io.rendering import vertex_normals

CONTENT = ("surface", "points")
OFFSET = True
AXES = "GLB: y up, z backward"
UNLIT = True
TEXTURE = ()  # inside the file
NAMED = True

ANIMATION_AXES = "y up, z backward"
ANIMATION_NAME = "motion"

COMPONENT_TYPES = {np.dtype("<f4"): 5126, np.dtype("<u4"): 5125, np.dtype("u1"): 5121}
POINTS, LINES, TRIANGLES = 0, 1, 4  # primitive modes
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
STILL = 1e-7  # of a quaternion: a joint that never changes by more has no keys
UNLIT_EXTENSION = "KHR_materials_unlit"
GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # y up, z backward; its own inverse
OPENCV_FROM_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # of a georeferenced scene: north becomes forward
FRUSTUM_LINES = np.array([0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1])
FRUSTUM_COLOR = (0.9, 0.25, 0.05)


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The surface or the points, and the cameras. What points up in the scene does so in the file."""
    meshes, points, cameras = scene.meshes, scene.points, scene.cameras
    if scene.z_up:
        turn = OPENCV_FROM_Z_UP
        meshes = [replace(mesh, vertices=(mesh.vertices @ turn.T).astype(mesh.vertices.dtype)) for mesh in meshes]
        points = None if points is None else points @ turn.T
        pose = from_rotation_translation(turn, np.zeros(3))
        cameras = [replace(camera, world_from_cam=pose @ camera.world_from_cam) for camera in cameras]
    write_glb(path, meshes, points, scene.colors, cameras, scene.world_offset)
    return ["POSITION", "COLOR_0"]


def write_glb(
    path: str | Path,
    meshes: Sequence[Mesh],
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    cameras: Sequence[Frustum] = (),
    world_offset: np.ndarray | None = None,
) -> None:
    """Meshes, `points` (M, 3) with `colors` (M, 3) uint8, and cameras in one binary glTF file.

    OpenCV axes become glTF's (y up, z backward) and sRGB colours linear ones. Materials are unlit, so that photographed
    colours show as they are. A camera is a glTF camera (fields of view about the optical axis) with its exact K and
    size in `extras`, and the outline of its frustum, 5 % of the scene long. Empty meshes are left out. `asset.extras`
    has `world_offset` (3,), to be added to all coordinates (OpenCV axes) for those of the world.
    """
    content = glb_bytes(meshes, points, colors, cameras, world_offset)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def glb_bytes(
    meshes: Sequence[Mesh],
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    cameras: Sequence[Frustum] = (),
    world_offset: np.ndarray | None = None,
) -> bytes:
    """The content of the file that `write_glb` writes."""
    file = GlbFile()
    meshes = [mesh for mesh in meshes if len(mesh.faces)]
    clouds = [mesh.vertices for mesh in meshes]
    photo = file.add_material("photo", (1.0, 1.0, 1.0))
    for mesh in meshes:
        shown = None if mesh.colors is None else _linear(mesh.colors)
        material = photo if mesh.texture is None else file.add_texture(f"{mesh.name} texture", mesh.texture)
        index = file.add_mesh(mesh.name, TRIANGLES, _to_gltf(mesh.vertices), material, mesh.faces, shown, mesh.uv)
        file.add_node({"name": mesh.name, "mesh": index})
    if points is not None and len(points):
        check_points(points, "points")
        check_colors(colors, len(points), "points")
        shown = None if colors is None else _linear(colors)
        file.add_node({"name": "points", "mesh": file.add_mesh("points", POINTS, _to_gltf(points), photo, None, shown)})
        clouds.append(points)
    if cameras:
        length = _frustum_length(clouds, cameras)
        material = file.add_material("camera", FRUSTUM_COLOR)
        for camera in cameras:
            _add_camera(file, camera, length, material)
    if world_offset is not None:
        file.extras["world_offset"] = world_offset.tolist()
    return file.to_bytes()


def write_animation(path: Path, data: AnimationData) -> list[Path]:
    """A skinned mesh and a skeleton for each motion, one animation that moves all of them, and the cameras.

    Rotations and the root's translation are keyed at the frames' times, interpolated linearly; joints that do not move
    have no keys. Through frames without the body the last pose is held (`SkinnedMotion.held_keys`). A vertex has the 4
    strongest of its influences, renormalised. Materials are lit. The mesh's node has `extras`: the person's id, the
    seconds in which it was seen, and the gaps. Returns the files: this one.
    """
    file = GlbFile()
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []
    for motion in data.motions:
        nodes = _add_skinned(file, motion)
        _add_keys(file, motion, nodes, (channels, samplers))
    if channels:
        file.animations.append({"name": ANIMATION_NAME, "channels": channels, "samplers": samplers})
    if data.cameras:
        length = _frustum_length([m.translation for m in data.motions], data.cameras) if data.motions else 1.0
        material = file.add_material("camera", FRUSTUM_COLOR)
        for camera in data.cameras:
            _add_camera(file, camera, max(length, 0.1), material)
    content = file.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return [path]


def _add_skinned(file: GlbFile, motion: SkinnedMotion) -> int:
    """Adds the mesh, its skin and its joints' nodes in the first pose; returns the node of joint 0, which the other
    joints' follow."""
    if len(motion.joint_names) > 256:
        raise ValueError(f"{motion.name}: {len(motion.joint_names)} joints; at most 256 fit into a byte")
    material = file.add_material(motion.name, tuple(map(float, _linear(motion.color[None])[0])), lit=True)
    mesh = file.add_mesh(motion.name, TRIANGLES, _to_gltf(motion.vertices), material, motion.faces)
    influences, weights = strongest_influences(motion.weights)
    normals = _to_gltf(vertex_normals(motion.vertices, motion.faces))
    normals[np.linalg.norm(normals, axis=1) < 0.5] = (0, 1, 0)  # of vertices without area
    attributes = file.meshes[mesh]["primitives"][0]["attributes"]
    attributes["NORMAL"] = file.add_accessor(normals.astype("<f4"), "VEC3", ARRAY_BUFFER)
    attributes["JOINTS_0"] = file.add_accessor(influences.astype("u1"), "VEC4", ARRAY_BUFFER)
    attributes["WEIGHTS_0"] = file.add_accessor(_unit_sums(weights), "VEC4", ARRAY_BUFFER)

    count = len(motion.joint_names)
    root = len(file.nodes)
    offsets, turns = _to_gltf(motion.offsets), _gltf_quaternions(motion.rotations[:1])[0]
    offsets[0] = _to_gltf(motion.translation[0])
    for joint, name in enumerate(motion.joint_names):
        children = [root + other for other in range(count) if motion.parents[other] == joint]
        node = {
            "name": f"{motion.name} {name}",
            "translation": offsets[joint].tolist(),
            "rotation": turns[joint].tolist(),
        }
        file.add_node(node | ({"children": children} if children else {}), in_scene=joint == 0)
    inverse_bind = np.tile(np.eye(4), (count, 1, 1))
    inverse_bind[:, :3, 3] = -_to_gltf(motion.joints)
    matrices = inverse_bind.transpose(0, 2, 1).reshape(count, 16).astype("<f4")  # columns first
    file.skins.append(
        {
            "name": motion.name,
            "inverseBindMatrices": file.add_accessor(matrices, "MAT4"),
            "joints": list(range(root, root + count)),
            "skeleton": root,
        }
    )
    extras = {
        "person": motion.id,
        "seen_s": [float(motion.times_s[0]), float(motion.times_s[-1])],
        "not_seen_s": [list(gap) for gap in motion.not_seen_s()],
        "not_seen": "the last pose is held",
    }
    file.add_node({"name": motion.name, "mesh": mesh, "skin": len(file.skins) - 1, "extras": extras})
    return root


def _add_keys(
    file: GlbFile, motion: SkinnedMotion, root: int, into: tuple[list[dict[str, Any]], list[dict[str, Any]]]
) -> None:
    """The motion's channels and samplers, added to `into`."""
    channels, samplers = into
    times, keys = motion.held_keys()
    input_ = file.add_accessor(times.astype("<f4")[:, None], "SCALAR", bounds=True)

    def add(node: int, path: str, values: np.ndarray, kind: str) -> None:
        output = file.add_accessor(values[keys].astype("<f4"), kind)
        samplers.append({"input": input_, "output": output, "interpolation": "LINEAR"})
        channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": path}})

    add(root, "translation", _to_gltf(motion.translation), "VEC3")
    quaternions = _gltf_quaternions(motion.rotations)
    for joint in range(len(motion.joint_names)):
        if joint == 0 or np.abs(quaternions[:, joint] - quaternions[0, joint]).max() > STILL:
            add(root + joint, "rotation", quaternions[:, joint], "VEC4")


def _gltf_quaternions(rotations: np.ndarray) -> np.ndarray:
    """(T, J, 4) x, y, z, w in glTF's axes, with continuous signs, of rotations (T, J, 3, 3) in OpenCV's."""
    flip = GLTF_FROM_OPENCV[:3, :3]
    return np.roll(continuous_quaternions(flip @ rotations @ flip), -1, axis=-1)


def _unit_sums(weights: np.ndarray) -> np.ndarray:
    """Weights (V, 4) as float32 whose rows sum to 1 as closely as float32 can: the largest takes the rounding."""
    rounded = weights.astype("<f4")
    rounded[:, 0] += (1 - rounded.astype(np.float64).sum(1)).astype("<f4")
    return rounded


def _to_gltf(points: np.ndarray) -> np.ndarray:
    return points * np.diag(GLTF_FROM_OPENCV)[:3]


def _linear(colors: np.ndarray) -> np.ndarray:
    """sRGB (M, 3) uint8 to linear RGB (M, 3) float32 (IEC 61966-2-1)."""
    levels = np.arange(256) / 255.0
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[colors]


def _frustum_length(clouds: Sequence[np.ndarray], cameras: Sequence[Frustum]) -> float:
    """5 % of the diagonal of the box that holds the middle 90 % of the points, or of the cameras without any."""
    centres = np.array([camera.world_from_cam[:3, 3] for camera in cameras])
    low, high = np.percentile(np.concatenate(clouds), [5, 95], axis=0) if clouds else (centres.min(0), centres.max(0))
    return 0.05 * float(np.linalg.norm(high - low)) or 1.0


def _add_camera(file: GlbFile, camera: Frustum, length: float, material: int) -> None:
    K, width, height = np.asarray(camera.K, np.float64), camera.width, camera.height
    x, y = np.array([-0.5, width - 0.5]), np.array([-0.5, height - 0.5])
    corners = np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]])
    rays = corners @ np.linalg.inv(K).T
    outline = _to_gltf(np.vstack([np.zeros(3), rays * length]))
    file.cameras.append(
        {
            "name": camera.name,
            "type": "perspective",
            "perspective": {
                "yfov": 2 * float(np.arctan(height / 2 / K[1, 1])),
                "aspectRatio": float(width / K[0, 0] / (height / K[1, 1])),
                "znear": 0.01 * length,
            },
            "extras": {"K": K.tolist(), "width": width, "height": height},
        }
    )
    pose = GLTF_FROM_OPENCV @ np.asarray(camera.world_from_cam, np.float64) @ GLTF_FROM_OPENCV
    placed = {"name": camera.name, "matrix": pose.T.ravel().tolist()}
    frustum = file.add_mesh(f"{camera.name} frustum", LINES, outline, material, FRUSTUM_LINES)
    file.add_node(placed | {"camera": len(file.cameras) - 1})
    file.add_node(placed | {"name": f"{camera.name} frustum", "mesh": frustum})  # readers drop a mesh beside a camera


@dataclass
class GlbFile:
    """Collects buffers, meshes, skins, animations, cameras and nodes; `to_bytes` returns the file."""

    materials: list[dict[str, Any]] = field(default_factory=list)
    meshes: list[dict[str, Any]] = field(default_factory=list)
    cameras: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    skins: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    textures: list[dict[str, Any]] = field(default_factory=list)
    animations: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    length: int = 0

    def add_material(self, name: str, color: tuple[float, float, float], lit: bool = False) -> int:
        """A double-sided material of a linear RGB colour, multiplied with vertex colours; unlit, or matt."""
        material = {
            "name": name,
            "pbrMetallicRoughness": {"baseColorFactor": [*color, 1.0], "metallicFactor": 0.0, "roughnessFactor": 1.0},
            "doubleSided": True,
        }
        self.materials.append(material if lit else material | {"extensions": {UNLIT_EXTENSION: {}}})
        return len(self.materials) - 1

    def add_texture(self, name: str, image: np.ndarray) -> int:
        """A material, unlit and double-sided, with the `image` (h, w, 3) uint8 sRGB as its colour, stored as PNG."""
        content = png_bytes(image)
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": len(content)})
        padded = content + b"\0" * (-len(content) % 4)
        self.chunks.append(padded)
        self.length += len(padded)
        self.images.append({"name": name, "mimeType": "image/png", "bufferView": len(self.views) - 1})
        self.textures.append({"source": len(self.images) - 1})
        index = self.add_material(name, (1.0, 1.0, 1.0))
        self.materials[index]["pbrMetallicRoughness"]["baseColorTexture"] = {"index": len(self.textures) - 1}
        return index

    def add_mesh(
        self,
        name: str,
        mode: int,
        vertices: np.ndarray,
        material: int,
        indices: np.ndarray | None = None,
        colors: np.ndarray | None = None,
        uv: np.ndarray | None = None,
    ) -> int:
        """A mesh of one primitive: `vertices` (V, 3), flat `indices`, `colors` (V, 3) linear RGB in [0, 1], `uv`
        (V, 2) in the material's texture."""
        attributes = {"POSITION": self.add_accessor(vertices.astype("<f4"), "VEC3", ARRAY_BUFFER, bounds=True)}
        if colors is not None:
            attributes["COLOR_0"] = self.add_accessor(colors.astype("<f4"), "VEC3", ARRAY_BUFFER)
        if uv is not None:
            attributes["TEXCOORD_0"] = self.add_accessor(uv.astype("<f4"), "VEC2", ARRAY_BUFFER)
        primitive: dict[str, Any] = {"attributes": attributes, "mode": mode, "material": material}
        if indices is not None:
            primitive["indices"] = self.add_accessor(indices.reshape(-1).astype("<u4"), "SCALAR", ELEMENT_ARRAY_BUFFER)
        self.meshes.append({"name": name, "primitives": [primitive]})
        return len(self.meshes) - 1

    def add_node(self, node: dict[str, Any], in_scene: bool = True) -> None:
        """A node at the root of the scene, or one that is a child of another."""
        if in_scene:
            self.roots.append(len(self.nodes))
        self.nodes.append(node)

    def to_bytes(self) -> bytes:
        """The whole GLB file."""
        asset: dict[str, Any] = {"version": "2.0", "generator": "dune"}
        if self.extras:
            asset["extras"] = self.extras
        document: dict[str, Any] = {"asset": asset, "scene": 0, "scenes": [{}]}
        if self.nodes:
            document["scenes"] = [{"nodes": self.roots}]
        if self.length:
            document["buffers"] = [{"byteLength": self.length}]
        if any("extensions" in material for material in self.materials):
            document["extensionsUsed"] = [UNLIT_EXTENSION]
        lists = {
            "nodes": self.nodes,
            "meshes": self.meshes,
            "materials": self.materials,
            "images": self.images,
            "textures": self.textures,
            "cameras": self.cameras,
            "skins": self.skins,
            "animations": self.animations,
            "accessors": self.accessors,
            "bufferViews": self.views,
        }
        document.update({name: values for name, values in lists.items() if values})
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        parts = [struct.pack("<I4s", len(text), b"JSON"), text]
        if self.length:
            parts += [struct.pack("<I4s", self.length, b"BIN\0"), *self.chunks]
        total = 12 + sum(map(len, parts))
        if total >= 1 << 32:
            raise ValueError(f"a GLB file holds at most 4 GiB, this one would need {total / 2**30:.1f}")
        return b"".join([struct.pack("<4sII", b"glTF", 2, total), *parts])

    def add_accessor(self, array: np.ndarray, kind: str, target: int | None = None, bounds: bool = False) -> int:
        """Rows of `array` (N, ...) as elements of `kind` ("VEC3", ...). Elements are multiples of four bytes, so every
        view is aligned. `target`: ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER, or None for what is no vertex data."""
        content = array.tobytes()
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(content)}
        self.views.append(view if target is None else view | {"target": target})
        self.chunks.append(content)
        self.length += len(content)
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": COMPONENT_TYPES[array.dtype],
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1
