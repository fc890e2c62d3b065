from __future__ import annotations

import json
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


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("videos", [False, True])
@pytest.mark.parametrize("entry", ["", "*"])
def test_what_belongs_to_a_photo_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], videos: bool, entry: str
) -> None:
    touch(tmp_path, "IMG_1.HEIC", "img_1.mov", "a.jpg", "a.jpg.png", "mask_a.png", "A-depth.png", "a.dng", "walk.mp4")
    touch(tmp_path, "mask_of_venice.jpg", "alone.png.png")
    photos = ["a.jpg", "alone.png.png", "IMG_1.HEIC", "mask_of_venice.jpg"]
    found = [path.name for path in expand([tmp_path / entry if entry else tmp_path], videos)]
    assert found == ([*photos, "walk.mp4"] if videos else photos)
    told = capsys.readouterr().err
    for name in ("img_1.mov", "a.jpg.png", "mask_a.png", "A-depth.png", "a.dng"):
        assert told.count(name) == 1, told
    assert ("walk.mp4" in told) == (not videos)
    assert expand([tmp_path / "a.jpg.png"]) == [tmp_path / "a.jpg.png"]  # named, it is meant


def test_a_folder_of_camera_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "cam1/1.jpg", "cam1/2.jpg", "cam2/1.JPG", "deep/down/1.png", ".hidden/1.jpg", "notes/n.txt")
    with pytest.raises(UserError) as raised:
        expand([tmp_path])
    text = str(raised.value)
    assert text.startswith(f"the folder {tmp_path} holds no images itself")
    assert "cam1 (2), cam2 (1), deep/down (1)" in text and f"({tmp_path}/cam1 {tmp_path}/cam2 ...)" in text
    assert f"'{tmp_path}/**/*.jpg'" in text and len(expand([f"{tmp_path}/**/*.jpg"])) == 2
    assert capsys.readouterr().err == ""
    touch(tmp_path, "top.jpg")
    assert expand([tmp_path]) == [tmp_path / "top.jpg"]
    assert "subfolders with images are left out" in capsys.readouterr().err


def test_a_folder_of_raw_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.CR2", "b.CR2")
    with pytest.raises(UserError, match=r"holds 2 raw files \(a\.CR2, \.\.\.\) but no images that are read"):
        expand([tmp_path])


def test_results_of_dune_among_photos_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.jpg", "b.png", "map.png", "map_preview.png", "c_preview.png")
    for name in names:
        (tmp_path / name).touch()
    document = {"schema": "dune.depth/1", "file": "map.png", "preview": "map_preview.png"}
    (tmp_path / "map.json").write_text(json.dumps(document))
    (tmp_path / "a.json").write_text('{"schema": "dune.people/1", "image": {"file": "a.jpg"}}')  # of the photo, not it
    (tmp_path / "b.json").write_text('{"file": "b.png"}')
    (tmp_path / "c.json").write_text("no JSON")
    assert [path.name for path in expand([str(tmp_path)])] == ["a.jpg", "b.png", "c_preview.png"]
    assert "left out as a result of dune" in capsys.readouterr().err
    for name in ("a.jpg", "b.png", "c_preview.png"):
        (tmp_path / name).unlink()
    assert len(expand([str(tmp_path)])) == 2
