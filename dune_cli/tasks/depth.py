"""Photos to depth in metres, by a depth head, a two-view model or Depth Anything 3 (docs/file-formats.md,
`dune.depth/1`).

A head of `dune train` predicts for a canonical camera; what it measured on photos of the kind at hand decides whether
its depth is called metric, and gives the expected error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dune_cli import console
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import K_from_focal, focal_from_point_map, pixel_grid, transform_pixels
from dune_cli.io import depth_files, formats
from dune_cli.io.bounded_resize import bounded_resize
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import Prepared, fit, prepare, stretch, to_photo
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.io.video import Frame
from dune_cli.models.depth_anything3 import (
    PROCESS_SIZE_PX,
    MonocularDepth,
    MultiViewDepth,
    metres_per_unit,
    sky_mask,
)
from dune_cli.models.dinov2_heads import HeadDepth
from dune_cli.models.guided_filter import guided_upsample
from dune_cli.models.heads import HeadedEncoder
from dune_cli.models.mast3r import TwoViewDepth
from dune_cli.models.mosaic import is_outdoor
from dune_cli.mvs.depth_fill import DepthNetwork
from dune_cli.provenance import Run
from dune_cli.sfm.multiview import K_to_centres

SCHEMA = "dune.depth/1"
NYU_LONG_SIDE_PX, KITTI_LONG_SIDE_PX = 640, 1216
NYU_MAX_DEPTH_M = 10.0
MIN_CONFIDENCE = 1.5  # of points in the focal length's fit, as in `dune reconstruct`
GUIDE_PX = 768  # long side of the photo that sharpens the edges of a head's depth
SKY = "sky"

DepthModel = HeadDepth | TwoViewDepth | HeadedEncoder | MonocularDepth | MultiViewDepth


@dataclass(frozen=True)
class ExpectedError:
    """What a head of `dune train` measured on photos of one kind.

    setting: "indoor", "outdoor", or None where the photo's kind is not known. abs_rel: mean |error| / depth, of depth
    as predicted (scale "metric") or after the best scale and shift ("relative"). photos: how many were measured.
    """

    setting: str | None
    scale: str
    abs_rel: float
    photos: int

    def __str__(self) -> str:
        """One sentence for the user."""
        of = "" if self.setting is None else f" {self.setting}s"
        how = "metres" if self.scale == "metric" else "relative depth, after the best scale and shift,"
        return f"experimental: {how} of {self.photos} photos{of} were {self.abs_rel:.0%} off on average"


@dataclass(frozen=True)
class Depth:
    """A photo's depth z in metres, (H, W) float32 at the photo's pixels; NaN where there is none.

    scale: "metric", or "relative" where z is up to a factor, which makes its median 1. confidence: (H, W) of a two-view
    or multi-view model, from 1 up; else None. sky_share: of a model that finds the sky, the share of its pixels. K: (3,
    3) in the photo's pixels. focal_source: of K; given, exif, estimated (by the model) or default. network_from_image:
    (3, 3) from the photo's pixels to those of the network's input. network_size: its width and height. expected: of a
    head of `dune train`; its scale is that of the depth. straight: of a photo with a lens, which K says nothing of: the
    view that the network saw, to whose pixels network_from_image belongs.
    """

    photo: Photo
    depth: np.ndarray
    confidence: np.ndarray | None
    K: np.ndarray
    focal_source: str
    network_from_image: np.ndarray
    network_size: tuple[int, int]
    expected: ExpectedError | None = None
    scale: str = "metric"
    sky_share: float | None = None
    straight: StraightPhoto | None = None

    @property
    def valid(self) -> np.ndarray:
        """(H, W) bool: where there is a positive depth."""
        return depth_files.valid_depth(self.depth)


def predict(
    model: DepthModel,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None = None,
    flip: bool = False,
    run: Run | None = None,
    lens: Camera | None = None,
) -> Depth:
    """The photo's depth.

    camera: (K, source); a two-view model replaces a "default" K by the one that fits its points, a multi-view model by
    the one that it predicts. size_px: long side of
    the network's input. None is the size that a head was trained at (640 or 1216; as many pixels as the training images
    of a head of `dune train`), or the model's own. A head gets the whole photo, reduced if it is larger. A
    two-view model gets it as cropped by `prepare`, and has no depth elsewhere. flip: average with the horizontally
    flipped prediction. lens: the photo's camera, if it has distortion; the network sees the undistorted photo, and
    there is no depth beyond 60 degrees from the axis.
    """
    result = _predict_through(lens, model, photo, camera, size_px, flip, run or Run())
    if isinstance(model, TwoViewDepth) and result.focal_source == "default":
        console.note(f"no focal length fits the points of {photo.path.name}: the default field of view is kept")
    if isinstance(model, MonocularDepth) and model.metric and result.scale == "relative":
        console.note(f"{_without_focal(photo)}: its depth is relative; give --intrinsics or --fov-deg for metres")
    return result


def predict_frames(
    model: DepthModel,
    frames: Iterable[tuple[Frame, Photo]],
    camera: tuple[np.ndarray, str],
    size_px: int | None = None,
    flip: bool = False,
    run: Run | None = None,
    lens: Camera | None = None,
) -> Iterator[tuple[Frame, Depth]]:
    """As `predict`, of the frames of a video with their photos. All share one camera: the first focal length that fits
    a frame's points is kept."""
    run, without_focal, name = run or Run(), 0, None
    for number, (frame, photo) in enumerate(frames):
        result = _predict_through(lens, model, photo, camera, size_px, flip, run)
        if number == 0 and isinstance(model, MonocularDepth) and model.metric and result.scale == "relative":
            console.note(f"{_without_focal(photo)}: depth is relative; give --intrinsics or --fov-deg for metres")
        if isinstance(model, MultiViewDepth):
            camera = (result.K, result.focal_source)
        if isinstance(model, TwoViewDepth):
            camera, name = (result.K, result.focal_source), photo.path.name
            without_focal += result.focal_source == "default"
        yield frame, result
    if without_focal:
        console.note(
            f"no focal length fits the points of {without_focal} of the frames of {name}: theirs is the default"
        )


def _predict_through(
    lens: Camera | None,
    model: DepthModel,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None,
    flip: bool,
    run: Run,
) -> Depth:
    """As `_predict`; of a photo with a lens by way of the undistorted photo, back at the photo's pixels."""
    if lens is None or lens.is_pinhole:
        return _predict(model, photo, camera, size_px, flip, run)
    with run.stage("prepare"):
        straight = StraightPhoto.of(lens)
        undistorted = replace(photo, rgb=straight.image(photo.rgb))
    result = _predict(model, undistorted, (straight.K, camera[1]), size_px, flip, run)
    with run.stage("resample"):
        confidence = None if result.confidence is None else straight.map_in_photo(result.confidence)
        depth = straight.map_in_photo(result.depth)
    return replace(result, photo=photo, depth=depth, confidence=confidence, K=camera[0], straight=straight)


def _predict(
    model: DepthModel,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None,
    flip: bool,
    run: Run,
) -> Depth:
    if isinstance(model, HeadedEncoder):
        return _predict_head(model, photo, camera, size_px, flip, run)
    if isinstance(model, (MonocularDepth, MultiViewDepth)):
        return _predict_depth_anything(model, photo, camera, size_px, flip, run)
    with run.stage("prepare"):
        if isinstance(model, TwoViewDepth):
            network = model.model
            prepared = prepare(photo.rgb, size_px or network.size, network.patch, network.crop_square_to_4_3)
        else:
            prepared = fit(photo.rgb, size_px or default_size_px(model))
    images = torch.from_numpy(prepared.image)[None]
    confidence = None
    with run.stage("network"), torch.inference_mode():
        if isinstance(model, TwoViewDepth):
            points, confidence = (part[0].float().cpu().numpy() for part in model.points(images))
            depth = points[..., 2]
            if flip:
                depth = (depth + model(images.flip(-1)).flip(-1)[0].cpu().numpy()) / 2
        else:
            depth = model(images, flip=flip)[0].float().cpu().numpy()
    with run.stage("resample"):
        if confidence is not None:
            camera = _camera(photo, camera, points, confidence, prepared)
            confidence = to_photo(confidence, prepared.network_from_image, photo.width, photo.height)
        depth = to_photo(depth, prepared.network_from_image, photo.width, photo.height)
    return Depth(photo, depth, confidence, *camera, prepared.network_from_image, (prepared.width, prepared.height))


def _predict_head(
    model: HeadedEncoder,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None,
    flip: bool,
    run: Run,
) -> Depth:
    with run.stage("prepare"):
        prepared = head_input(model, photo, size_px)
    with run.stage("network"):
        (output,) = head_outputs(model, [prepared], flip)
    with run.stage("resample"):
        return depth_of_head(model, photo, camera, prepared, output)


HeadOutput = tuple[torch.Tensor, torch.Tensor | None]  # (1, 1, h, w) log depth, and the scene head's result


def head_input(model: HeadedEncoder, photo: Photo, size_px: int | None = None) -> Prepared:
    """A photo as a head of `dune train` takes it; size_px: see `predict`."""
    height, width = model.input_size(photo.height, photo.width, size_px)
    return stretch(photo.rgb, width, height)


@torch.inference_mode()
def head_outputs(model: HeadedEncoder, inputs: Sequence[Prepared], flip: bool = False) -> list[HeadOutput]:
    """What such a head gives for inputs of one size, in one pass."""
    images = torch.from_numpy(np.stack([prepared.image for prepared in inputs]))
    results, classes = model.with_scene(images)
    if flip:
        results = (results + model(images.flip(-1)).flip(-1)) / 2
    return [(results[k, None], None if classes is None else classes[k, None]) for k in range(len(inputs))]


@torch.inference_mode()
def depth_of_head(
    model: HeadedEncoder, photo: Photo, camera: tuple[np.ndarray, str], prepared: Prepared, output: HeadOutput
) -> Depth:
    """The photo's depth by what such a head gave for its `prepared` input; camera: see `predict`."""
    K = prepared.network_from_image @ camera[0]
    result, classes = output
    canonical = sharpened(result, photo.rgb)
    depth = canonical * np.float32(np.sqrt(K[0, 0] * K[1, 1]) / model.config.canonical_focal_px)
    setting = None
    if classes is not None and model.scene is not None:
        names = model.scene.class_names
        setting = "outdoor" if is_outdoor(classes[0], names) else "indoor"
        if SKY in names:
            depth[_probable(classes, names.index(SKY), photo)] = np.nan
    expected = expected_error(model.card.measured, setting, camera[1])
    scale = "metric" if expected is None else expected.scale
    size = (prepared.width, prepared.height)
    return Depth(photo, depth, None, *camera, prepared.network_from_image, size, expected, scale)


def filling_network(model: HeadedEncoder) -> DepthNetwork:
    """Such a head as what fills the holes of dense maps; it sees no depth in the sky where it has the bundled
    segmentation head as its scene."""

    def predict_depth(rgb: np.ndarray, K: np.ndarray) -> np.ndarray:
        return _predict_head(model, Photo(Path(), rgb, ""), (K, "given"), None, False, Run()).depth

    return DepthNetwork(predict_depth, tuple(model.sources))


def _predict_depth_anything(
    model: MonocularDepth | MultiViewDepth,
    photo: Photo,
    camera: tuple[np.ndarray, str],
    size_px: int | None,
    flip: bool,
    run: Run,
) -> Depth:
    """By the published preparation. The metric model gives metres where the focal length is known, not guessed."""
    with run.stage("prepare"):
        prepared = bounded_resize(photo.rgb, size_px or PROCESS_SIZE_PX, model.patch)
    images, to_image = torch.from_numpy(prepared.image)[None], prepared.network_from_image
    confidence, sky_share, scale = None, None, "relative"
    with run.stage("network"), torch.inference_mode():
        images = images.to(next(model.parameters()).device)
        if isinstance(model, MultiViewDepth):
            out = model.network(images)
            depth, confidence = out.depth, out.confidence[0].cpu().numpy()
            if camera[1] == "default":
                camera = np.linalg.inv(to_image) @ K_to_centres(out.K[0].double().cpu().numpy()), "estimated"
        else:
            maps = model.maps(images)
            assert maps.sky is not None
            depth, sky_share = maps.depth, float(sky_mask(maps.sky).float().mean())
        if flip:
            depth = (depth + model(images.flip(-1)).flip(-1)) / 2
        if isinstance(model, MonocularDepth) and model.metric and camera[1] != "default":
            K, scale = to_image @ camera[0], "metric"
            depth = depth * metres_per_unit(torch.tensor([K[0, 0], K[1, 1]], device=depth.device)).float()
    with run.stage("resample"):
        z = to_photo(depth[0].float().cpu().numpy(), to_image, photo.width, photo.height)
        if scale == "relative":
            z /= np.median(z)
        if confidence is not None:
            confidence = to_photo(confidence, to_image, photo.width, photo.height)
    size = (prepared.width, prepared.height)
    return Depth(photo, z, confidence, *camera, to_image, size, None, scale, sky_share)


def _without_focal(photo: Photo) -> str:
    return f"{photo.path.name} has no focal length in EXIF"


def sharpened(log_depth: torch.Tensor, rgb: np.ndarray) -> np.ndarray:
    """log_depth (1, 1, h, w) of the whole photo -> depth (H, W) float32 at its pixels, edges as in the photo.

    The guided filter works on a photo of at most GUIDE_PX; from there on depth is enlarged bilinearly.
    """
    guide = torch.from_numpy(fit(rgb, GUIDE_PX).image)[None].to(log_depth.device)
    fine = guided_upsample(log_depth.float(), guide)
    if fine.shape[-2:] != rgb.shape[:2]:
        fine = F.interpolate(fine, size=rgb.shape[:2], mode="bilinear", align_corners=False)
    return fine[0, 0].exp().cpu().numpy()


def _probable(logits: torch.Tensor, number: int, photo: Photo) -> np.ndarray:
    """(H, W) bool: pixels of the photo whose most probable class is `number`."""
    other = logits.clone()
    other[:, number] = -torch.inf
    lead = (logits[:, number] - other.amax(1))[:, None].float()
    size = (photo.height, photo.width)
    return (F.interpolate(lead, size=size, mode="bilinear", align_corners=False)[0, 0] > 0).cpu().numpy()


def expected_error(measured: Mapping[str, Any], setting: str | None, focal_source: str) -> ExpectedError | None:
    """What a head's file says of photos of a setting; of an unknown one the worst of all. None where it says nothing.

    `measured["settings"]`: setting -> {"photos", "scale", "metric", "metric_default_camera", "relative"}, the numbers
    being AbsRel. "scale" is "metric" where depth as predicted was good enough to be called that.
    """
    settings = measured.get("settings")
    if not isinstance(settings, Mapping) or not settings:
        return None
    results = []
    for name in [setting] if setting in settings else sorted(settings):
        entry = settings[name]
        kind = "metric_default_camera" if focal_source == "default" and entry["scale"] == "metric" else entry["scale"]
        results.append(ExpectedError(setting, entry["scale"], float(entry[kind]), int(entry["photos"])))
    return max(results, key=lambda one: (one.scale == "relative", one.abs_rel))


def default_size_px(model: HeadDepth) -> int:
    """The long side of a head's training images: NYU's for a maximum depth up to 10 m, else KITTI's."""
    return NYU_LONG_SIDE_PX if model.maximum <= NYU_MAX_DEPTH_M else KITTI_LONG_SIDE_PX


def _camera(
    photo: Photo, camera: tuple[np.ndarray, str], points: np.ndarray, confidence: np.ndarray, prepared: Prepared
) -> tuple[np.ndarray, str]:
    if camera[1] != "default":
        return camera
    pixels = transform_pixels(np.linalg.inv(prepared.network_from_image), pixel_grid(prepared.height, prepared.width))
    centre = np.array([(photo.width - 1) / 2, (photo.height - 1) / 2])
    focal_px = focal_from_point_map(points, pixels, centre, confidence >= MIN_CONFIDENCE)
    if focal_px is None:
        return camera
    return K_from_focal(focal_px, photo.width, photo.height), "estimated"


def write(result: Depth, path: Path) -> dict[str, Any]:
    """Writes `path` in the format of its extension and returns the format's fields of the JSON.

    A point cloud takes every `stride_px`-th pixel, so that it has about as many points as the network's input pixels.
    """
    stride_px = max(1, round(max(result.depth.shape) / max(result.network_size)))
    lens = None if result.straight is None else result.straight.camera
    data = formats.DepthData(result.depth, result.photo.rgb, result.K, result.confidence, stride_px, lens)
    return formats.of(path).write_depth(path, data)


def document(result: Depth, file: Path, format_fields: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """The JSON beside the file (`dune.depth/1`). format_fields: from `write`."""
    valid = result.valid
    depths = result.depth[valid]
    expected = result.expected
    scale = result.scale
    return {
        "schema": SCHEMA,
        "file": file.name,
        "image": {"path": str(result.photo.path), "width": result.photo.width, "height": result.photo.height},
        "scale": scale,
        "unit": "metre" if scale == "metric" else None,
        **({} if expected is None else {"expected_error": asdict(expected)}),
        **({} if result.sky_share is None else {"sky": result.sky_share}),
        **format_fields,
        "min": depths.min() if len(depths) else None,
        "max": depths.max() if len(depths) else None,
        "valid_share": float(valid.mean()),
        "K": result.K,
        "focal_source": result.focal_source,
        **({} if result.straight is None else _lens_fields(result.straight)),
        "network": {
            "width": result.network_size[0],
            "height": result.network_size[1],
            "network_from_image": result.network_from_image,
        },
        "provenance": provenance,
    }


def _lens_fields(straight: StraightPhoto) -> dict[str, Any]:
    camera = straight.camera
    return {"camera": {"model": camera.model, "params": list(camera.params)}, "undistorted_K": straight.K}
