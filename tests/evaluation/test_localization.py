"""`dune eval reloc`: places of known cameras, one photo left out at a time, others refused; files and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dune_cli.cli import main
from dune_cli.errors import UserError
from dune_cli.evaluation import localization
from dune_cli.evaluation.posed_sets import PosedSet, read_posed_sets
from dune_cli.geometry import poses
from dune_cli.io.png import save_png
from dune_cli.matchers.sift import Sift
from dune_cli.sfm.localization import LocalizationConfig
from support import synthetic_maps, synthetic_scenes

Dune = Callable[..., CompletedProcess[str]]


def frame(name: str, pose: np.ndarray, **changes: Any) -> dict[str, Any]:
    entry = {
        "file": f"images/{name}",
        "width": synthetic_maps.WIDTH,
        "height": synthetic_maps.HEIGHT,
        "K": synthetic_maps.K.tolist(),
        "T_cam_to_world": pose.tolist(),
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def write_place(folder: Path, scale: str, seed: int, factor: float = 1.0) -> None:
    (folder / "images").mkdir(parents=True)
    frames = []
    for name, pose in synthetic_maps.POSES.items():
        rgb = synthetic_scenes.render(synthetic_maps.K, pose, synthetic_maps.WIDTH, synthetic_maps.HEIGHT, seed)[0]
        save_png(folder / "images" / name, rgb)
        scaled = poses.from_rotation_translation(pose[:3, :3], factor * pose[:3, 3])
        frames.append(frame(name, scaled))
    (folder / "cameras.json").write_text(json.dumps({"name": folder.name, "scale": scale, "frames": frames}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place in metres, and another one, ten times as large, in no unit."""
    root = tmp_path_factory.mktemp("places")
    write_place(root / "here", "metric (metres)", seed=0)
    write_place(root / "there", "arbitrary", seed=7, factor=10.0)
    return root


@pytest.fixture(scope="module")
def sets(root: Path) -> list[PosedSet]:
    return read_posed_sets(root)


def test_places_are_read(sets: list[PosedSet], root: Path) -> None:
    here, there = sets
    assert (here.name, here.metric, localization.near_distance(here)) == ("here", True, 0.25)
    assert (there.name, there.metric) == ("there", False)
    assert there.extent == pytest.approx(10 * here.extent) and localization.near_distance(there) == pytest.approx(
        0.05 * there.extent
    )
    assert here.extent == pytest.approx(np.linalg.norm([1.0, -0.05, -0.1]))
    assert [image.name for image in here.map.images] == list(synthetic_maps.POSES)
    assert [posed.name for posed in read_posed_sets(root, ["there"])] == ["there"]
    with pytest.raises(UserError, match="unknown set nowhere; this folder has: here, there"):
        read_posed_sets(root, ["nowhere"])


def test_left_out_photos_are_found_and_others_refused(sets: list[PosedSet]) -> None:
    here, there = sets
    scores = list(localization.score_set(Sift(synthetic_maps.WIDTH, 1200), there, [here], LocalizationConfig()))
    own, wrong = scores[:4], scores[4:]
    assert [score.query for score in own] == list(synthetic_maps.POSES) and all(s.other is None for s in own)
    assert all(score.near and score.rotation_deg < 0.5 for score in own)
    assert all(score.position < 0.02 * there.extent for score in own)
    assert not any(score.control_near for score in own)  # no photo of the map was taken so near to another
    assert len(wrong) == 4 and all(s.other == "here" and not s.success and s.position == np.inf for s in wrong)
    summary = localization.summarise(scores, sets)
    assert (summary.queries, summary.located, summary.near) == (4, 4, 1.0)
    assert (summary.wrong_queries, summary.refused, summary.control_near) == (4, 1.0, 0.0)
    assert summary.position_share == pytest.approx(summary.position / there.extent)
    # a query that is not found is infinitely wrong
    lost = [replace(score, success=False, rotation_deg=np.inf, position=np.inf, near=False) for score in own]
    assert localization.summarise([*lost[:3], own[3]], sets).position == np.inf
    assert np.isnan(localization.summarise(own, sets).refused)


def test_a_cascade_asks_the_second_matcher_where_the_first_is_not_confident(sets: list[PosedSet]) -> None:
    here, _ = sets
    first = list(localization.score_set(Sift(synthetic_maps.WIDTH, 1200), here, [], LocalizationConfig()))
    quick = [
        replace(score, success=success, confidence=confidence, seconds=1.0)
        for score, (success, confidence) in zip(first, [(True, 0.9), (True, 0.6), (True, 0.6), (False, 0.0)])
    ]
    best = [
        replace(score, success=success, confidence=confidence, seconds=5.0)
        for score, (success, confidence) in zip(first, [(True, 0.95), (True, 0.5), (True, 0.7), (False, 0.1)])
    ]
    found = [quick[0], *map(localization.cascaded, quick[1:], best[1:])]
    assert [score.confidence for score in found] == [0.9, 0.6, 0.7, 0.1]
    assert [score.seconds for score in found] == [1.0, 6.0, 6.0, 6.0]
    second = Counted(synthetic_maps.WIDTH, 1200)
    asked = list(localization.score_set(second, here, [], LocalizationConfig(), first=quick))
    assert asked[0] is quick[0] and [score.query for score in asked] == [score.query for score in quick]
    assert all(score.seconds > 1.0 for score in asked[1:])


class Counted(Sift):
    """Counts the pairs that it matches."""

    pairs = 0

    def match_features(self, features1: Any, features2: Any) -> Any:
        self.pairs += 1
        return super().match_features(features1, features2)


def test_the_second_matcher_of_a_cascade_is_asked_by_need(sets: list[PosedSet]) -> None:
    here, there = sets
    first, second = Sift(synthetic_maps.WIDTH, 1200), Counted(synthetic_maps.WIDTH, 1200)
    columns = {"auto": (first, second)}
    (found,) = localization.score_columns(columns, here, [], LocalizationConfig()).values()
    assert all(map(localization.is_confident, found)) and second.pairs == 0
    lost = localization.score_columns(columns, here, [there], LocalizationConfig())["auto"]
    assert len(lost) == 8 and second.pairs > 0
    assert lost[:4] == [replace(score, seconds=now.seconds) for score, now in zip(found, lost)]
    # what a column of its own has scored is not scored again
    pairs, second.pairs = second.pairs, 0
    both = localization.score_columns(
        {**columns, "sift": (first,), "second": (second,)}, here, [], LocalizationConfig()
    )
    assert list(both) == ["auto", "sift", "second"] and both["auto"] == both["sift"] and second.pairs > pairs / 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"file": None}, "has no 'file'"),
        ({"K": [[1, 2], [3, 4]]}, "3 x 3"),
        ({"T_cam_to_world": "x"}, "4 x 4 numbers"),
        ({"width": None}, "has no 'width'"),
        ({"file": "images/none.png"}, "none.png is not there"),
        ({"dist_k1": "x"}, "a number is needed"),
        ({"camera": {"model": "LENS", "params": []}}, "the camera model LENS is unknown"),
        ({"camera": {"model": "EQUIRECTANGULAR"}}, "is a panorama"),
    ],
)
def test_broken_frames(root: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = json.loads((root / "here" / "cameras.json").read_text())
    content["frames"] = [entry | {"file": str(root / "here" / entry["file"])} for entry in content["frames"]]
    content["frames"][2] = {k: v for k, v in (content["frames"][2] | change).items() if v is not None}
    (tmp_path / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_posed_sets(tmp_path)
    assert words in str(caught.value) and "frame 2" in str(caught.value)


def test_a_frame_may_have_a_lens(root: Path, tmp_path: Path) -> None:
    content = json.loads((root / "here" / "cameras.json").read_text())
    content["frames"] = [entry | {"file": str(root / "here" / entry["file"])} for entry in content["frames"]]
    lens = {"model": "OPENCV_FISHEYE", "params": [200.0, 201.0, 100.0, 90.0, 0.02, -0.004, 0.001, 0.0]}
    content["frames"][2] = {k: v for k, v in content["frames"][2].items() if k != "K"} | {"camera": lens}
    (tmp_path / "cameras.json").write_text(json.dumps(content))
    (place,) = read_posed_sets(tmp_path)
    camera = place.map.images[2].camera
    assert camera.model == lens["model"] and list(camera.params) == lens["params"]


def test_photos_and_places_without_a_truth_are_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((root / "here" / "cameras.json").read_text())
    content["frames"] = [entry | {"file": str(root / "here" / entry["file"])} for entry in content["frames"]]
    few = content | {"frames": content["frames"][:4], "name": "few"}
    few["frames"][2] = few["frames"][2] | {"K": None}
    far = json.loads(json.dumps(content | {"name": "far"}))
    for frame in far["frames"]:
        for axis, value in enumerate((512345.678, 4567890.123, 187.5)):
            frame["T_cam_to_world"][axis][3] += value
    for name, document in {"few": few, "whole": content, "far": far, "other": {"what": "no set"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cameras.json").write_text(json.dumps(document))
    sets = {posed.name: posed for posed in read_posed_sets(tmp_path)}
    assert sorted(sets) == ["far", content["name"]]
    messages = capsys.readouterr().err
    assert "few/cameras.json has 3 photos with a true pose" in messages and "frame 2 lacks K" in messages
    assert "other/cameras.json is no set of posed photos" in messages
    # where the origin lies is no part of any error, and large coordinates are moved near it
    assert max(np.abs(image.world_from_cam[:3, 3]).max() for image in sets["far"].map.images) < 100
    assert sets["far"].extent == pytest.approx(sets[content["name"]].extent, abs=1e-6)


def test_roots_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        read_posed_sets(tmp_path / "none")
    with pytest.raises(UserError, match=r"no cameras\.json"):
        read_posed_sets(tmp_path)
    (tmp_path / "cameras.json").write_text("[]")
    with pytest.raises(UserError, match="is no set of posed photos"):
        read_posed_sets(tmp_path)
    (tmp_path / "cameras.json").write_text('{"frames": []}')
    with pytest.raises(UserError, match="at least 4"):
        read_posed_sets(tmp_path)


def test_table_and_json(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(synthetic_maps.WIDTH, 1200))
    target = tmp_path / "table.json"
    words = ["eval", "reloc", str(root), "--matcher", "sift", "-o", str(target)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    for shown in ("located; near", "4/4; 100%", "8/8; 100%", "100% of 4", "100% of 8", "most matches", "seconds"):
        assert shown in result.stdout
    document = json.loads(target.read_text())
    assert document["schema"] == "dune.eval-reloc/1"
    assert [row["set"] for row in document["rows"]] == ["here", "there", "all"]
    assert [entry["scale"] for entry in document["sets"]] == ["metric", "arbitrary"]
    assert len(document["queries"]["sift"]) == 16 and document["queries"]["sift"][4]["position"] is None
    assert document["rows"][2]["scores"]["sift"]["near"] == 1.0 and len(document["provenance"]["inputs"]) == 2
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    monkeypatch.setattr("dune_cli.matchers.registry.choose_auto", lambda: ("sift", "matcher sift"))
    monkeypatch.setattr(sift, "build_for_many", lambda: sift.Sift(synthetic_maps.WIDTH, 1200))
    cascade = CliRunner().invoke(main, [*words[:3], "--set", "here", "--json"])
    assert json.loads(cascade.stdout)["rows"][0]["scores"]["auto"]["located"] == 4, cascade.output
    one = CliRunner().invoke(main, [*words[:5], "--set", "here", "--min-confidence", "1", "--json"])
    (row,) = json.loads(one.stdout)["rows"]
    assert row["scores"]["sift"]["located"] == 0 and row["scores"]["sift"]["rotation_deg"] is None


def test_a_folder_without_cameras_is_one_sentence(dune: Dune, tmp_path: Path) -> None:
    done = dune("eval", "reloc", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "no cameras.json" in done.stderr
    assert "reloc" in dune("eval", "--help").stdout


@pytest.mark.slow
def test_hololens_frames_are_found_again(shared_data: Path) -> None:
    """Each of five frames against the other four, by device tracking."""
    (posed,) = read_posed_sets(shared_data / "multiview", ["hololens"])
    few = replace(posed, map=replace(posed.map, images=posed.map.images[1:6]))
    scores = list(localization.score_set(Sift(640, 3000), few, [], LocalizationConfig()))
    assert sum(score.near for score in scores) >= 4
