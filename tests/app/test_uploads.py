"""Uploads: what is refused leaves nothing, and what stays is private."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dune_cli.app.uploads import Limits, private_folder, receive
from dune_cli.errors import UserError


def photo(width: int = 8) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.zeros((6, width, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def sent(name: str, content: bytes) -> SimpleNamespace:
    return SimpleNamespace(filename=name, read=io.BytesIO(content).read)


def test_files_keep_safe_and_different_names_and_are_private(tmp_path: Path) -> None:
    names = ["../../a b.png", "c:\\x\\a b.jpg", ".png", "<script>.png", "ä" * 200 + ".PNG"]
    upload = receive([sent(name, photo()) for name in names], tmp_path / "1", Limits())
    assert [file.name for file in upload.files][:4] == ["a_b.png", "a_b_2.jpg", "photo.png", "script.png"]
    assert len(upload.files[4].name) < 100 and all(file.parent == tmp_path / "1/photos" for file in upload.files)
    assert {file.stat().st_mode & 0o777 for file in upload.files} == {0o600}
    assert upload.files[0].parent.stat().st_mode & 0o777 == 0o700
    upload.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "files, limits, reason",
    [
        ([], Limits(), "no file came"),
        ([("a.png", b"x")] * 3, Limits(files=2), "3 files came, and at most 2"),
        ([("a.png", photo()), ("b.txt", b"x")], Limits(), "b.txt is neither a photo nor a video"),
        ([("a.png", photo()), ("b.png", b"x")], Limits(), "b.png is no photo that can be read"),
        ([("a.png", photo()), ("b.png", b"")], Limits(), "b.png is empty"),
        ([("a.png", photo()), ("b.png", photo())], Limits(total_bytes=len(photo()) + 5), "more than 0 MB together"),
    ],
)
def test_what_is_refused_leaves_nothing(
    files: list[tuple[str, bytes]], limits: Limits, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        receive([sent(*file) for file in files], tmp_path / "1", limits)
    assert not list(tmp_path.iterdir())


def test_many_photos_are_taken_evenly(tmp_path: Path) -> None:
    upload = receive([sent("a.png", photo())], tmp_path / "1", Limits(photos=3))
    assert upload.evenly([Path(str(k)) for k in range(9)]) == [Path("0"), Path("4"), Path("8")]
    assert upload.evenly([Path("0"), Path("1")]) == [Path("0"), Path("1")]


def test_the_folder_is_this_users_and_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyError), private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent == tmp_path
        (folder / "a").write_text("x")
        raise KeyError
    assert not list(tmp_path.iterdir())
