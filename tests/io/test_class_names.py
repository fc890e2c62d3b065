"""Names of classes in a picture: each where its class is widest, small classes not at all."""

from __future__ import annotations

import numpy as np

from dune_cli.io.class_names import with_names


def test_names_stand_in_their_classes() -> None:
    classes = np.zeros((60, 80), np.int64)
    classes[:, 40:] = 1
    classes[:3, :3] = 2  # too small to be named
    picture = np.full((240, 320, 3), 90, np.uint8)
    named = with_names(picture, classes, ["wall", "door", "lamp"])
    written = (named > 180).all(-1)
    for left in (0, 160):  # about the middle of each half
        rows, columns = np.nonzero(written[:, left : left + 160])
        assert 15 < np.ptp(columns) < 60 and 5 < np.ptp(rows) < 20
        assert abs(columns.mean() - 80) < 12 and abs(rows.mean() - 120) < 12
    assert not written[:20, :60].any() and (picture == 90).all()
    assert (named[:, 158:162] == 90).all()


def test_without_names_the_picture_stays() -> None:
    picture = np.full((24, 32, 3), 90, np.uint8)
    assert with_names(picture, np.zeros((24, 32), np.int64), ()) is picture
