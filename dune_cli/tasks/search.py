"""The photos of an index that are most similar to a photo, by the cosine of their vectors (docs/file-formats.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import DuneError, UserError
from dune_cli.io.contact_sheet import TILE_PX, SheetRow, Tile, reduced
from dune_cli.io.photo_index import IndexRow, PhotoIndex, located, relative_path
from dune_cli.io.photos import Photo, PhotoInfo, read_small
from dune_cli.io.video import Video
from dune_cli.provenance import Run
from dune_cli.sfm.global_descriptors import GlobalDescriptor
from dune_cli.sfm.vector_search import most_similar

SCHEMA = "dune.search/1"


@dataclass(frozen=True)
class SearchSettings:
    """top: number of hits. exclude_self: leave out the query's own file and files of its content. engine: of
    `sfm.vector_search.ENGINES`."""

    top: int = 10
    exclude_self: bool = False
    engine: str = "numpy"


@dataclass(frozen=True)
class SearchHit:
    """A photo or video frame of the index; similarity: the cosine with the query, in [-1, 1]."""

    path: Path
    row: IndexRow
    similarity: float

    @property
    def shown(self) -> str:
        """The path, and of a frame its time."""
        return str(self.path) if self.row.time_s is None else f"{self.path} at {self.row.time_s:.2f} s"


@dataclass(frozen=True)
class SearchResult:
    """A query with its hits, best first."""

    query: PhotoInfo
    hits: tuple[SearchHit, ...]


def check_encoder(index: PhotoIndex, descriptor: GlobalDescriptor) -> None:
    """UserError where the encoder is not the one of the index."""
    if index.encoder.made_of() != descriptor.encoder.made_of():
        raise UserError(
            f"the index {index.folder} was made by {index.encoder}, sha256 {index.encoder.sha256[:12] or 'none'}, and "
            f"not by {descriptor.encoder}, sha256 {descriptor.encoder.sha256[:12] or 'none'}; give that encoder with "
            "--model, or index the photos anew"
        )


def search(
    index: PhotoIndex,
    photos: Iterable[Photo],
    descriptor: GlobalDescriptor,
    settings: SearchSettings | None = None,
    run: Run | None = None,
) -> list[SearchResult]:
    """The `top` photos and frames of the index that are most similar to each photo; every vector is compared.

    UserError where the descriptor is not that of the index, or its vectors are damaged.
    """
    check_encoder(index, descriptor)
    settings, run = settings or SearchSettings(), run or Run()
    queries: list[PhotoInfo] = []
    vectors: list[np.ndarray] = []
    for photo in photos:
        with run.stage("encode"):
            vectors.append(descriptor.describe([descriptor.prepare(photo.rgb)])[0])
        queries.append(photo.info)
    own = [_own_rows(index, query) if settings.exclude_self else set() for query in queries]
    with run.stage("search"):
        count = settings.top + max(map(len, own), default=0)
        stacked = np.stack(vectors) if vectors else np.zeros((0, index.encoder.dimension), np.float32)
        rows, cosines = most_similar(stacked, index.vectors, count, settings.engine)
    results = []
    for query, left_out, row, cosine in zip(queries, own, rows.tolist(), cosines.clip(-1, 1).tolist()):
        hits = [_hit(index, i, value) for i, value in zip(row, cosine) if i not in left_out]
        results.append(SearchResult(query, tuple(hits[: settings.top])))
    return results


def _own_rows(index: PhotoIndex, query: PhotoInfo) -> set[int]:
    name = relative_path(index.folder, query.path)
    return {i for i, row in enumerate(index.rows) if row.file.sha256 == query.sha256 or row.file.path == name}


def _hit(index: PhotoIndex, row: int, similarity: float) -> SearchHit:
    return SearchHit(located(index.folder, index.rows[row].file.path), index.rows[row], similarity)


def document(index: PhotoIndex, result: SearchResult, settings: SearchSettings, provenance: dict[str, Any]) -> Any:
    """The JSON of a query (`dune.search/1`)."""
    return {
        "schema": SCHEMA,
        "query": {"path": str(result.query.path), "width": result.query.width, "height": result.query.height},
        "index": {
            "folder": str(index.folder),
            "count": len(index.rows),
            "encoder": index.encoder.name,
            "pooling": index.encoder.pooling,
            "size_px": index.encoder.size_px,
        },
        "engine": settings.engine,
        "exclude_self": settings.exclude_self,
        "hits": [_hit_document(rank, hit) for rank, hit in enumerate(result.hits, 1)],
        "provenance": provenance,
    }


def _hit_document(rank: int, hit: SearchHit) -> dict[str, Any]:
    document = {"rank": rank, "path": str(hit.path), "similarity": round(hit.similarity, 6)}
    if hit.row.frame is not None:
        document["frame"] = {"index": hit.row.frame, "time_s": hit.row.time_s}
    return document


def sheet_rows(results: Sequence[SearchResult]) -> list[SheetRow]:
    """The contact sheet's rows: the query, then its hits. A photo that cannot be read has a note and an empty tile.

    Each photo and video is read once.
    """
    pictures: dict[tuple[Path, int | None], np.ndarray | None] = {}
    films: dict[Path, set[int]] = {}
    for hit in (hit for result in results for hit in result.hits):
        if hit.row.frame is None:
            pictures.setdefault((hit.path, None), None)
        else:
            films.setdefault(hit.path, set()).add(hit.row.frame)
    for path in dict.fromkeys([*(result.query.path for result in results), *(path for path, _ in pictures)]):
        pictures[path, None] = _photo(path)
    for path, wanted in films.items():
        pictures |= {(path, frame): picture for frame, picture in _frames(path, wanted).items()}
    rows = []
    for result in results:
        query = Tile(pictures[result.query.path, None], "query", _name(result.query.path))
        hits = []
        for rank, hit in enumerate(result.hits, 1):
            time = "" if hit.row.time_s is None else f"{hit.row.time_s:.1f} s  "
            picture = pictures.get((hit.path, hit.row.frame))
            hits.append(Tile(picture, f"{rank}   {hit.similarity:.3f}", time + _name(hit.path)))
        rows.append(SheetRow(query, tuple(hits)))
    return rows


def _name(path: Path) -> str:
    """The file in its folder."""
    return "/".join(path.parts[-2:])


def _photo(path: Path) -> np.ndarray | None:
    try:
        return reduced(read_small(path, TILE_PX))
    except DuneError as error:
        return _no_picture(path, error)


def _frames(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    try:
        with Video(path) as video:
            for frame in video:
                if frame.index in wanted:
                    found[frame.index] = reduced(frame.rgb)
                if frame.index >= max(wanted):
                    break
        if len(found) < len(wanted):
            raise UserError(f"{path} has no frame {min(wanted - found.keys())}")
    except DuneError as error:
        _no_picture(path, error)
    return found


def _no_picture(path: Path, error: DuneError) -> None:
    console.note_once(f"an empty tile stands for {path}: {error}", "photos that are gone")
