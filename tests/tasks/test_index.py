"""An index holds the named files, encodes each content once, goes on after a kill, and refuses other encoders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import JobFailed, UserError
from dune_cli.io.photo_index import lock, open_index
from dune_cli.tasks import index as task
from dune_cli.tasks.index import IndexSettings, IndexUpdate, update
from support.index_files import descriptor, picture, write_photos
from support.video_files import write_video


def contents(folder: Path) -> dict[str, object]:
    """The files of an index, without the seconds of the run."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    header = json.loads((folder / "index.json").read_text())
    header["provenance"].pop("seconds")
    return found | {"index.json": header}


def counts(result: IndexUpdate) -> tuple[int, int, int, int]:
    return result.encoded, result.unchanged, result.dropped, len(result.skipped)


def test_only_new_and_changed_files_are_encoded(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    one = descriptor()
    assert counts(update(tmp_path / "index", photos, one)) == (12, 0, 0, 0)
    names = [row.file.path for row in open_index(tmp_path / "index").rows]
    assert names == [f"../photos/img{number}.png" for number in range(12)]  # natural order
    assert counts(update(tmp_path / "index", photos[::-1], one)) == (0, 12, 0, 0)
    os.utime(photos[3], (1, 1))
    Image.fromarray(picture(99)).save(photos[4])
    shutil.copy(photos[5], tmp_path / "photos" / "copy.png")
    photos[6].unlink()
    named = sorted((tmp_path / "photos").iterdir())
    assert counts(update(tmp_path / "index", named, one)) == (1, 11, 1, 0)
    assert one.network.passes == 13
    update(tmp_path / "anew", named, descriptor())
    left, right = contents(tmp_path / "index"), contents(tmp_path / "anew")
    assert left == right


def test_a_file_named_twice_is_one(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    result = update(tmp_path / "index", [*photos, tmp_path / "photos" / ".." / "photos" / "img0.png"], descriptor())
    assert result.header["count"] == 2


def test_what_is_not_named_is_dropped_or_kept(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 6)
    update(tmp_path / "index", photos[:4], descriptor())
    with pytest.raises(UserError, match="holds 4 files, none of which is among the inputs; add --keep"):
        update(tmp_path / "index", photos[4:], descriptor())
    result = update(tmp_path / "index", photos[4:], descriptor(), IndexSettings(keep=True))
    assert counts(result) == (2, 0, 0, 0) and result.header["files"] == 6
    assert counts(update(tmp_path / "index", photos[3:], descriptor())) == (0, 3, 3, 0)
    update(tmp_path / "anew", photos[3:], descriptor())
    assert contents(tmp_path / "index") == contents(tmp_path / "anew")
    assert counts(update(tmp_path / "index", photos[:2], descriptor(), IndexSettings(overwrite=True))) == (2, 0, 3, 0)


def test_a_renamed_folder_is_not_encoded_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    update(tmp_path / "index", photos, descriptor())
    (tmp_path / "photos").rename(tmp_path / "holidays")
    moved = sorted((tmp_path / "holidays").iterdir())
    one = descriptor()
    assert counts(update(tmp_path / "index", moved, one, IndexSettings(overwrite=True))) == (0, 3, 3, 0)
    assert one.network.passes == 0


@pytest.mark.parametrize("other", [{"seed": 1}, {"pooling": "gem"}, {"size_px": 48}])
def test_another_encoder_is_refused(tmp_path: Path, other: dict) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    update(tmp_path / "index", photos, descriptor())
    before = contents(tmp_path / "index")
    with pytest.raises(UserError, match=r"was made by counting-0 \(mean, 64 px\) and cannot be continued by counting"):
        update(tmp_path / "index", photos, descriptor(**other))
    assert contents(tmp_path / "index") == before
    result = update(tmp_path / "index", photos, descriptor(**other), IndexSettings(overwrite=True))
    assert counts(result) == (2, 0, 0, 0)


def test_a_damaged_index_is_refused_and_made_anew_with_overwrite(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    update(tmp_path / "index", photos, descriptor())
    before = contents(tmp_path / "index")
    path = next((tmp_path / "index").glob("vectors-*"))
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="is damaged"):
        update(tmp_path / "index", photos, descriptor())
    update(tmp_path / "index", photos, descriptor(), IndexSettings(overwrite=True))
    assert contents(tmp_path / "index") == before


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    photos[1].write_bytes(b"no photo")
    (tmp_path / "photos" / "z.mp4").write_bytes(b"no video")
    named = [*photos, tmp_path / "photos" / "z.mp4", tmp_path / "photos" / "gone.jpg"]
    result = update(tmp_path / "index", named, descriptor())
    assert counts(result) == (2, 0, 0, 3)
    assert sorted(one["path"] for one in result.header["skipped"]) == [
        "../photos/gone.jpg",
        "../photos/img1.png",
        "../photos/z.mp4",
    ]
    assert task.document(result)["run"]["skipped"] == 3
    assert f"left out: {photos[1]} is not a picture" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"none of the 1 inputs can be read, such as img1.png"):
        update(tmp_path / "other", photos[1:2], descriptor())


def test_frames_of_a_video(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.avi", [picture(number) for number in range(20)], fps=10)
    photos = write_photos(tmp_path / "photos", 2)
    one = descriptor()
    result = update(tmp_path / "index", [film, *photos], one, IndexSettings(fps=2.0))
    assert counts(result) == (3, 0, 0, 0) and (result.header["files"], result.header["count"]) == (3, 6)
    rows = [row for row in open_index(tmp_path / "index").rows if row.file.path == "../film.avi"]
    assert [(row.frame, row.time_s) for row in rows] == [(0, 0.0), (5, 0.5), (10, 1.0), (15, 1.5)]
    assert counts(update(tmp_path / "index", [film, *photos], one, IndexSettings(fps=2.0))) == (0, 3, 0, 0)
    result = update(tmp_path / "index", [film, *photos], one, IndexSettings(fps=1.0))
    assert counts(result) == (1, 2, 0, 0) and result.header["count"] == 4


def test_batches_give_the_same_vectors(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 7)
    Image.fromarray(picture(50).swapaxes(0, 1).copy()).save(photos[2])
    film = write_video(tmp_path / "film.avi", [picture(number) for number in range(5)], fps=1)
    photos[4].write_bytes(b"no photo")
    for size in (1, 3):
        update(tmp_path / str(size), [*photos[:5], film, *photos[5:]], descriptor(), IndexSettings(batch_size=size))
    one, three = (open_index(tmp_path / str(size)) for size in (1, 3))
    assert one.rows == three.rows and len(one.rows) == 11
    np.testing.assert_allclose(one.vectors, three.vectors, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_stopped_run_goes_on(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "SAVE_VECTORS", 2)
    photos = write_photos(tmp_path / "photos", 10)
    update(tmp_path / "whole" / "index", photos, descriptor())
    one, folder = descriptor(), tmp_path / "stopped" / "index"
    real = one.describe

    def stops(images: list[np.ndarray]) -> np.ndarray:
        if one.network.passes >= stop:
            raise KeyboardInterrupt
        return real(images)

    monkeypatch.setattr(one, "describe", stops)
    with pytest.raises(KeyboardInterrupt):
        update(folder, photos, one)
    again = descriptor()
    assert counts(update(folder, photos, again)) == (10, 0, 0, 0)
    assert again.network.passes == 10 - stop // 2 * 2
    left, right = contents(folder), contents(tmp_path / "whole" / "index")
    assert left.keys() == right.keys() and left == right


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    with lock(tmp_path / "index"), pytest.raises(JobFailed, match="another process is writing the index"):
        update(tmp_path / "index", photos, descriptor())
