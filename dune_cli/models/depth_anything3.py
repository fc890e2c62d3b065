"""Depth Anything 3 (docs/models/depth-anything-3.md): any number of views, and single photos.

Source: arXiv 2511.10647. Parts: `da3_backbone`, `da3_heads`, `da3_cameras`. Heads and cameras run in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.da3_backbone import Da3Backbone
from dune_cli.models.da3_cameras import CameraDecoder, CameraEncoder, decode_cameras
from dune_cli.models.da3_heads import Da3Head, Da3Maps
from dune_cli.provenance import Source

PROCESS_SIZE_PX = 504  # long side of the network's input
SKY, SKY_MASK = 0.3, 0.5  # from here on depth is filled; from here on the mask says sky
SKY_QUANTILE = 0.99  # of the other pixels' depth: the depth of the sky
FEW_PIXELS = 10  # sky, or the rest, of no more pixels than this is none
CANONICAL_FOCAL_PX = 300.0  # at which the metric model's numbers are metres
MAX_SKY_DEPTH_M = 200.0
MIN_METRIC_DEPTH, MIN_DEPTH = 0.01, 0.001  # of pixels that decide the scale


@dataclass(frozen=True)
class MultiViewOutput:
    """What the network predicts for V views of one scene, at the images' pixels (H, W).

    depth: z, in the unit of the translations; confidence, from 1 up: (V, H, W). cam_from_world (V, 4, 4); K (V, 3, 3),
    pixels measured from the image's corner (centre at W/2, H/2). pose_encoding (V, 9): see `da3_cameras`. rays (V, 8h,
    8w, 6) and ray_confidence (V, 8h, 8w): where they were asked for. sky (V, H, W) and metric_scale: of
    `combine_with_metric`. pose_scale: what depth was divided by, with given poses. reference_view: the view that the
    others were seen from.
    """

    depth: torch.Tensor
    confidence: torch.Tensor
    cam_from_world: torch.Tensor
    K: torch.Tensor
    pose_encoding: torch.Tensor
    reference_view: int
    rays: torch.Tensor | None = None
    ray_confidence: torch.Tensor | None = None
    sky: torch.Tensor | None = None
    metric_scale: float | None = None
    pose_scale: float | None = None

    @property
    def world_from_cam(self) -> torch.Tensor:
        """(V, 4, 4) the inverse of `cam_from_world`."""
        rotation = self.cam_from_world[:, :3, :3].transpose(-1, -2)
        pose = self.cam_from_world.clone()
        pose[:, :3, :3] = rotation
        pose[:, :3, 3:] = -rotation @ self.cam_from_world[:, :3, 3:]
        return pose


class MultiViewNetwork(nn.Module):
    """DA3-SMALL, DA3-BASE: views of one scene to depth, confidence, rays and cameras, in one pass."""

    source = Source("none")

    def __init__(
        self, backbone: Da3Backbone, head: Da3Head, encoder: CameraEncoder | None, decoder: CameraDecoder
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.camera_encoder, self.camera_decoder = encoder, decoder

    @property
    def patch(self) -> int:
        return self.backbone.patch

    def forward(
        self,
        images: torch.Tensor,
        encodings: torch.Tensor | None = None,
        strategy: str = "saddle_balanced",
        rays: bool = False,
        alone: bool = False,
    ) -> MultiViewOutput:
        """images (V, 3, H, W) RGB in [0, 1] -> MultiViewOutput.

        encodings (V, 9): of given cameras (`da3_cameras.encode_cameras`). strategy, alone: as in `Da3Backbone.views`.
        rays: also predict the rays. Raises ValueError with the sizes when a side is no patch multiple.
        """
        tokens = None
        if encodings is not None:
            if self.camera_encoder is None:
                raise ValueError("these weights have no camera encoder (model.cam_enc); leave the poses out")
            if encodings.shape != (len(images), 9):
                raise ValueError(f"encodings must be ({len(images)}, 9), one a view; received {tuple(encodings.shape)}")
            tokens = self.camera_encoder(encodings)
        features = self.backbone.views(images, tokens, strategy, alone)
        maps = self.head(features.levels, features.grid, rays)
        assert features.camera is not None and maps.confidence is not None
        encoding = self.camera_decoder(features.camera)
        cam_from_world, K = decode_cameras(encoding, (images.shape[-2], images.shape[-1]))
        return MultiViewOutput(
            maps.depth,
            maps.confidence,
            cam_from_world,
            K,
            encoding,
            features.reference_view,
            maps.rays,
            maps.ray_confidence,
        )


class MultiViewDepth(nn.Module):
    """Depth of single images by a multi-view network, each image a scene of its own."""

    source = Source("none")

    def __init__(self, network: MultiViewNetwork) -> None:
        super().__init__()
        self.network = network

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result."""
        return [self.source]

    @property
    def patch(self) -> int:
        return self.network.patch

    def forward(self, images: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], any sides -> relative depth z (B, H, W): its unit is unknown.

        Sides that are no patch multiples: see `at_patches`. `flip`: the mean with the mirrored prediction of the
        mirrored image.
        """
        if flip:
            return (self(images) + self(images.flip(-1)).flip(-1)) / 2
        inputs = at_patches(images, self.patch)
        depth = self.network(inputs, alone=True).depth
        return _at_size(depth, (images.shape[-2], images.shape[-1]))


class MonocularDepth(nn.Module):
    """DA3METRIC-LARGE (`metric`) and DA3MONO-LARGE: depth and sky of images that do not see each other."""

    source = Source("none")

    def __init__(self, backbone: Da3Backbone, head: Da3Head, metric: bool) -> None:
        super().__init__()
        self.backbone, self.head, self.metric = backbone, head, metric

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result."""
        return [self.source]

    @property
    def patch(self) -> int:
        return self.backbone.patch

    def raw(self, images: torch.Tensor) -> Da3Maps:
        """images (B, 3, H, W), sides multiples of the patch -> depth before the sky is filled, and sky."""
        features = self.backbone.views(images)
        return self.head(features.levels, features.grid)

    def maps(self, images: torch.Tensor) -> Da3Maps:
        """As `raw`, the sky filled: where it is, and how far the rest goes, is decided over all images of the call."""
        raw = self.raw(images)
        assert raw.sky is not None
        return replace(raw, depth=fill_sky(raw.depth, raw.sky))

    def forward(self, images: torch.Tensor, intrinsics: torch.Tensor | None = None, flip: bool = False) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], any sides -> depth z (B, H, W), the sky filled.

        intrinsics (3, 3) or (B, 3, 3), in pixels of `images`: the depth of a metric model is then in metres. Without
        them, and of the other model, it is relative (larger is farther). Sides that are no patch multiples: see
        `at_patches`. `flip`: the mean with the mirrored prediction of the mirrored image. ValueError for intrinsics of
        another shape, and for those given to a model that is not metric.
        """
        if flip:
            return (self(images, intrinsics) + self(images.flip(-1), intrinsics).flip(-1)) / 2
        inputs = at_patches(images, self.patch)
        depth = _at_size(self.maps(inputs).depth, (images.shape[-2], images.shape[-1]))
        if intrinsics is None:
            return depth
        if not self.metric:
            raise ValueError("these weights give relative depth, which no intrinsics make metric; leave them out")
        K = torch.as_tensor(intrinsics, device=depth.device)
        if K.shape not in ((3, 3), (len(images), 3, 3)):
            raise ValueError(f"intrinsics must be (3, 3) or ({len(images)}, 3, 3); received {tuple(K.shape)}")
        scale = torch.tensor([inputs.shape[-1] / images.shape[-1], inputs.shape[-2] / images.shape[-2]])
        focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1).float() * scale.to(K.device)
        return depth * metres_per_unit(focal).reshape(-1, 1, 1)


def metres_per_unit(focal_px: torch.Tensor) -> torch.Tensor:
    """(...) what the metric model's depth is multiplied by. focal_px (..., 2): fx, fy, in pixels of its input."""
    return focal_px.mean(-1) / CANONICAL_FOCAL_PX


def at_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """images (B, 3, H, W) with sides that are multiples of the patch: as they are. Others: resized (bilinear,
    antialiased) to the nearest such sides, the longer one at most PROCESS_SIZE_PX. ValueError for another shape."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
    size = (images.shape[-2], images.shape[-1])
    if not any(side % patch for side in size):
        return images
    scale = min(1.0, PROCESS_SIZE_PX / max(size))
    new = tuple(max(1, round(side * scale / patch)) * patch for side in size)
    return F.interpolate(images.float(), size=new, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _at_size(depth: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(depth.shape[-2:]) == size:
        return depth
    return F.interpolate(depth[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The linear q-quantile of all values, of any number (torch.quantile stops at 16 million)."""
    ordered = values.flatten().sort().values
    position = q * (len(ordered) - 1)
    low = int(position)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], position - low)


def fill_sky(depth: torch.Tensor, sky: torch.Tensor) -> torch.Tensor:
    """depth and sky (V, H, W) -> depth in which sky pixels are as far as the 0.99 quantile of all others.

    docs/models/depth-anything-3.md, "Sky and metres". The quantile is that of all pixels, where the published code
    draws 100 000 at random.
    """
    is_sky = sky >= SKY
    count = int(is_sky.sum())
    if count <= FEW_PIXELS or is_sky.numel() - count <= FEW_PIXELS:
        return depth
    return torch.where(is_sky, quantile(depth[~is_sky], SKY_QUANTILE), depth)


def sky_mask(sky: torch.Tensor) -> torch.Tensor:
    """(V, H, W) bool: the published mask, of another threshold than the filled depth has."""
    return sky >= SKY_MASK


def combine_with_metric(views: MultiViewOutput, metric: Da3Maps) -> MultiViewOutput:
    """The views' depth and cameras in metres, by the metric model's depth of the same images (`MonocularDepth.maps`).

    docs/models/depth-anything-3.md, "Sky and metres". One scale serves all views; sky pixels become as far as the
    0.99 quantile of the others, at most 200 m, with confidence 1. Medians and quantiles are those of all pixels.
    ValueError where no more than 10 pixels are left without the sky, or none of them decides the scale.
    """
    assert metric.sky is not None
    not_sky = metric.sky < SKY
    if int(not_sky.sum()) <= FEW_PIXELS:
        raise ValueError(
            f"the metric model takes all but {int(not_sky.sum())} pixels for sky, so that it cannot set the scale; "
            "leave it out, or take other photos"
        )
    focal = torch.stack([views.K[:, 0, 0], views.K[:, 1, 1]], -1)
    metres = metric.depth * metres_per_unit(focal)[:, None, None]
    median = quantile(views.confidence[not_sky], 0.5)
    used = not_sky & (metres > MIN_METRIC_DEPTH) & (views.depth > MIN_DEPTH) & (views.confidence >= median)
    ours, theirs = views.depth[used].double(), metres[used].double()
    square = ours.square().sum()
    if not square > 0:
        raise ValueError(
            "no pixel has a depth in both models, so that the metric one cannot set the scale; leave it out, or take "
            "other photos"
        )
    scale = float((ours * theirs).sum() / square)
    depth, pose = views.depth * scale, views.cam_from_world.clone()
    pose[:, :3, 3] *= scale
    farthest = quantile(depth[not_sky], SKY_QUANTILE).clamp(max=MAX_SKY_DEPTH_M)
    return replace(
        views,
        depth=torch.where(not_sky, depth, farthest),
        confidence=torch.where(not_sky, views.confidence, 1.0),
        cam_from_world=pose,
        sky=metric.sky,
        metric_scale=scale,
    )
