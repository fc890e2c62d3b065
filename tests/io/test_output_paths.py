"""Where results go."""

from __future__ import annotations

from pathlib import Path

import pytest

from dune_cli.errors import UserError
from dune_cli.io.outputs import places, sibling, targets

FORMATS = ("png", "npz")


def test_one_photo_to_a_file_and_many_to_a_folder(tmp_path: Path) -> None:
    one, two = [Path("a/x.jpg")], [Path("a/x.jpg"), Path("b/x.png"), Path("b/y.png")]
    assert targets(one, tmp_path / "d.npz", None, FORMATS, False) == [tmp_path / "d.npz"]
    assert targets(one, tmp_path / "out", None, FORMATS, False) == [tmp_path / "out" / "x.png"]
    many = targets(two, tmp_path / "out", "npz", FORMATS, False)
    assert [path.name for path in many] == ["x.npz", "x_2.npz", "y.npz"]
    assert sibling(many[1], "_color.png").name == "x_2_color.png"
    (tmp_path / "odd.dir").mkdir()
    assert targets(one, tmp_path / "odd.dir", None, FORMATS, False)[0].parent.name == "odd.dir"


@pytest.mark.parametrize(
    "count, output, kind, message",
    [
        (2, "d.png", None, "2 photos do not fit into one file"),
        (1, "d.png", "npz", "contradicts"),
        (1, "d.tiff", None, "allowed: .png .npz, or a folder"),
        (1, "here.png", None, "exists already"),
        (1, "beside.png", None, "beside.json exists already"),
        (1, "colored.png", None, "colored_color.png exists already"),
    ],
)
def test_what_is_refused(tmp_path: Path, count: int, output: str, kind: str | None, message: str) -> None:
    for name in ("here.png", "beside.json", "colored_color.png"):
        (tmp_path / name).touch()
    photos = [Path(f"{index}.jpg") for index in range(count)]
    with pytest.raises(UserError, match=message):
        targets(photos, tmp_path / output, kind, FORMATS, False, (".json", "_color.png"))
    if "exists" in message:
        assert targets(photos, tmp_path / output, kind, FORMATS, True, (".json", "_color.png"))


@pytest.mark.parametrize("output", ["a.png", ".", "other.png"])
def test_a_photo_that_is_read_is_never_replaced(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    (tmp_path / "other.png").symlink_to("a.png")
    with pytest.raises(UserError, match="would replace a photo that is read"):
        targets([tmp_path / "a.png"], output, None, FORMATS, True)
    assert targets([tmp_path / "a.png"], "b.png", None, FORMATS, True) == [Path("b.png")]


def test_a_video_gets_a_folder(tmp_path: Path) -> None:
    clip, out = Path("a/clip.mp4"), tmp_path / "out"
    assert places([clip], out, None, FORMATS, False) == [out]
    both = places([Path("x.jpg"), clip, Path("b/clip.mov")], out, "npz", FORMATS, False, (".json",))
    assert both == [out / "x.npz", out / "clip", out / "clip_2"]
    assert places([Path("x.jpg")], tmp_path / "x.png", None, FORMATS, False) == [tmp_path / "x.png"]
    (out / "clip").mkdir(parents=True)
    (out / "clip" / "000000.png").touch()
    with pytest.raises(UserError, match="clip exists already"):
        places([Path("x.jpg"), clip], out, None, FORMATS, False)
    assert places([Path("x.jpg"), clip], out, None, FORMATS, True)
    for name in ("d.png", "d.v2"):
        with pytest.raises(UserError, match=r"the frames of clip\.mp4 do not fit into one file"):
            places([clip], tmp_path / name, None, FORMATS, False)
