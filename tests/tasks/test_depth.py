"""Depth of photos: what a model sees and where its numbers land."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.geometry.cameras import K_from_focal, K_from_fov, project
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.photos import Photo
from dune_cli.models.mast3r import TwoViewDepth, TwoViewModel
from dune_cli.tasks import depth as task


class Network(torch.nn.Module):
    """The facts of a two-view model that `predict` asks for."""

    patch, size, crop_square_to_4_3 = 16, 128, False


class FlatGround(TwoViewDepth):
    """Sees a tilted plane through a camera of known focal length, `focal_px` on its own grid; noise where unsure."""

    def __init__(self, focal_px: float, confidence: float = 3.0) -> None:
        torch.nn.Module.__init__(self)
        self.model = Network()
        self.focal_px, self.certainty = focal_px, confidence

    def points(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height) + 0.0, torch.arange(width) + 0.0, indexing="ij")
        z = 2 + 0.01 * x + 0.005 * y
        rays = torch.stack([(x - (width - 1) / 2), (y - (height - 1) / 2), torch.full_like(x, self.focal_px)], -1)
        return (rays / self.focal_px * z[..., None])[None], torch.full((1, height, width), self.certainty)

    def forward(self, images: torch.Tensor, flip: bool = False) -> torch.Tensor:
        return self.points(images)[0][..., 2]


def photo(width: int, height: int) -> Photo:
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Photo(Path("p.png"), rgb, "0" * 64)


def default(photo: Photo) -> tuple[np.ndarray, str]:
    return K_from_fov(55, photo.width, photo.height), "default"


@pytest.mark.parametrize("width, height", [(256, 192), (192, 256), (128, 96), (64, 48)])
def test_the_focal_length_comes_from_the_points(width: int, height: int) -> None:
    seen = photo(width, height)
    result = task.predict(FlatGround(110.0), seen, default(seen))
    assert result.focal_source == "estimated"
    assert result.K[0, 0] == pytest.approx(110 * max(width, height) / 128, rel=1e-4)
    assert result.K[:2, 2].tolist() == [(width - 1) / 2, (height - 1) / 2]
    assert max(result.network_size) == 128
    assert result.depth.shape == (height, width)
    assert result.valid.all()


@pytest.mark.parametrize("source", ["given", "exif"])
def test_a_known_camera_stays(source: str) -> None:
    seen = photo(128, 96)
    K = K_from_focal(77.0, 128, 96)
    result = task.predict(FlatGround(110.0), seen, (K, source))
    assert np.array_equal(result.K, K)
    assert result.focal_source == source


def test_points_that_are_not_trusted_give_no_focal_length() -> None:
    seen = photo(128, 96)
    result = task.predict(FlatGround(110.0, confidence=1.2), seen, default(seen))
    assert result.focal_source == "default"


def cloud(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points, colours and confidence of a PLY."""
    read = read_ply(path)
    points, colors = (np.stack([read[name] for name in names], 1) for names in ("xyz", ("red", "green", "blue")))
    return points, colors, read.get("confidence")


def test_what_the_network_did_not_see_has_no_depth(tmp_path: Path) -> None:
    seen = photo(128, 90)  # 90 is cropped to 80
    result = task.predict(FlatGround(110.0), seen, default(seen))
    assert result.network_size == (128, 80)
    assert result.valid.sum() == 128 * 80
    assert not result.valid[:5].any()
    assert not result.valid[-5:].any()
    assert np.allclose(
        result.depth[5:85], FlatGround(110.0).points(torch.zeros(1, 3, 80, 128))[0][0, ..., 2], atol=1e-6
    )
    assert task.write(result, tmp_path / "cloud.ply")["points"]["stride_px"] == 1
    points, colors, confidence = cloud(tmp_path / "cloud.ply")
    pixels = project(points, result.K)
    assert np.allclose(pixels, np.rint(pixels), atol=1e-4)
    x, y = np.rint(pixels).astype(int).T
    assert np.array_equal(colors, seen.rgb[y, x])
    assert confidence is not None
    assert np.allclose(confidence, 3.0)
    assert np.allclose(points[:, 2], result.depth[y, x])


def test_flip_is_the_mean_with_the_mirror_image() -> None:
    seen = photo(128, 96)
    plain, mean = (task.predict(FlatGround(110.0), seen, default(seen), flip=flip).depth for flip in (False, True))
    assert np.allclose(mean, (plain + plain[:, ::-1]) / 2, atol=1e-6)


def test_a_large_photos_cloud_is_as_dense_as_the_network_saw(tmp_path: Path) -> None:
    seen = photo(512, 384)
    result = task.predict(FlatGround(110.0), seen, default(seen))
    format_fields = task.write(result, tmp_path / "cloud.ply")["points"]
    points, colors, _ = cloud(tmp_path / "cloud.ply")
    assert format_fields["stride_px"] == 4
    assert len(points) == format_fields["count"] == 128 * 96
    pixels = np.rint(project(points, result.K)).astype(int)
    assert np.array_equal(colors, seen.rgb[pixels[:, 1], pixels[:, 0]])
    assert (pixels % 4 == 0).all()


def test_the_fake_has_what_a_two_view_model_has() -> None:
    assert all(hasattr(TwoViewModel, name) for name in ("patch", "size", "crop_square_to_4_3"))
