"""Frames of videos: pictures, order, times, orientation; of damaged files what was decoded, or a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.errors import UserError
from dune_cli.io.video import Frame, Video, _nearest, frames
from support.video_files import cut, grey_frames, index_first, turned, write_video

KINDS = pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv"])


@KINDS
def test_every_frame_in_order_with_its_time(ending: str, tmp_path: Path) -> None:
    made = grey_frames(20)
    path = write_video(tmp_path / f"a{ending}", made, 12.5)
    got = list(frames(path))
    assert [frame.index for frame in got] == list(range(20))
    assert np.allclose([frame.time_s for frame in got], np.arange(20) / 12.5, atol=2e-3)  # Matroska: milliseconds
    for frame, true in zip(got, made):
        assert frame.rgb.dtype == np.uint8
        assert frame.rgb.flags["C_CONTIGUOUS"]
        assert np.abs(frame.rgb[8:-8, 40:].astype(int) - true[8:-8, 40:]).mean() < 4
        assert frame.rgb[32, 8, 0] > 200 > 90 > frame.rgb[32, 8, 2]  # red is red


def test_facts_of_a_video(tmp_path: Path) -> None:
    with Video(write_video(tmp_path / "a.mp4", grey_frames(20), 10), fps=4) as video:
        assert (video.width, video.height, video.rate_hz, video.announced_s) == (96, 64, 10, 2)
        assert video.expected == 8
        assert [frame.index for frame in video] == [0, 2, 5, 7, 10, 12, 15, 17]  # the earlier of two that are as near
        assert (video.decoded, video.end_s, video.complete) == (20, pytest.approx(2), True)


def test_a_video_that_was_held_upright(tmp_path: Path) -> None:
    (frame, *_) = frames(turned(write_video(tmp_path / "a.mp4", grey_frames(3))))
    assert frame.rgb.shape == (96, 64, 3)
    assert (frame.rgb[4, :, 0] > 200).all()  # the strip at the left is on top after a quarter turn clockwise
    assert (frame.rgb[90, :, 0] < 60).all()


@settings(deadline=None, max_examples=200)
@given(
    gaps=st.lists(st.floats(1e-3, 3), max_size=30),
    fps=st.floats(0.1, 100),
)
def test_subsampling_takes_the_nearest_frames(gaps: list[float], fps: float) -> None:
    times = np.concatenate([[0], np.cumsum(gaps)])
    dummy = np.zeros((1, 1, 3), np.uint8)
    got = [frame.index for frame in _nearest((Frame(k, t, dummy) for k, t in enumerate(times)), fps)]
    assert got == sorted(set(got))
    targets = np.arange(int(times[-1] * fps + 1e-6) + 1) / fps
    distances = np.abs(times - targets[:, None])
    nearest = distances[:, got] <= distances.min(1, keepdims=True) + 4e-6
    assert nearest.any(1).all()  # every time has one of its nearest frames
    assert nearest.any(0).all()  # and no frame is there for nothing


def test_more_frames_a_second_than_there_are_gives_each_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", grey_frames(6))
    assert [frame.index for frame in frames(path, 1000)] == list(range(6))
    assert [frame.index for frame in frames(path, 0.01)] == [0]
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="give a positive number"):
            frames(path, fps)


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv"])
def test_a_cut_video_gives_the_frames_before(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_video(tmp_path / f"a{ending}", grey_frames(30))
    if ending == ".mp4":
        index_first(path)
        whole = list(frames(path))
        assert len(whole) == 30
    assert capsys.readouterr().err == ""
    video = Video(cut(path, 0.7))
    got = list(video)
    assert 5 < len(got) < 27
    assert np.abs(got[4].rgb[32, 60].astype(int) - 32).max() < 6
    assert not video.complete
    assert video.end_s == pytest.approx(len(got) / 10, abs=1e-3)
    said = capsys.readouterr().err
    assert said == f"a{ending} is cut off or damaged: it ends at {video.end_s:.2f} s of 3.00 s; " + (
        f"the {len(got)} frames before are used\n"
    )


def test_damage_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = index_first(write_video(tmp_path / "a.mp4", grey_frames(30)))
    data = bytearray(path.read_bytes())
    middle = len(data) * 6 // 10
    data[middle:] = np.random.default_rng(0).bytes(len(data) - middle)
    path.write_bytes(data)
    video = Video(path)
    assert 5 < len(list(video)) <= 30
    assert ("cut off or damaged" in capsys.readouterr().err) == (not video.complete)


def _zero_frames(path: Path) -> Path:
    return write_video(path.with_suffix(".avi"), [])


def _unknown_codec(path: Path) -> Path:
    path = write_video(path.with_suffix(".avi"), grey_frames(5))
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZZ"))
    return path


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD = {
    "no frames": (_zero_frames, "holds no frame that can be decoded"),
    "no frames, MP4": (lambda path: write_video(path, []), "cannot be read as a video"),
    "unknown codec": (_unknown_codec, "of a codec that OpenCV's FFmpeg does not know"),
    "empty": (lambda path: _bytes(path, b""), "is empty"),
    "text": (lambda path: _bytes(path, b"a video, honestly\n" * 99), "cannot be read as a video"),
    "cut before its index": (lambda path: cut(write_video(path, grey_frames(30)), 0.6), r"no whole index.*cut off"),
    "cut in its index": (lambda path: cut(write_video(path, grey_frames(9)), 0.8), r"no whole index \(moov\).*cut off"),
    "tiny pictures": (lambda path: write_video(path, grey_frames(3, 16, 8)), "16 x 8 px; at least 16"),
    "a folder": (lambda path: path.mkdir() or path, "is a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_video(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        frames(make(tmp_path / "a.mp4"))
    assert str(tmp_path) in str(caught.value)


def test_opencv_says_nothing_itself(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.avi", grey_frames(30)), 0.7)
    other = cut(write_video(tmp_path / "b.mp4", grey_frames(30)), 0.7)
    code = (
        "import sys; from dune_cli.io.video import frames; n = len(list(frames(sys.argv[1])))\n"
        "try: frames(sys.argv[2])\nexcept ValueError: print(n > 5)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_FFMPEG_LOGLEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(other)], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "True\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("a.avi is cut off")


def test_memory_holds_a_frame_or_two(tmp_path: Path) -> None:
    """120 frames of 1.4 MB stay far below their 166 MB."""
    path = write_video(tmp_path / "a.mp4", grey_frames(30, 800, 576) * 4)
    code = (
        "import resource, sys, cv2, numpy; from dune_cli.io.video import frames\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "all_frames = frames(sys.argv[1]); [next(all_frames) for _ in range(5)]; before = peak()\n"
        "print(sum(1 for _ in all_frames), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, kib = map(int, done.stdout.split())
    assert count == 115
    assert kib < 30_000
