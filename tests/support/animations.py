"""Small independent readers of animations: GLB by its JSON chunk (glTF 2.0), BVH by its lines."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

TYPES = {5121: np.uint8, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class Gltf:
    """The content of a GLB file."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, total = struct.unpack("<4sII", data[:12])
        assert (magic, version, total) == (b"glTF", 2, len(data))
        length = struct.unpack("<I", data[12:16])[0]
        self.json: dict[str, Any] = json.loads(data[20 : 20 + length])
        self.binary = data[28 + length :]

    def array(self, accessor: int) -> np.ndarray:
        """An accessor's rows (N, ...)."""
        facts = self.json["accessors"][accessor]
        view = self.json["bufferViews"][facts["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        content = self.binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        array = np.frombuffer(content, TYPES[facts["componentType"]])
        return array.reshape(facts["count"], WIDTHS[facts["type"]])

    def local(self, node: int, time_s: float) -> np.ndarray:
        """(4, 4) of a node at a time: its keys, interpolated linearly, else its own values."""
        facts = self.json["nodes"][node]
        values = {"translation": facts.get("translation", [0, 0, 0]), "rotation": facts.get("rotation", [0, 0, 0, 1])}
        for animation in self.json.get("animations", []):
            for channel in animation["channels"]:
                if channel["target"]["node"] == node:
                    sampler = animation["samplers"][channel["sampler"]]
                    times, keys = self.array(sampler["input"])[:, 0], self.array(sampler["output"])
                    values[channel["target"]["path"]] = [np.interp(time_s, times, column) for column in keys.T]
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat(values["rotation"]).as_matrix()
        matrix[:3, 3] = values["translation"]
        return matrix

    def skinned(self, node: int, time_s: float) -> np.ndarray:
        """(V, 3): the vertices of a node's mesh at a time, in the scene (glTF 2.0, 3.7.3)."""
        facts = self.json["nodes"][node]
        skin = self.json["skins"][facts["skin"]]
        attributes = self.json["meshes"][facts["mesh"]]["primitives"][0]["attributes"]
        parents = {child: k for k, one in enumerate(self.json["nodes"]) for child in one.get("children", [])}
        world: dict[int, np.ndarray] = {}
        for joint in skin["joints"]:  # parents first
            local = self.local(joint, time_s)
            world[joint] = world[parents[joint]] @ local if joint in parents else local
        inverse_bind = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        matrices = np.stack([world[joint] for joint in skin["joints"]]) @ inverse_bind
        vertices, weights = self.array(attributes["POSITION"]), self.array(attributes["WEIGHTS_0"])
        blended = (weights[..., None, None] * matrices[self.array(attributes["JOINTS_0"])]).sum(1)
        return (blended[:, :3, :3] @ vertices[..., None])[..., 0] + blended[:, :3, 3]


@dataclass(frozen=True)
class Bvh:
    """names, parents, offsets (J, 3) of joints and end sites; channels: (joint, name) by column; values (T, C)."""

    names: list[str]
    parents: list[int]
    offsets: np.ndarray
    channels: list[tuple[int, str]]
    frame_time_s: float
    values: np.ndarray

    def positions(self, frame: int) -> dict[str, np.ndarray]:
        """Each joint's place."""
        places = [np.eye(4) for _ in self.names]
        for joint, parent in enumerate(self.parents):
            places[joint][:3, 3] = self.offsets[joint]
            if parent >= 0:
                places[joint] = places[parent] @ places[joint]
            for (owner, channel), value in zip(self.channels, self.values[frame]):
                if owner == joint:
                    step = np.eye(4)
                    if channel.endswith("position"):
                        step["XYZ".index(channel[0]), 3] = value
                    else:
                        step[:3, :3] = Rotation.from_euler(channel[0].lower(), value, degrees=True).as_matrix()
                    places[joint] = places[joint] @ step
        return {name: place[:3, 3] for name, place in zip(self.names, places)}


def read_bvh(path: Path) -> Bvh:
    """Reads a BVH file word by word."""
    head, motion = path.read_text().split("MOTION")
    words = head.split()
    names, parents, offsets, channels, open_ = [], [], [], [], []
    assert words.pop(0) == "HIERARCHY"
    while words:
        word = words.pop(0)
        if word in ("ROOT", "JOINT", "End"):
            names.append(words.pop(0) if word != "End" else f"{names[open_[-1]]} {words.pop(0)}")
            parents.append(open_[-1] if open_ else -1)
        elif word == "{":
            open_.append(len(names) - 1)
        elif word == "}":
            open_.pop()
        elif word == "OFFSET":
            offsets.append([float(words.pop(0)) for _ in range(3)])
        else:
            assert word == "CHANNELS", word
            channels += [(open_[-1], words.pop(0)) for _ in range(int(words.pop(0)))]
    assert not open_
    lines = motion.split("\n")[1:]
    frames, time_s = int(lines[0].removeprefix("Frames: ")), float(lines[1].removeprefix("Frame Time: "))
    values = np.array([line.split() for line in lines[2:] if line], float)
    assert values.shape == (frames, len(channels))
    return Bvh(names, parents, np.array(offsets), channels, time_s, values)
