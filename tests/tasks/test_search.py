"""Searches in an index: hits as brute force ranks them, the query itself, other encoders, and frames of videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io.photo_index import PhotoIndex, open_index
from dune_cli.io.photos import read_photo
from dune_cli.tasks import search as task
from dune_cli.tasks.index import IndexSettings, update
from dune_cli.tasks.search import SearchSettings, search
from support.index_files import descriptor, picture, write_photos
from support.video_files import write_video


@pytest.fixture
def index(tmp_path: Path) -> PhotoIndex:
    photos = write_photos(tmp_path / "photos", 8)
    film = write_video(tmp_path / "film.avi", [picture(100 + number) for number in range(4)], fps=1)
    update(tmp_path / "index", [*photos, film], descriptor(), IndexSettings(fps=1.0))
    return open_index(tmp_path / "index")


def test_hits_are_those_of_brute_force_and_the_query_is_its_own_first(index: PhotoIndex, tmp_path: Path) -> None:
    photos = [read_photo(tmp_path / "photos" / f"img{number}.png") for number in (5, 2)]
    results = search(index, photos, descriptor(), SearchSettings(top=4))
    for photo, result in zip(photos, results):
        assert result.query.path == photo.path and len(result.hits) == 4
        assert result.hits[0].path == photo.path and result.hits[0].similarity == pytest.approx(1, abs=1e-6)
        own = next(i for i, row in enumerate(index.rows) if row.file.path.endswith(photo.path.name))
        cosines = np.asarray(index.vectors, np.float64) @ index.vectors[own]
        order = np.argsort(-cosines)[:4]
        assert [hit.row for hit in result.hits] == [index.rows[i] for i in order]
        np.testing.assert_allclose([hit.similarity for hit in result.hits], cosines[order], atol=1e-6)


def test_without_itself_and_its_copies(index: PhotoIndex, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes((tmp_path / "photos" / "img5.png").read_bytes())
    with_self, without = (
        search(index, [read_photo(copy)], descriptor(), SearchSettings(top=3, exclude_self=out))[0].hits
        for out in (False, True)
    )
    assert with_self[0].path.name == "img5.png"
    assert [hit.path for hit in without[:2]] == [hit.path for hit in with_self[1:]] and len(without) == 3


def test_frames_have_their_time(index: PhotoIndex, tmp_path: Path) -> None:
    Path(tmp_path / "q").mkdir()
    query = write_photos(tmp_path / "q", 1, first=102)[0]
    (result,) = search(index, [read_photo(query)], descriptor(), SearchSettings(top=1))
    assert (result.hits[0].row.frame, result.hits[0].shown) == (2, f"{tmp_path / 'film.avi'} at 2.00 s")
    document = task.document(index, result, SearchSettings(), {})
    assert document["hits"][0]["frame"] == {"index": 2, "time_s": 2.0}
    rows = task.sheet_rows([result])
    assert np.abs(rows[0].hits[0].picture.astype(float) - picture(102)).mean() < 12


def test_all_of_the_index_and_nothing(index: PhotoIndex, tmp_path: Path) -> None:
    photo = read_photo(tmp_path / "photos" / "img0.png")
    assert len(search(index, [photo], descriptor(), SearchSettings(top=1000))[0].hits) == 12
    assert search(index, [], descriptor()) == []


@pytest.mark.parametrize("other", [{"seed": 1}, {"pooling": "gem"}, {"size_px": 48}])
def test_another_encoder_is_refused(index: PhotoIndex, tmp_path: Path, other: dict) -> None:
    photo = read_photo(tmp_path / "photos" / "img0.png")
    with pytest.raises(UserError, match=r"was made by counting-0 .* give that encoder with --model"):
        search(index, [photo], descriptor(**other))


def test_a_photo_that_is_gone_is_an_empty_tile(
    index: PhotoIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = search(index, [read_photo(tmp_path / "photos" / "img0.png")], descriptor(), SearchSettings(top=12))
    (tmp_path / "photos" / "img3.png").unlink()
    (row,) = task.sheet_rows(results)
    assert [tile.picture is None for tile in row.hits].count(True) == 1
    assert "an empty tile stands for" in capsys.readouterr().err
