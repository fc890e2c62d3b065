"""The sharpest frames of a video as photos in the work folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io.cache import WorkFolder
from dune_cli.io.photos import read_photo
from dune_cli.io.video import Frame
from dune_cli.sfm import keyframes
from support.video_files import panned, write_video


def test_of_each_stretch_the_sharpest_frame() -> None:
    pictures = panned("coffee.png", 12)
    sharp = {1, 4, 9, 11}
    blurred = [p if i in sharp else cv2.GaussianBlur(p, (0, 0), 3) for i, p in enumerate(pictures)]
    frames = [Frame(i, i / 10, p) for i, p in enumerate(blurred)]
    assert [frame.index for frame in keyframes.sharpest_frames(iter(frames), 3)] == [1, 4, 9, 11]
    assert [frame.index for frame in keyframes.sharpest_frames(iter(frames), 1)] == [
        max(range(10), key=lambda i: keyframes.sharpness(blurred[i])),
        11,
    ]
    assert [frame.index for frame in keyframes.sharpest_frames(iter(frames[:1]), 1)] == [0]
    assert list(keyframes.sharpest_frames(iter([]), 1)) == []


def test_frames_are_made_once_and_stand_where_the_video_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = panned("coffee.png", 20)
    clip = write_video(tmp_path / "walk.avi", pictures)
    still = tmp_path / "still.png"
    work = WorkFolder(tmp_path / "work")
    found = keyframes.extract_keyframes([still, clip], 5, work)
    assert found[0] == still and len(found) == 11
    assert all(path.name.startswith("walk_") and path.is_relative_to(work.folder) for path in found[1:])
    index = int(found[4].stem.removeprefix("walk_"))
    assert np.abs(read_photo(found[4]).rgb.astype(int) - pictures[index]).mean() < 8
    monkeypatch.setattr(keyframes, "sharpest_frames", None)
    assert keyframes.extract_keyframes([still, clip], 5, work) == found
    monkeypatch.undo()
    assert len(keyframes.extract_keyframes([clip], None, work)) == 4  # two a second
    twin = write_video(tmp_path / "other" / "walk.avi" if (tmp_path / "other").mkdir() is None else clip, pictures[:8])
    both = keyframes.extract_keyframes([clip, twin], 5, work)
    assert len({path.name for path in both}) == len(both)


def test_damaged_frames_are_made_again_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_video(tmp_path / "walk.avi", panned("coffee.png", 8))
    found = keyframes.extract_keyframes([clip], 5, WorkFolder(tmp_path / "work"))
    whole = [path.read_bytes() for path in found]
    for damage in ("cut", "gone", "list", "more"):
        if damage == "cut":
            found[1].write_bytes(whole[1][:100])
        elif damage == "gone":
            found[0].unlink()
        elif damage == "list":
            (found[0].parent / "frames.json").write_text("{")
        else:
            (found[0].parent / "walk_000099.jpg").write_bytes(whole[0])
        assert keyframes.extract_keyframes([clip], 5, WorkFolder(tmp_path / "work")) == found
        assert [path.read_bytes() for path in found] == whole
        assert capsys.readouterr().err.count("is damaged") == 1


def test_a_video_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"this is no video" * 100)
    with pytest.raises(UserError, match=r"bad\.mp4 cannot be read as a video"):
        keyframes.extract_keyframes([tmp_path / "bad.mp4"], None, WorkFolder(tmp_path / "work"))
    assert not (tmp_path / "work" / "frames").exists()
