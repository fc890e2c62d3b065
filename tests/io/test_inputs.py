from __future__ import annotations

from pathlib import Path

import pytest

from dune_cli.errors import UserError
from dune_cli.io.inputs import expand, is_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("img10.jpg", "img2.JPG", "img1.png", "notes.txt", ".hidden.jpg", "clip.mp4", "sub/deep.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_stands_for_its_images_in_natural_order(folder: Path) -> None:
    assert [path.name for path in expand([str(folder)])] == ["img1.png", "img2.JPG", "img10.jpg"]


def test_inputs_keep_their_order_and_repetitions(folder: Path) -> None:
    named = [folder / "img10.jpg", folder / "img1.png", folder / "img10.jpg"]
    assert expand([str(path) for path in named]) == named
    assert expand([folder / "notes.txt"]) == [folder / "notes.txt"]  # a named file is tried whatever its ending


def test_globs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [path.name for path in expand([str(folder / "*")])] == ["img1.png", "img2.JPG", "img10.jpg"]
    assert [path.name for path in expand([str(folder / "**" / "*.webp")])] == ["deep.webp"]
    monkeypatch.setenv("HOME", str(folder))
    assert [path.name for path in expand(["~/img?.*"])] == ["img1.png", "img2.JPG"]
    (folder / "odd[1].png").write_bytes(b"x")
    assert expand([str(folder / "odd[1].png")]) == [folder / "odd[1].png"]  # a file before a pattern


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("absent.jpg", "no such file or folder"),
        ("*.tiff", "matches nothing"),
        ("notes*", "only matches what is no image"),
        ("clip.mp4", "is a video"),
        ("empty", "holds no images"),
        ("videos", "holds 1 videos but no images"),
        ("img1.png/inside.jpg", "no such file or folder"),
        ("x" * 5000, "cannot read"),
    ],
)
def test_what_names_no_image(entry: str, word: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "videos").mkdir()
    (folder / "videos" / "a.mov").write_bytes(b"x")
    with pytest.raises(UserError, match=word):
        expand([str(folder / entry)])


def test_videos_for_verbs_that_read_them(folder: Path) -> None:
    assert expand([folder / "clip.mp4"], videos=True) == [folder / "clip.mp4"]
    names = ["clip.mp4", "img1.png", "img2.JPG", "img10.jpg"]
    for entry in (folder, folder / "*"):
        assert [path.name for path in expand([entry], videos=True)] == names
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no images.*\.mp4"):
        expand([folder / "empty"], videos=True)
    assert is_video(Path("a.MOV"))
    assert not is_video(Path("mp4"))


def test_nothing_at_all() -> None:
    for inputs in ([], [""]):
        with pytest.raises(UserError):
            expand(inputs)
