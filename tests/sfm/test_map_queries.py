"""Many queries in a map: batches, frames with what localized the frames before, and the same from every engine."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dune_cli import runtime
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.io.json_files import json_line
from dune_cli.matchers.sift import Sift
from dune_cli.sfm import map_queries
from dune_cli.sfm.engine import InProcess, ProcessPool
from dune_cli.sfm.landmarks import LandmarkConfig
from dune_cli.sfm.localization import LocalizationConfig
from dune_cli.sfm.map_queries import BATCH, SEGMENT, LocalizationJobs, QueryPhoto, batches, prepare_map
from dune_cli.sfm.photo_map import open_map
from dune_cli.tasks import reloc
from support import synthetic_maps
from support.small_encoders import write_small_mini


def photo(name: str, video: str | None = None, frame: int = 0) -> QueryPhoto:
    return QueryPhoto(Path(name), None, 60.0, None if video is None else Path(video), frame)


def test_batches_do_not_depend_on_what_is_done() -> None:
    queries = [photo(f"{i}") for i in range(11)] + [photo(f"f{i}", "clip", i) for i in range(40)] + [photo("last")]
    whole = batches(queries)
    assert [len(batch.queries) for batch in whole] == [BATCH, 3, SEGMENT, 8, 1]
    assert [batch.is_sequence for batch in whole] == [False, False, True, True, False]
    for done in range(len(queries) + 1):
        left = batches(queries, done)
        assert [replace(batch, skip=0) for batch in left] == whole[len(whole) - len(left) :]
        assert sum(len(batch.queries) - batch.skip for batch in left) == len(queries) - done
        assert all(batch.skip == 0 for batch in left[1:])


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> LocalizationJobs:
    folder = tmp_path_factory.mktemp("map")
    synthetic_maps.write_photos(folder)
    synthetic_maps.write_model(folder)
    (folder / "broken.png").write_bytes(b"no picture")
    for step in range(4):  # the camera stands still, and is elsewhere in the last frame
        shutil.copy(folder / ("query.png" if step < 3 else "images/c.png"), folder / f"frame_{step}.png")
    load = partial(Sift, synthetic_maps.WIDTH, 1500)
    settings = LandmarkConfig(), LocalizationConfig()
    encoder = partial(
        load_encoder, str(write_small_mini(tmp_path_factory.mktemp("encoder") / "mini.safetensors")), "cpu"
    )
    return LocalizationJobs(open_map(folder), load, encoder, 4, folder / "work", *settings)


def lines(jobs: LocalizationJobs, results: Iterator) -> list[str]:
    return [json_line(reloc.map_document(found.of(jobs.photo_map), {}, {"c": found.consistent})) for found in results]


def test_every_engine_gives_the_same_lines(
    jobs: LocalizationJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = jobs.photo_map.folder
    queries = [photo(str(folder / name)) for name in ("query.png", "elsewhere.png", "broken.png")]
    queries += [photo(str(folder / f"frame_{step}.png"), "clip.mp4", step) for step in range(4)]
    one = lines(jobs, InProcess().map(jobs, batches(queries)))
    assert len(one) == len(queries) and sum('"success": true' in line for line in one) == 5
    assert ['"c": false' in line for line in one[3:]] == [False, False, False, True]
    assert all('"c": null' in line for line in one[:3])
    monkeypatch.setattr(runtime, "available_threads", lambda: 3)  # which extract the features of the next queries
    assert lines(jobs, InProcess().map(jobs, batches(queries))) == one
    monkeypatch.undo()
    # a run that goes on
    assert lines(jobs, InProcess().map(jobs, batches(queries[:3], 1))) == one[1:3]
    assert lines(jobs, InProcess().map(jobs, batches(queries[3:], 2))) == one[5:]
    others = replace(jobs, work=tmp_path / "work")
    prepare_map(others, InProcess(), len(queries))
    made = {path.name: path.read_bytes() for path in (tmp_path / "work").rglob("*.safetensors")}
    assert made == {path.name: path.read_bytes() for path in (folder / "work").rglob("*.safetensors")}
    assert lines(others, ProcessPool(2).map(others, batches(queries))) == one


def test_candidates_of_frames_are_also_what_localized_the_frames_before(jobs: LocalizationJobs) -> None:
    folder = jobs.photo_map.folder
    few = replace(jobs, neighbours=1)
    frames = [photo(str(folder / f"frame_{step}.png"), "clip.mp4", step) for step in (0, 1, 2)]
    found = [located.result for located in InProcess().map(few, batches(frames))]
    alone = [located.result for located in InProcess().map(few, batches([replace(q, video=None) for q in frames]))]
    assert [len(result.retrieved) for result in alone] == [1, 1, 1]
    for before, after in itertools.pairwise(found):
        used = [image.name for image in before.retrieved if image.inliers]
        assert set(used) <= {image.name for image in after.retrieved}
    # the encoder sees several photos at once, and each of them as if it were alone
    for together, result in zip(alone, (InProcess().map(few, batches([photo(str(q.path))])) for q in frames)):
        (single,) = result
        assert together.retrieved[0].name == single.result.retrieved[0].name
        assert together.retrieved[0].similarity == pytest.approx(single.result.retrieved[0].similarity, abs=1e-5)


def test_the_second_matcher_is_asked_only_where_the_first_is_not_sure(
    jobs: LocalizationJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def fallback() -> Sift:
        loaded.append(Sift(synthetic_maps.WIDTH, 1200))
        loaded[-1].source = replace(loaded[-1].source, name="second")
        return loaded[-1]

    cascade, queries = replace(jobs, load_fallback=fallback), [photo(str(jobs.photo_map.folder / "query.png"))]
    alone = lines(jobs, InProcess().map(jobs, batches(queries)))
    assert lines(cascade, InProcess().map(cascade, batches(queries))) == alone and not loaded
    elsewhere = [*queries, photo(str(jobs.photo_map.folder / "elsewhere.png"))]
    found = list(InProcess().map(cascade, batches(elsewhere)))
    assert [one.result.success for one in found] == [True, False] and len(loaded) == 1
    assert [one.sources[0].name for one in found] == ["OpenCV SIFT", "second"]
    monkeypatch.setattr(map_queries, "CONFIDENT", 1.0)
    unsure = next(iter(InProcess().map(cascade, batches(queries))))
    confidence = json.loads(alone[0])["confidence"]
    assert len(loaded) == 2 and unsure.result.success and unsure.result.confidence >= confidence - 1e-6
