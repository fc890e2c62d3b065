"""Laws of views: a picture and its label are cropped, resized and mirrored together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dune_cli.training.heads.views import (
    PhotoView,
    draw_view,
    grid_aspect,
    nearest_label,
    smooth_label,
    view_image,
    view_size,
)

RNG = np.random.default_rng(0)
WHOLE = PhotoView((0.0, 0.0, 1.0, 1.0), (48, 64))


def test_a_mirrored_photo_gives_mirrored_views() -> None:
    rgb = RNG.integers(0, 255, (60, 80, 3), np.uint8)
    depth = RNG.random((30, 40)).astype(np.float32)
    for view in (WHOLE, PhotoView((0.25, 0.125, 0.75, 0.875), (48, 64))):
        left, top, right, bottom = view.box
        mirrored = replace(view, box=(1 - right, top, 1 - left, bottom), flipped=True)
        assert torch.equal(view_image(rgb, view), view_image(np.ascontiguousarray(rgb[:, ::-1]), mirrored))
        label = nearest_label(depth, view, (24, 32))
        assert np.array_equal(label, nearest_label(depth[:, ::-1], mirrored, (24, 32)))
        logits = torch.from_numpy(RNG.random((3, 16, 16)))
        assert torch.allclose(
            smooth_label(logits, view, (24, 32)), smooth_label(logits.flip(-1), mirrored, (24, 32)), atol=1e-6
        )


def test_labels_lie_where_the_picture_does() -> None:
    """A photo whose brightness is its label: in every view both still agree."""
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    rgb = np.repeat(np.repeat(ramp[None, :, None], 120, 0), 3, 2)
    for number in range(6):
        view = draw_view("photo", number, 160, 120, 16, 96, seed=3, photometric=False)
        picture = view_image(rgb, view)[0].float()
        size = picture.shape[-2:]
        assert np.abs(picture.numpy() - nearest_label(rgb[..., 0], view, size)).max() < 8
        smooth = smooth_label(torch.from_numpy(rgb[..., 0].astype(np.float32))[None], view, size)[0]
        assert np.abs(picture.numpy()[:, 3:-3] - smooth.numpy()[:, 3:-3]).max() < 4


def test_views_are_a_function_of_name_number_and_seed() -> None:
    first = draw_view("a", 1, 400, 300, 16, 128, seed=0)
    assert first == draw_view("a", 1, 400, 300, 16, 128, seed=0)
    others = [draw_view("a", 2, 400, 300, 16, 128, seed=0), draw_view("b", 1, 400, 300, 16, 128, seed=0)]
    assert all(view.box != first.box for view in (*others, draw_view("a", 1, 400, 300, 16, 128, seed=1)))
    assert draw_view("a", 0, 400, 300, 16, 128, seed=5) == PhotoView((0.0, 0.0, 1.0, 1.0), (112, 144))


def test_all_views_of_a_photo_have_one_size() -> None:
    for width, height in ((400, 300), (300, 400), (1000, 100), (77, 78)):
        views = [draw_view("a", number, width, height, 14, 128, seed=0) for number in range(8)]
        assert {view.size for view in views} == {view_size(width, height, 14, 128)}
        assert all(side % 14 == 0 for view in views for side in view.size)
        boxes = np.array([view.box for view in views])
        assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert grid_aspect(640, 480) == 4 / 3


def test_the_focal_length_of_a_view() -> None:
    """Half the width and height at the same size: twice the focal length."""
    assert WHOLE.focal_px(500.0, 640, 480) == 50.0
    assert PhotoView((0.25, 0.5, 0.75, 1.0), (48, 64)).focal_px(500.0, 640, 480) == 100.0


def test_photometric_changes_keep_black_and_are_not_spatial() -> None:
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[:, 16:] = 200
    picture = view_image(rgb, PhotoView((0.0, 0.0, 1.0, 1.0), (32, 32), False, 1.3, (0.9, 1.0, 1.1)))
    assert int(picture[:, :, :14].max()) == 0
    assert len(torch.unique(picture[0, :, 18:])) == 1 and len(torch.unique(picture[:, 0, 20])) == 3
