"""Laws of ALIKED with random weights: what it leaves out of the way to the same answer changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dune_cli.models import aliked
from dune_cli.models.aliked import Aliked, DeformableConv2d, MapParts, detect


@pytest.fixture(scope="module")
def network() -> Aliked:
    torch.manual_seed(5)
    made = Aliked().eval().requires_grad_(False)
    for name, buffer in made.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return made


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Sides that are no multiples of 32, so that the photo is padded."""
    return torch.rand(1, 3, 70, 91, generator=torch.Generator().manual_seed(6))


def test_deformable_convolutions_are_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(7)
    layer = DeformableConv2d(5, 4).requires_grad_(False)
    layer.offset_conv.weight.mul_(8)  # some taps leave the map
    x = torch.randn(2, 5, 9, 12)
    offsets = layer.offset_conv(x).clamp(-3, 3)
    expected = ops.deform_conv2d(x, offsets, layer.regular_conv.weight, padding=1)
    assert offsets.abs().max() == 3
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_folded_batch_normalisation_answers_the_same(network: Aliked, image: torch.Tensor) -> None:
    expected = network.dense_map(image)
    folded = Aliked().eval().requires_grad_(False)
    folded.load_state_dict(network.state_dict())
    with torch.inference_mode():  # its activation, too, is another one
        torch.testing.assert_close(folded.fold().dense_map(image), expected, atol=2e-5, rtol=1e-3)


def test_activation_in_blocks_is_selu() -> None:
    x = torch.linspace(-30, 30, 2 * aliked.BLOCK + 8).view(1, 4, 2, -1)
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            activated = aliked._selu(x.clone(memory_format=layout))
            torch.testing.assert_close(activated, F.selu(x), atol=1e-6, rtol=1e-6)


def test_samples_are_those_of_the_whole_map(network: Aliked, image: torch.Tensor) -> None:
    padded, origin = aliked._pad(image)
    maps = MapParts(tuple(part[0].permute(1, 2, 0) for part in network._parts(padded)), origin, (91, 70))
    pixels = torch.cartesian_prod(torch.arange(0.0, 91, 9), torch.arange(0.0, 70, 3))
    values, length = maps.at(pixels)
    whole = network.dense_map(image)[0, :, pixels[:, 1].long(), pixels[:, 0].long()].T
    assert (padded.shape[-2:], origin) == ((96, 96), (2, 13))
    torch.testing.assert_close(values / length[:, None], whole, atol=1e-5, rtol=1e-3)


def test_descriptors_are_the_published_ones(network: Aliked, image: torch.Tensor) -> None:
    """As the publication writes them: the whole map, patches, grid_sample at offsets, one weighted sum."""
    found = network(image, 50, 0.0)
    dense, head = network.dense_map(image), network.desc_head
    first, _, second = head.offset_conv
    corner = found.xy.floor().long() - 1
    windows = torch.stack([dense[0, :, y : y + 3, x : x + 3] for x, y in corner.tolist()])
    offsets = F.conv2d(F.selu(F.conv2d(windows, first.weight, first.bias)), second.weight, second.bias)
    places = found.xy[:, None] + offsets.clamp(-91 / 4, 91 / 4).view(-1, 2, 16).transpose(1, 2)
    grid = 2 * places / torch.tensor([90, 69]) - 1
    samples = F.grid_sample(dense, grid[None], align_corners=True)  # (1, 128, N, 16)
    features = F.selu(head.sf_conv(samples))[0]
    expected = F.normalize(torch.einsum("cnp,pcd->nd", features, head.agg_weights), dim=1)
    assert len(found.xy) > 20 and offsets.abs().max() > 0.01
    torch.testing.assert_close(found.descriptors, expected, atol=1e-5, rtol=1e-3)


def test_keypoints_are_strict_maxima_at_sub_pixels_best_first() -> None:
    scores = torch.zeros(20, 30)
    scores[10, 12], scores[10, 13] = 0.6, 0.55
    scores[5, 20] = 0.9
    scores[0, 0] = scores[19, 15] = 1.0  # their windows leave the photo
    scores[15, 5] = scores[15, 6] = 0.8  # a tie is no maximum
    xy, found = detect(scores, 10, 0.1)
    np.testing.assert_allclose(found.numpy(), [0.9, 0.6], atol=1e-6)
    np.testing.assert_allclose(xy[0].numpy(), [20, 5], atol=1e-5)
    peak, beside, zero = np.exp(np.array([0.6, 0.55, 0.0]) / aliked.TEMPERATURE)
    np.testing.assert_allclose(xy[1, 0], 12 + (beside - zero) / (peak + beside + 23 * zero), atol=1e-5)
    assert abs(float(xy[1, 1]) - 10) < 1e-4
    assert len(detect(scores, 1, 0.1)[0]) == 1 and len(detect(scores, 10, 0.95)[0]) == 0


@pytest.mark.parametrize("size", [(40, 40), (3, 40)])
def test_flat_and_tiny_photos_have_no_keypoints(network: Aliked, size: tuple[int, int]) -> None:
    assert len(detect(torch.full(size, 0.5), 10, 0.1)[0]) == 0
    found = network(torch.zeros(1, 3, *size), 10, 1.0)
    assert found.xy.shape == (0, 2) and found.descriptors.shape == (0, 128)
