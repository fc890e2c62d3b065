"""What photos are called in files, and which names these cannot hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dune_cli.errors import UserError
from dune_cli.io.photo_names import check_names_for_colmap, check_names_for_json, is_utf8, relative_names

STRANGE = os.fsdecode(b"caf\xe9.jpg")


def test_names_are_relative_to_the_common_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative_names([]) == []
    assert relative_names(["photos/b.jpg", "photos/a.jpg"]) == ["b.jpg", "a.jpg"]
    assert relative_names(["photos/cam1/a.jpg", tmp_path / "photos/cam2/a.jpg"]) == ["cam1/a.jpg", "cam2/a.jpg"]
    assert relative_names(["photos/a.jpg", "photos/x/../cam2/b.jpg"]) == ["a.jpg", "cam2/b.jpg"]
    assert relative_names(["/one/a.jpg", "/two/b.jpg"]) == ["one/a.jpg", "two/b.jpg"]


@pytest.mark.parametrize(
    ("names", "binary", "word"),
    [
        (["a.jpg", "b.jpg", "a.jpg"], True, "a.jpg twice"),
        (["a b.jpg"], False, "white space"),
        (["a\nb.jpg"], False, "white space"),
        (["a\u00a0b.jpg"], False, "white space"),
        (["my folder/a.jpg"], False, "my folder/a.jpg"),
        ([STRANGE], True, "not UTF-8"),
        ([STRANGE], False, "not UTF-8"),
    ],
)
def test_names_that_a_colmap_model_cannot_hold(names: list[str], binary: bool, word: str) -> None:
    with pytest.raises(UserError, match=word):
        check_names_for_colmap(names, binary)


def test_names_that_are_fine() -> None:
    check_names_for_colmap(["cam1/a b.jpg", "cam2/a b.jpg", "bücher\n.jpg"], True)
    check_names_for_colmap(["cam1/a.jpg", "cam2/a.jpg", "bücher.jpg"], False)
    check_names_for_json(["cam1/a b.jpg", "cam2/a b.jpg"], "t.json")
    assert is_utf8("bücher.jpg") and not is_utf8(Path(STRANGE))


def test_paths_that_transforms_json_cannot_hold() -> None:
    with pytest.raises(UserError, match=r"t\.json cannot hold .* not UTF-8"):
        check_names_for_json(["a.jpg", STRANGE], "t.json")
    with pytest.raises(UserError, match="twice"):
        check_names_for_json(["a.jpg", "x/../a.jpg"], "t.json")
