"""A small room with walls on all sides and three boxes, textured by noise of every scale, seen by cameras of any model:
exact poses, also for panoramas. Rendered once a test run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from support.shared import shared_file
from support.synthetic_scenes import seen, texture

TEXELS_A_METRE = 60
GPANO = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:ProjectionType="equirectangular"/></rdf:RDF>'
    b"</x:xmpmeta>"
)
Face = tuple[np.ndarray, np.ndarray, np.ndarray]  # corner, side, side


def faces() -> list[Face]:
    """The room is 6 x 4 x 8 m; x right, y down, z forward, the origin near its middle."""
    listed = [
        ([-3, -2, 4], [6, 0, 0], [0, 4, 0]),
        ([-3, -2, -4], [0, 0, 8], [0, 4, 0]),
        ([3, -2, 4], [0, 0, -8], [0, 4, 0]),
        ([-3, 2, 4], [6, 0, 0], [0, 0, -8]),
        ([-3, -2, -4], [6, 0, 0], [0, 0, 8]),
        ([3, -2, -4], [-6, 0, 0], [0, 4, 0]),
    ]
    for (x, y, z), (a, b, c) in (((-1.6, 1.1, 2.2), (0.5, 0.9, 0.5)), ((1.8, 1.3, -2), (0.6, 0.7, 0.5))):
        listed += [
            ([x - a, y - b, z - c], [2 * a, 0, 0], [0, 2 * b, 0]),
            ([x + a, y - b, z + c], [-2 * a, 0, 0], [0, 2 * b, 0]),
            ([x - a, y - b, z + c], [0, 0, -2 * c], [0, 2 * b, 0]),
            ([x + a, y - b, z - c], [0, 0, 2 * c], [0, 2 * b, 0]),
            ([x - a, y - b, z + c], [2 * a, 0, 0], [0, 0, -2 * c]),
        ]
    return [(np.array(o, float), np.array(u, float), np.array(v, float)) for o, u, v in listed]


def place(index: int, turn_deg: float = 0.0) -> np.ndarray:
    """(4, 4) world_from_cam: places on a loop through the room, each turned and tilted otherwise."""
    angle = 2 * np.pi * index / 5
    centre = (0.9 * np.cos(angle), 0.3 * np.sin(2 * angle + 1), 1.0 * np.sin(angle))
    heading = np.radians(turn_deg + 75 * index)
    rotation = poses.rotation_from_rotvec(np.array([0, heading, 0])) @ poses.rotation_from_rotvec(
        np.array([0.06 * np.sin(3 * index + 1), 0, 0.08 * np.cos(2 * index)])
    )
    return poses.from_rotation_translation(rotation, np.array(centre))


def render(camera: Camera, world_from_cam: np.ndarray, samples: int = 2) -> np.ndarray:
    """The photo (H, W, 3) uint8 of a camera in the room; black where its model has no ray."""
    words = [camera.model, camera.params, camera.width, camera.height, np.ravel(world_from_cam).tolist(), samples]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, seen(camera, world_from_cam, samples, _colours))

    return np.load(shared_file(f"room-{hashlib.sha256(repr(words).encode()).hexdigest()[:24]}.npy", write))


def write_panorama(path: Path, rgb: np.ndarray, tagged: bool = True) -> Path:
    """Writes a JPEG whose XMP says that it is a sphere, or does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, quality=97, subsampling=0, **({"xmp": GPANO} if tagged else {}))
    return path


def _colours(picture: np.ndarray, origin: np.ndarray) -> np.ndarray:
    rays = picture.reshape(-1, 3)
    nearest, colour = np.full(len(rays), np.inf), np.zeros((len(rays), 3))
    for number, (corner, u, v) in enumerate(faces()):
        normal = np.cross(u, v)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = ((corner - origin) @ normal) / (rays @ normal)
            at = origin + rays * z[:, None] - corner
            a, b = at @ u / (u @ u), at @ v / (v @ v)
            hit = np.flatnonzero((z > 1e-6) & (z < nearest) & (a >= 0) & (a <= 1) & (b >= 0) & (b <= 1))
        texel = np.stack([a[hit] * np.linalg.norm(u), b[hit] * np.linalg.norm(v)], -1) * TEXELS_A_METRE
        x, y = np.floor(texel).astype(int).T
        fx, fy = np.modf(texel)[0].T[..., None]
        image = texture(7, number)
        nearest[hit] = z[hit]
        colour[hit] = (image[y, x] * (1 - fx) + image[y, x + 1] * fx) * (1 - fy) + (
            image[y + 1, x] * (1 - fx) + image[y + 1, x + 1] * fx
        ) * fy
    return colour.reshape(picture.shape)
