"""Depth and cameras of any number of views in one pass, by Depth Anything 3 (docs/models/depth-anything-3.md).

`load_multiview` joins the network with its preparation, with given poses and, where one is named, with a metric model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dune_cli.checkpoints.loader import load, load_depth, load_two_view, open_checkpoint
from dune_cli.errors import UserError
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.geometry.pose_conditioning import normalised_poses, similarity_to_predicted
from dune_cli.geometry.poses import inverse
from dune_cli.geometry.ray_cameras import camera_from_rays
from dune_cli.geometry.sim3 import move_poses, scale_of
from dune_cli.io.bounded_resize import METHODS, bounded_resize, cropped_to_smallest
from dune_cli.io.preprocess import Prepared
from dune_cli.models.da3_backbone import REFERENCE_STRATEGIES
from dune_cli.models.da3_cameras import encode_cameras
from dune_cli.models.depth_anything3 import (
    PROCESS_SIZE_PX,
    MonocularDepth,
    MultiViewNetwork,
    MultiViewOutput,
    combine_with_metric,
)
from dune_cli.models.mast3r import TwoViewModel
from dune_cli.provenance import Source

CAMERAS = ("decoder", "rays")


@dataclass(frozen=True)
class MultiViewConfig:
    """`size_px`, `method`: of the preparation (`io/bounded_resize.py`). `reference`: how the reference view is chosen.
    `cameras`: those of the camera decoder, or of the rays (by RANSAC, seeded with `seed`). `keep_given_poses`: given
    poses are returned as they are, with depth in their unit; else they are moved into the predicted world."""

    size_px: int = PROCESS_SIZE_PX
    method: str = METHODS[0]
    reference: str = "saddle_balanced"
    cameras: str = CAMERAS[0]
    keep_given_poses: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("reference", tuple(REFERENCE_STRATEGIES)), ("cameras", CAMERAS)):
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
        if self.size_px < 1:
            raise UserError(f"size_px {self.size_px} is no size; give pixels, such as {PROCESS_SIZE_PX}")


class MultiViewModel(nn.Module):
    """Views of one scene to depth, confidence and cameras. `metric`: a model whose depth sets the scale and which
    finds the sky."""

    def __init__(self, network: MultiViewNetwork, metric: MonocularDepth | None = None) -> None:
        super().__init__()
        self.network, self.metric = network, metric

    @property
    def source(self) -> Source:
        """The weights of the network."""
        return self.network.source

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result."""
        return [self.network.source, *([] if self.metric is None else [self.metric.source])]

    @property
    def patch(self) -> int:
        return self.network.patch

    def prepare(self, photos: Sequence[np.ndarray], config: MultiViewConfig = MultiViewConfig()) -> list[Prepared]:
        """photos (H, W, 3) uint8 of any sizes -> network inputs of one size."""
        return cropped_to_smallest([bounded_resize(rgb, config.size_px, self.patch, config.method) for rgb in photos])

    def forward(
        self,
        images: torch.Tensor | Sequence[np.ndarray | torch.Tensor],
        extrinsics: Any = None,
        intrinsics: Any = None,
        config: MultiViewConfig = MultiViewConfig(),
    ) -> MultiViewOutput:
        """images -> MultiViewOutput at the pixels of the network's input.

        images: (V, 3, H, W) RGB in [0, 1], used as they are where their sides are multiples of the patch. Such a tensor
        with other sides, and a list of photos of any sizes, (H, W, 3) uint8 or (3, H, W) in [0, 1], is prepared.
        extrinsics (V, 4, 4) or (V, 3, 4): cam_from_world. intrinsics (V, 3, 3) in pixels of `images`, measured from the
        corner as all K here are (the centre is W/2, H/2): they count only with extrinsics. With both, depth and cameras
        are in the unit of the given poses (`config`).

        Raises ValueError for other shapes, for extrinsics without intrinsics, and for given poses of fewer than three
        views or with centres on one line; UserError where the metric model cannot set the scale.
        """
        inputs, network_from_image = self._inputs(images, config)
        given = None if extrinsics is None else _poses(extrinsics, len(inputs))
        if given is not None and intrinsics is None:
            raise ValueError("extrinsics were given without intrinsics; give both, or neither")
        encodings, K = None, None
        if given is not None:
            K = network_from_image @ _checked(intrinsics, len(inputs), (3, 3), "intrinsics")
            size = (inputs.shape[-2], inputs.shape[-1])
            encodings = encode_cameras(torch.from_numpy(normalised_poses(given)), torch.from_numpy(K), size).float()
        out = self.predict(inputs, encodings, config)
        if given is None or K is None:
            return out
        return aligned_to_given(out, given, K, config.keep_given_poses)

    def predict(
        self, inputs: torch.Tensor, encodings: torch.Tensor | None = None, config: MultiViewConfig = MultiViewConfig()
    ) -> MultiViewOutput:
        """inputs (V, 3, H, W), sides multiples of the patch; encodings (V, 9) of given cameras -> the prediction, in
        metres where there is a metric model."""
        device = next(self.network.parameters()).device
        inputs = inputs.to(device)
        encodings = None if encodings is None else encodings.to(device)
        out = self.network(inputs, encodings, config.reference, rays=config.cameras == "rays")
        if config.cameras == "rays":
            out = with_ray_cameras(out, config.seed)
        if self.metric is None:
            return out
        try:
            return combine_with_metric(out, self.metric.maps(inputs))
        except ValueError as error:
            raise UserError(str(error)) from error

    def _inputs(
        self, images: torch.Tensor | Sequence[np.ndarray | torch.Tensor], config: MultiViewConfig
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The network's input, and (V, 3, 3) its pixels from those of `images`, both measured from the corner."""
        if isinstance(images, torch.Tensor):
            if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
                raise ValueError(f"images must be (V, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
            if not any(side % self.patch for side in images.shape[-2:]):
                return images, np.tile(np.eye(3), (len(images), 1, 1))
        if not len(images):
            raise ValueError("no views were given; give one or more")
        prepared = self.prepare([_photo(image) for image in images], config)
        transforms = np.stack([from_corner(one.network_from_image) for one in prepared])
        return torch.from_numpy(np.stack([one.image for one in prepared])), transforms


def load_multiview(
    name_or_path: str | Path, metric: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> MultiViewModel:
    """A multi-view model of Depth Anything 3 (DA3-SMALL, DA3-BASE): `model(images, extrinsics=None, intrinsics=None)`.

    `metric`: name or file of DA3METRIC-LARGE, which makes lengths metres and finds the sky. "auto" is float32: geometry
    is made of the outputs. Raises WeightsMissing, CheckpointError, UserError.
    """
    dtype = "float32" if dtype == "auto" else dtype
    network = load(name_or_path, "multi-view", device, dtype)
    if metric is None:
        return MultiViewModel(network).eval()
    metric_model = load_depth(metric, device=device, dtype=dtype)
    if not isinstance(metric_model, MonocularDepth) or not metric_model.metric:
        raise UserError(f"{metric} is no metric model of Depth Anything 3; da3metric-large is one")
    return MultiViewModel(network, metric_model).eval()


def load_scene_model(
    name_or_path: str | Path,
    encoder: str | Path | None = None,
    metric: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> TwoViewModel | MultiViewModel:
    """The two-view or multi-view model behind a name or a file. `encoder`: of a two-view model; `metric`: of a
    multi-view one. UserError where the other is given; else as the loader of each."""
    if open_checkpoint(name_or_path, "two-view", "multi-view").adapter.KIND == "two-view":
        if metric is not None:
            raise UserError(
                f"{name_or_path} is a two-view model, which takes no metric model; leave --metric-model out"
            )
        return load_two_view(name_or_path, encoder, device, dtype)
    if encoder is not None:
        raise UserError(f"{name_or_path} has its own encoder; leave --encoder out")
    return load_multiview(name_or_path, metric, device, dtype)


def from_corner(transform: np.ndarray) -> np.ndarray:
    """(3, 3) a pixel transform, or a K, of pixels measured from the corner, from one with centres at integers."""
    return _shift(HALF_PIXEL) @ transform @ _shift(-HALF_PIXEL)


def K_to_centres(K: np.ndarray) -> np.ndarray:
    """(..., 3, 3) K with pixel centres at integers from one whose pixels are measured from the corner."""
    return _shift(-HALF_PIXEL) @ np.asarray(K, dtype=np.float64)


def K_from_centres(K: np.ndarray) -> np.ndarray:
    """(..., 3, 3) the inverse of `K_to_centres`."""
    return _shift(HALF_PIXEL) @ np.asarray(K, dtype=np.float64)


def _shift(by: float) -> np.ndarray:
    return np.array([[1, 0, by], [0, 1, by], [0, 0, 1.0]])


def with_ray_cameras(out: MultiViewOutput, seed: int) -> MultiViewOutput:
    """The output with the cameras that its rays tell. UserError where a view's rays are no camera's."""
    assert out.rays is not None and out.ray_confidence is not None
    size = (out.depth.shape[-2], out.depth.shape[-1])
    rays, confidence = out.rays.double().cpu().numpy(), out.ray_confidence.double().cpu().numpy()
    try:
        cameras = [camera_from_rays(one, sure, size, seed) for one, sure in zip(rays, confidence)]
    except ValueError as error:
        raise UserError(f"the rays of a view are no camera's: {error}; use the decoder's cameras") from error
    poses = inverse(np.stack([pose for pose, _ in cameras]))
    return replace(
        out,
        cam_from_world=torch.from_numpy(poses).to(out.cam_from_world),
        K=torch.from_numpy(np.stack([K for _, K in cameras])).to(out.K),
    )


def aligned_to_given(out: MultiViewOutput, given: np.ndarray, K: np.ndarray, keep_given: bool) -> MultiViewOutput:
    """The output in the unit of the given poses `cam_from_world` (V, 4, 4), with the given K (V, 3, 3).

    `keep_given`: the poses are the given ones, depth is divided by the scale of the similarity that takes them to the
    predicted ones. Else they are moved into the predicted world, and depth stays. ValueError as
    `similarity_to_predicted`.
    """
    world_from_cam = inverse(given)
    predicted = inverse(out.cam_from_world.double().cpu().numpy())
    predicted_from_given = similarity_to_predicted(world_from_cam, predicted)
    poses, scale = given, 1.0
    if keep_given:
        scale = float(scale_of(predicted_from_given))
    else:
        poses = inverse(move_poses(predicted_from_given, world_from_cam))
    return replace(
        out,
        depth=out.depth / scale,
        cam_from_world=torch.from_numpy(poses).to(out.cam_from_world),
        K=torch.from_numpy(K).to(out.K),
        pose_scale=scale,
    )


def _photo(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of a photo, or of a tensor (3, H, W) in [0, 1]."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(f"a photo must be (3, H, W) in [0, 1]; received {tuple(image.shape)}")
        image = (255 * image.float()).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(image)


def _poses(extrinsics: Any, count: int) -> np.ndarray:
    poses = np.asarray(torch.as_tensor(extrinsics).double().cpu())
    if poses.shape == (count, 3, 4):
        poses = np.concatenate([poses, np.tile([[[0.0, 0.0, 0.0, 1.0]]], (count, 1, 1))], 1)
    return _checked(poses, count, (4, 4), "extrinsics")


def _checked(values: Any, count: int, shape: tuple[int, int], name: str) -> np.ndarray:
    array = np.asarray(torch.as_tensor(values).double().cpu())
    if array.shape != (count, *shape):
        raise ValueError(f"{name} must be {(count, *shape)}, one a view; received {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold numbers that are not finite")
    return array
