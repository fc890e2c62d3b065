"""`dune human CLIP -o walk.glb` and `-o walk.bvh`: animations of people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.animations import Gltf, read_bvh
from support.video_files import grey_frames, write_video

COUNT = 3


@pytest.fixture(scope="module")
def pictures(example_photos: Path) -> list[np.ndarray]:
    """The astronaut, who moves to the right."""
    with Image.open(example_photos / "astronaut.png") as image:
        return [np.asarray(image.convert("RGB").rotate(0, translate=(6 * k, 0))) for k in range(COUNT)]


def test_a_glb_of_a_clip(dune: Any, pictures: list[np.ndarray], tmp_path: Path) -> None:
    clip, walk = write_video(tmp_path / "v.avi", pictures), tmp_path / "walk.glb"
    done = dune("human", clip, "-o", walk, "--smooth", "--overlay", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert str(walk) in done.stdout
    facts = json.loads(walk.with_suffix(".json").read_text())
    assert facts["schema"] == "dune.video/1" and facts["frames"] == {"file": "walk.jsonl", "count": COUNT}
    animation = facts["animation"]
    assert animation["files"] == ["walk.glb"] and animation["units"] == "metre"
    assert animation["smoothing"]["lag_s"] == 0
    (person,) = animation["people"]
    assert person["keys"] == COUNT and person["seen_s"] == pytest.approx([0, 0.2]) and person["not_seen_s"] == []
    lines = [json.loads(line) for line in walk.with_suffix(".jsonl").read_text().splitlines()]
    assert len(lines) == COUNT and lines[0]["provenance"] == {"file": "walk.json"}
    assert len(list((tmp_path / "pictures").glob("*.png"))) == COUNT

    file = Gltf(walk)
    (node,) = [k for k, one in enumerate(file.json["nodes"]) if "skin" in one]
    assert file.json["nodes"][node]["extras"]["person"] == 0
    (camera,) = file.json["cameras"]
    K = np.array(camera["extras"]["K"])
    for k, line in enumerate(lines):  # the head in the photo is where the frame's fit has it
        vertices = file.skinned(node, k / 10) * [1, -1, -1]
        x, y = line["people"][0]["head_px"]
        pixels = vertices @ K.T
        near = np.linalg.norm(pixels[:, :2] / pixels[:, 2:] - [x, y], axis=1).min()
        assert near < 12
    assert dune("human", clip, "-o", walk).returncode == 2  # it exists

    done = dune("render", walk, "-o", tmp_path / "walk.png", "--size", "120,160", "--json")
    assert "the bodies are shown at rest" in done.stderr and json.loads(done.stdout)["framed_by"] == "extent"
    shown = (np.asarray(Image.open(tmp_path / "walk.png"))[..., :3] < 250).any(-1)
    assert not shown[:, [0, -1]].any() and not shown[[0, -1]].any() and shown.sum() > 1000


def test_a_bvh_of_photos(dune: Any, pictures: list[np.ndarray], tmp_path: Path) -> None:
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"f{k}.png")
    done = dune("human", tmp_path, "--fps", "5", "-o", tmp_path / "out" / "walk.bvh", "--person", "longest", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["animation"]["files"] == ["walk.bvh"] and facts["animation"]["smoothing"] is None
    assert [Path(one["path"]).name for one in facts["provenance"]["inputs"]] == ["f0.png", "f1.png", "f2.png"]
    file = read_bvh(tmp_path / "out" / "walk.bvh")
    assert file.frame_time_s == pytest.approx(0.2) and len(file.values) == COUNT
    lines = [json.loads(line) for line in (tmp_path / "out" / "walk.jsonl").read_text().splitlines()]
    for k, line in enumerate(lines):
        wanted = np.array(line["people"][0]["translation"]) * [1, -1, -1]
        assert file.positions(k)["root"] == pytest.approx(wanted, abs=1e-5)


def test_nobody_gives_an_empty_animation(dune: Any, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "v.avi", grey_frames(2))
    done = dune("human", clip, "-o", tmp_path / "w.glb")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "w.json").read_text())["animation"]["people"] == []
    assert "animations" not in Gltf(tmp_path / "w.glb").json
    done = dune("human", clip, "-o", tmp_path / "w.bvh", "--overwrite", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["animation"]["files"] == []


WRONG: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "smooth without an animation": (
        lambda d: [d / "v.avi", "-o", d / "out", "--smooth"],
        r"--smooth is for animations, and -o names none; give one video.*\.bvh \.glb, or leave --smooth out",
    ),
    "person of a photo": (
        lambda d: [d / "a.png", "-o", d / "a.glb", "--person", "1"],
        r"--person is for animations, and -o names none",
    ),
    "a wrong person": (
        lambda d: [d / "v.avi", "-o", d / "a.glb", "--person", "tall"],
        r"--person 'tall' is not known; allowed: all, longest, or the number of a person such as 0",
    ),
    "photos without a rate": (
        lambda d: [d / "a.png", d / "b.png", "-o", d / "a.bvh"],
        r"2 photos make an animation only with their rate; give --fps, such as --fps 10, or a folder",
    ),
    "photos of two sizes": (
        lambda d: [d / "a.png", d / "b.png", "-o", d / "a.bvh", "--fps", "5"],
        r"b\.png has 40 x 30 px, and the photos before it 64 x 48; the frames of an animation need one size",
    ),
    "several heights": (
        lambda d: [d / "v.avi", "-o", d / "a.glb", "--height", "1.6,1.7"],
        r"of a video or an animation --height takes one height",
    ),
    "a format": (
        lambda d: [d / "v.avi", "-o", d / "a.glb", "--format", "obj"],
        r"--format is that of the files in a folder, and .*a\.glb is an animation; leave it out",
    ),
    "an overlay of one file": (
        lambda d: [d / "v.avi", "-o", d / "a.glb", "--overlay", d / "o.png"],
        r"the overlays of an animation's frames do not fit into one file .*o\.png; name a folder",
    ),
    "a numbered file that exists": (
        lambda d: [d / "v.avi", "-o", d / "walk.bvh"],
        r"walk_003\.bvh exists already",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_said_in_one_sentence(case: str, dune: Any, tmp_path: Path) -> None:
    arguments, message = WRONG[case]
    write_video(tmp_path / "v.avi", grey_frames(2))
    Image.new("L", (64, 48), 90).save(tmp_path / "a.png")
    Image.new("L", (40, 30), 90).save(tmp_path / "b.png")
    (tmp_path / "walk_003.bvh").touch()
    done = dune("human", *arguments(tmp_path))
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("a.[gbj][lvs]*"))
