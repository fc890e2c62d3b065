"""Files that people hand in as Windows writes them: byte order marks, UTF-16, backslashes in names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io.intrinsics import resolve_intrinsics
from dune_cli.io.photos import PhotoInfo
from dune_cli.io.pose_files import read_poses
from dune_cli.io.safe_read import file_in, read_json, read_text
from dune_cli.sfm.pairs import read_pairs
from dune_cli.training.common.dataset import open_source

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
OPENGL = np.diag([1.0, -1, -1, 1])
K = [[500.0, 0, 320], [0, 510, 240], [0, 0, 1]]
POSES = [np.eye(4), np.array([[1.0, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 4], [0, 0, 0, 1]])]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes('{"bücher": 1}'.encode(encoding))
    assert read_text(tmp_path / "a.json", "a file") == '{"bücher": 1}'
    assert read_json(tmp_path / "a.json") == {"bücher": 1}
    (tmp_path / "bad.txt").write_bytes(b"\xff\x00\xd8")
    with pytest.raises(UserError, match="a file is needed"):
        read_text(tmp_path / "bad.txt", "a file")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", ["/", "\\", "C:\\"])
def test_poses_pairs_and_intrinsics_are_read_as_their_plain_twins(
    tmp_path: Path, encoding: str, separator: str
) -> None:
    paths = [tmp_path / "cam1" / "a b.jpg", tmp_path / "cam1" / "b.jpg"]
    slash = "\\" if "\\" in separator else "/"
    drive = "C:\\photos\\" if separator == "C:\\" else ""
    names = [f"{drive}cam1{slash}{path.name}" for path in paths]
    frames = [{"file_path": n, "transform_matrix": (p @ OPENGL).tolist()} for n, p in zip(names, POSES)]
    for kind, tree in {
        "poses": dict(zip(names, [p.tolist() for p in POSES])),
        "transforms": {"frames": frames},
    }.items():
        (tmp_path / f"{kind}.json").write_bytes(json.dumps(tree).encode(encoding))
        found = read_poses(tmp_path / f"{kind}.json", list(map(str, paths)))
        np.testing.assert_allclose([found[str(path)] for path in paths], POSES)
    (tmp_path / "K.json").write_bytes(json.dumps(dict.fromkeys(names, K)).encode(encoding))
    infos = [PhotoInfo(path, 640, 480, "") for path in paths]
    assert [m.tolist() for m, _ in resolve_intrinsics(infos, str(tmp_path / "K.json"), None)] == [K, K]
    if not drive:
        (tmp_path / "pairs.txt").write_bytes(f"{names[0]}\t{names[1]}\r\n".encode(encoding))
        assert read_pairs(tmp_path / "pairs.txt", paths) == [(0, 1)]
    (tmp_path / "times.txt").write_bytes(b"".join([f"{i} 0 0 {i} 0 0 0 1\r\n".encode(encoding) for i in (0,)]))
    assert list(read_poses(tmp_path / "times.txt")) == ["0.000000"]


def test_a_list_of_photos(tmp_path: Path) -> None:
    (tmp_path / "cam1").mkdir()
    for name in ("cam1/a.jpg", r"odd\name.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes("cam1\\a.jpg\r\nodd\\name.jpg\r\n".encode("utf-8-sig"))
    assert list(open_source(str(tmp_path / "list.txt")).paths) == [tmp_path / "cam1/a.jpg", tmp_path / r"odd\name.jpg"]
    assert file_in(tmp_path, "absent.jpg") == tmp_path / "absent.jpg"


def test_a_backslash_that_is_part_of_a_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({r"x\a.jpg": POSES[1].tolist(), "x/a.jpg": POSES[0].tolist()}))
    names = [str(tmp_path / r"x\a.jpg"), str(tmp_path / "x" / "a.jpg")]
    found = read_poses(tmp_path / "p.json", names)
    np.testing.assert_array_equal(found[names[0]], POSES[1])
    np.testing.assert_array_equal(found[names[1]], POSES[0])


def test_a_pose_belongs_to_the_photo_with_the_longest_tail(tmp_path: Path) -> None:
    """Photos of another camera folder that have no pose take none away, and get none."""
    (tmp_path / "p.json").write_text(json.dumps({"cam1/0.jpg": POSES[0].tolist(), "cam1/1.jpg": POSES[1].tolist()}))
    names = [f"photos/cam{c}/{i}.jpg" for c in (1, 2) for i in (0, 1)]
    assert list(read_poses(tmp_path / "p.json", names)) == names[:2]
