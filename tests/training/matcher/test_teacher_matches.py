"""Matches of the teacher on disk: damaged ones are computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.training.matcher import teacher_matches
from dune_cli.training.matcher.scenes import TrainingScene
from dune_cli.training.matcher.teacher_matches import SceneMatches, match_scenes, read_matches


def test_a_damaged_scene_is_matched_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wall").mkdir()
    scene = TrainingScene("wall", tuple(tmp_path / "wall" / f"{k}.jpg" for k in range(3)), False)
    for path in scene.photos:
        path.write_text(path.name)
    names = tuple(path.name for path in scene.photos)
    points = tuple(np.full((4, 2), k, np.float32) for k in range(3))
    each = np.stack([np.arange(4, dtype=np.int32)] * 2, 1)
    pairs = np.array([[0, 1], [1, 2], [0, 2]], np.int32)
    ones = np.ones(4, np.float32)
    found = SceneMatches("wall", names, np.full((3, 2), 9, np.int32), points, pairs, (each,) * 3, (ones,) * 3)
    labels = tmp_path / "labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_matches, "match_scene", lambda *_: found)
        assert read_matches(labels, scene) is None and match_scenes([scene], None, labels) == 1
        path = teacher_matches.matches_file(labels, "wall")
        whole = path.read_bytes()
        assert read_matches(labels, scene) is not None and not capsys.readouterr().err
        path.write_bytes(whole[:-1])
        assert read_matches(labels, scene) is None and "computed again" in capsys.readouterr().err
        match_scenes([scene], None, labels)
    assert path.read_bytes() == whole
    scene.photos[1].write_text("another photo")
    assert read_matches(labels, scene) is None and not capsys.readouterr().err
