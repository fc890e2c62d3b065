"""Output formats, one file each. The file's name is the extension: `dune reconstruct -o scene.glb` uses formats/glb.py.

A format is offered by the commands whose function it defines:

`write_scene(path, scene: SceneData) -> list[str]` for `dune reconstruct`, and for `dune human` if it takes a surface.
It returns the names of the fields or arrays in the file. Literals beside it describe the format:

- `CONTENT`: what the file holds of a scene, preferred first: "points", "surface" (triangle meshes) or "arrays";
- `OFFSET` (default False): coordinates are written less the `world_offset`, for readers that use float32;
- `AXES` (default ""): the file's axes, where they are not OpenCV's;
- `UNLIT` (default False): viewers show the colours without a light;
- `TEXTURE` (default None): the endings of the files beside it that a textured surface has; None where it holds no
  texture;
- `PACKAGES` (default ()): what it needs of the extra "geo";
- `NAMED` (default False): meshes keep their names, so that people can stand beside the scene's own.

`write_animation(path, data: AnimationData) -> list[Path]` for `dune human` of a video: a file of moving bodies
(io/animation.py). It returns the files. `ANIMATION_AXES` names their axes.

`write_depth(path, depth: DepthData) -> dict` for `dune depth`. It returns what the JSON beside the file says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dune_cli import plugins

if TYPE_CHECKING:
    import numpy as np

    from dune_cli.geometry.camera_models import Camera
    from dune_cli.io.meshes import Frustum, Mesh


OPENCV_AXES = "x right, y down, z forward"


@dataclass(frozen=True)
class SceneData:
    """What a format writes of a scene: `points` with what belongs to them, `meshes` (points are None) or `arrays`.

    `points` (M, 3), `colors` (M, 3) uint8, `confidence` (M,), `normals` (M, 3); of scenes that were read, the
    `class_colors` (M, 3) uint8 of the points' classes. OpenCV axes. Coordinates are the scene's own: those of the world
    less `world_offset` (3,), where there is one; `arrays` are in the world. A georeferenced scene has `axes` of its
    own, in words, which may have z up (`z_up`), and `crs_offset` (3,), to be added for the coordinates of the system
    `crs_wkt` (None for a local one).
    """

    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    confidence: np.ndarray | None = None
    normals: np.ndarray | None = None
    meshes: Sequence[Mesh] = ()
    cameras: Sequence[Frustum] = ()
    arrays: Mapping[str, np.ndarray] | None = None
    world_offset: np.ndarray | None = None
    class_colors: np.ndarray | None = None
    axes: str = OPENCV_AXES
    z_up: bool = False
    crs_offset: np.ndarray | None = None
    crs_wkt: str | None = None

    def kept(self, chosen: np.ndarray) -> SceneData:
        """The scene with the `chosen` ones of its points, by a mask (M,) or by indices."""
        fields = ("points", "colors", "confidence", "normals", "class_colors")
        values = {name: getattr(self, name) for name in fields}
        return replace(self, **{name: value if value is None else value[chosen] for name, value in values.items()})

    def in_world(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in the coordinates of the world: float64 where there is a `world_offset`."""
        return points if self.world_offset is None else points.astype("float64") + self.world_offset


@dataclass(frozen=True)
class DepthData:
    """What a format writes of a photo's depth: `depth` (H, W) z in metres, NaN where there is none.

    The photo is `rgb` (H, W, 3) uint8 with intrinsics `K` (3, 3); `confidence` is (H, W) or None. A point cloud takes
    every `stride_px`-th pixel. lens: the photo's camera, where it has distortion, which `K` says nothing of.
    """

    depth: np.ndarray
    rgb: np.ndarray
    K: np.ndarray
    confidence: np.ndarray | None = None
    stride_px: int = 1
    lens: Camera | None = None

    def points(self, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """(N, 3) points in the camera's frame on the rays of `pixels` (N, 2), at `depth` z (N)."""
        from dune_cli.geometry.cameras import backproject

        if self.lens is None:
            return backproject(pixels, depth, self.K)
        rays = self.lens.unproject(pixels)
        return rays * (depth / rays[:, 2])[:, None]


def names(function: str, first: str = "", content: str = "") -> list[str]:
    """The formats that define `function`, `first` in front; with `content` those whose CONTENT includes it."""
    offered = plugins.names(__name__, function)
    if content:
        offered = [name for name in offered if content in plugins.constant(__name__, name, "CONTENT")]
    return sorted(offered, key=lambda name: name != first)


def constant(path: Path, key: str, default: Any) -> Any:
    """The literal `key` of the format of `path`, which is not imported; `default` where it has none."""
    return plugins.constant(__name__, _name(path), key, default)


def of(path: Path) -> ModuleType:
    """The format of `path`, by its extension."""
    return plugins.load(__name__, _name(path))


def _name(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")
