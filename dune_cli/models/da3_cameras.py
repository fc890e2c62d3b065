"""The cameras of Depth Anything 3 (docs/models/depth-anything-3.md, "Cameras"): encoder of given ones, decoder.

Cameras of this file have pixels as the published code does: (0, 0) is the corner of the top-left pixel, so the centre
of an image is (W/2, H/2). A pose encoding (..., 9) is camera to world: translation (3), quaternion (x, y, z, w), and
the vertical and the horizontal field of view in radians.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.blocks import Block

BLOCKS, HEADS, EPS = 4, 16, 1e-5
ENCODING = 9


class CameraEncoder(nn.Module):
    """Pose encodings of the views of a scene to the tokens that stand for their cameras in the backbone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(ENCODING, width // 2), nn.Linear(width // 2, width)
        self.token_norm = nn.LayerNorm(width, EPS)
        self.trunk = nn.ModuleList(Block(width, HEADS, 4 * width, layer_scale=True, eps=EPS) for _ in range(BLOCKS))
        self.trunk_norm = nn.LayerNorm(width, EPS)

    def forward(self, encodings: torch.Tensor) -> torch.Tensor:
        """encodings (V, 9) -> tokens (V, D)."""
        x = self.token_norm(self.fc2(F.gelu(self.fc1(encodings.to(self.fc1.weight)))))[None]
        for block in self.trunk:
            x = block(x)
        return self.trunk_norm(x)[0]


class CameraDecoder(nn.Module):
    """The camera features of the views to pose encodings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.translation, self.quaternion, self.fov = (nn.Linear(width, n) for n in (3, 4, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (V, C) -> encodings (V, 9); quaternions have any length."""
        x = F.relu(self.fc2(F.relu(self.fc1(features))))
        return torch.cat([self.translation(x), self.quaternion(x), F.relu(self.fov(x))], -1)


def decode_cameras(encodings: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """encodings (V, 9), images of `size` (H, W) -> cam_from_world (V, 4, 4), K (V, 3, 3) with centre (W/2, H/2)."""
    translation, quaternion, fov = encodings.split([3, 4, 2], -1)
    cam_from_world_rotation = rotation_from_xyzw(quaternion).transpose(-1, -2)
    cam_from_world = torch.eye(4, device=encodings.device, dtype=encodings.dtype).repeat(encodings.shape[0], 1, 1)
    cam_from_world[:, :3, :3] = cam_from_world_rotation
    cam_from_world[:, :3, 3:] = -cam_from_world_rotation @ translation[..., None]
    K = torch.zeros_like(cam_from_world[:, :3, :3])
    tangents = (fov / 2).tan().clamp(min=1e-6)
    K[:, 0, 0], K[:, 1, 1] = size[1] / 2 / tangents[:, 1], size[0] / 2 / tangents[:, 0]
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = size[1] / 2, size[0] / 2, 1.0
    return cam_from_world, K


def encode_cameras(cam_from_world: torch.Tensor, K: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """cam_from_world (V, 4, 4) normalised (`geometry.pose_conditioning`), K (V, 3, 3) of images of `size` (H, W) ->
    encodings (V, 9). The principal point is not used."""
    rotation = cam_from_world[:, :3, :3].transpose(-1, -2)
    translation = -(rotation @ cam_from_world[:, :3, 3:])[..., 0]
    fov = [2 * torch.atan(side / 2 / focal) for side, focal in zip(size, (K[:, 1, 1], K[:, 0, 0]))]
    return torch.cat([translation, xyzw_from_rotation(rotation), torch.stack(fov, -1)], -1)


def rotation_from_xyzw(quaternion: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rotations of quaternions (..., 4), (x, y, z, w), of any length but zero."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def xyzw_from_rotation(rotation: torch.Tensor) -> torch.Tensor:
    """(..., 4) unit quaternions (x, y, z, w), w >= 0, of rotations (..., 3, 3).

    Each of four columns is the quaternion times four times one of its entries; the longest one keeps its digits.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    columns = torch.stack(
        [
            torch.stack([1 + a - e - i, b + d, c + g, h - f], -1),
            torch.stack([b + d, 1 - a + e - i, f + h, c - g], -1),
            torch.stack([c + g, f + h, 1 - a - e + i, d - b], -1),
            torch.stack([h - f, c - g, d - b, 1 + a + e + i], -1),
        ],
        -2,
    )
    best = columns.norm(dim=-1).argmax(-1)
    quaternion = torch.take_along_dim(columns, best[..., None, None], -2)[..., 0, :]
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
