"""`dune human`: files, pixels and metres, and the sentences for what goes wrong."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from PIL import Image

from dune_cli.commands import human as verb
from dune_cli.provenance import sha256_of
from dune_cli.tasks.human import load_human
from support.body_rotations import from_rotvec
from support.human_files import ANNY, SMPLX, write_placed, write_small, write_smplx
from support.published_files import dune_manifest, dune_tree, make_state_dict

BOTH = pytest.mark.parametrize("name", [SMPLX, ANNY])
SIZE = 224
FOCAL = 500.0  # pixels of the photo
DEPTH = 3.0  # metres of the head


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smplx(tmp_path_factory.mktemp("bodies"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_small(folder / f"{name}.pt", name) for name in (SMPLX, ANNY)}


def read_obj(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Group -> vertices (V, 3), faces (F, 3) from 0."""
    groups: dict[str, tuple[list, list]] = {}
    for line in path.read_text().splitlines():
        word, *values = line.split()
        if word == "g":
            first = 1 + sum(len(vertices) for vertices, _ in groups.values())
            current = groups.setdefault(values[0], ([], []))
        elif word == "v":
            current[0].append([float(value) for value in values[:3]])
        elif word == "f":
            current[1].append([int(value) - first for value in values])
    return {name: (np.array(vertices), np.array(faces)) for name, (vertices, faces) in groups.items()}


class Scene:
    """A black photo with one bright cell, where the head of a resting person 3 m away is to be seen."""

    def __init__(self, width: int, height: int, cell: tuple[int, int], folder: Path) -> None:
        scale = SIZE / max(width, height)
        inner = np.round(np.array([width, height]) * scale)
        border = (SIZE - inner) // 2
        self.scale = inner / np.array([width, height])
        row, column = cell
        corner = (14 * np.array([column, row]) - border) / self.scale
        self.head_px = (14 * np.array([column + 0.5, row + 0.5]) - border) / self.scale - 0.5
        rgb = np.zeros((height, width, 3), np.uint8)
        low, high = np.round(corner).astype(int), np.round(corner + 14 / self.scale).astype(int)
        rgb[low[1] : high[1], low[0] : high[0]] = 255
        self.rgb, self.width, self.height = rgb, width, height
        self.path = folder / "scene.png"
        Image.fromarray(rgb).save(self.path)
        self.K = np.array([[FOCAL, 0, (width - 1) / 2], [0, FOCAL, (height - 1) / 2], [0, 0, 1]])
        self.intrinsics = f"{FOCAL},{FOCAL},{self.K[0, 2]},{self.K[1, 2]}"

    def depth_control(self, name: str) -> float:
        f = FOCAL * self.scale[0]
        return float(np.log(f / DEPTH) if name == ANNY else np.log(DEPTH) / (f / (SIZE / 2 / np.tan(np.pi / 6))))


@BOTH
@pytest.mark.parametrize(("width", "height", "cell"), [(640, 480, (4, 9)), (480, 640, (3, 6))])
def test_a_resting_person_stands_where_it_was_put(
    name: str, width: int, height: int, cell: tuple[int, int], dune: Any, bodies: Path, tmp_path: Path
) -> None:
    scene = Scene(width, height, cell, tmp_path)
    model = write_placed(tmp_path / "placed.pt", name, scene.depth_control(name))
    obj, picture, above = tmp_path / "people.obj", tmp_path / "overlay.png", tmp_path / "above.png"
    done = dune(
        *("human", scene.path, "--model", model, "--body-models", bodies, "-o", obj, "--overlay", picture),
        *("--top-view", above, "--intrinsics", scene.intrinsics, "--dtype", "float32"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(obj), str(picture), str(above)]
    assert "scene.png: 1 person at 3.00 m" in done.stderr

    facts = json.loads(obj.with_suffix(".json").read_text())
    (person,) = facts["people"]
    assert facts["camera"] == {"fx": FOCAL, "fy": FOCAL, "cx": scene.K[0, 2], "cy": scene.K[1, 2], "source": "given"}
    assert facts["image"] == {"file": str(scene.path), "width": width, "height": height}
    assert np.allclose(person["head_px"], scene.head_px, atol=1e-3)
    assert np.allclose(person["head"], DEPTH * np.linalg.inv(scene.K) @ [*scene.head_px, 1], atol=1e-4)
    joints = dict(zip(facts["body_model"]["joints"], np.array(person["joints3d"])))
    ankle, toe = ("foot.{}", "toe1-1.{}") if name == ANNY else ("{}_ankle", "{}_foot")
    left, right = ("L", "R") if name == ANNY else ("left", "right")
    for side in (left, right):
        assert joints[ankle.format(side)][1] > joints["head"][1] + 0.9  # feet down: y grows downwards
        assert joints[toe.format(side)][2] < joints[ankle.format(side)][2] - 0.05  # toes towards the camera
    assert joints[ankle.format(left)][0] > joints[ankle.format(right)][0] + 0.1  # its left is at the picture's right

    groups = read_obj(obj)
    assert list(groups) == ["person_000"]
    assert person["mesh"] == "people.obj#person_000"
    vertices, faces = groups["person_000"]
    assert len(vertices) == facts["body_model"]["vertices"]
    surface = vertices[np.unique(faces)]
    assert 1.2 < np.ptp(surface[:, 1]) < 2.2  # metres tall
    pixels = surface @ scene.K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    box = np.concatenate([pixels.min(0), pixels.max(0)])
    assert np.allclose(person["bbox_xyxy"], box, atol=0.01)
    assert np.allclose(np.array(person["joints2d"]), _project(np.array(person["joints3d"]), scene.K), atol=0.01)

    painted = (np.asarray(Image.open(picture)).astype(int) != scene.rgb).any(-1)
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    seen = np.array([columns[0], rows[0], columns[-1], rows[-1]])
    limits = np.array([width - 1, height - 1])
    assert np.abs(seen - np.concatenate([np.maximum(box[:2], 0), np.minimum(box[2:], limits)])).max() <= 1
    inside = ((pixels >= 1) & (pixels <= limits - 1)).all(1)
    near = np.zeros_like(painted)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(painted, (dy, dx), (0, 1))
    at = np.round(pixels[inside]).astype(int)
    assert near[at[:, 1], at[:, 0]].all()  # a pixel is 6 mm here
    assert np.asarray(Image.open(above)).std() > 5


def _project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    seen = points @ K.T
    return seen[:, :2] / seen[:, 2:]


@BOTH
def test_json_and_body_model_give_the_obj_again(
    name: str, dune: Any, models: dict[str, Path], bodies: Path, example_photos: Path, tmp_path: Path
) -> None:
    obj = tmp_path / "people.obj"
    photo = example_photos / "astronaut.png"
    done = dune("human", photo, "--model", models[name], "--body-models", bodies, "-o", obj, "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    facts = json.loads(obj.with_suffix(".json").read_text())
    assert facts["schema"] == "dune.human/1"
    assert facts["camera"]["source"] == ("predicted" if name == ANNY else "default")
    groups = read_obj(obj)
    assert len(facts["people"]) == len(groups) > 1
    model = load_human(models[name], bodies, device="cpu")
    assert facts["body_model"]["rotvec_joints"] == list(model.rotation_names)
    assert facts["body_model"]["parents"] == list(model.body.parents)
    for number, person in enumerate(facts["people"]):
        assert person["id"] == number
        numbers = person["shape"]["betas"] if name == SMPLX else list(person["shape"].values())
        expression = None if name == ANNY else torch.tensor([person["expression"]])
        posed = model.pose(from_rotvec(torch.tensor([person["rotvec"]])), torch.tensor([numbers]), expression)
        again = posed.vertices[0].numpy() + np.array(person["offset"])
        tolerance = 1e-4 + 1e-6 * np.linalg.norm(person["head"])
        assert np.abs(again - groups[f"person_{number:03d}"][0]).max() < tolerance
    used = facts["provenance"]
    assert [model["name"] for model in used["models"]] == [models[name].name, model.body.source.name]
    assert used["models"][0]["sha256"] == sha256_of(models[name])
    assert used["inputs"] == [{"path": str(photo), "sha256": sha256_of(photo)}]


def _run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(verb.command, [str(argument) for argument in arguments])


def test_glb_and_ply_hold_the_same_people(models: dict[str, Path], example_photos: Path, tmp_path: Path) -> None:
    photo, model = example_photos / "rocket.jpg", models[ANNY]
    for kind in ("obj", "glb", "ply"):
        result = _run(photo, "--model", model, "-o", tmp_path / f"p.{kind}", "--overwrite", "--dtype", "float32")
        assert result.exit_code == 0, result.stderr
    people = list(read_obj(tmp_path / "p.obj").items())
    vertices = np.concatenate([vertices for _, (vertices, _) in people])

    merged = trimesh.load(tmp_path / "p.ply", process=False)
    assert np.allclose(merged.vertices, vertices, rtol=1e-6, atol=1e-5)
    firsts = np.cumsum([0] + [len(own) for _, (own, _) in people[:-1]])
    faces = np.concatenate([own + first for first, (_, (_, own)) in zip(firsts, people)])
    assert np.array_equal(merged.faces, faces)
    numbers = merged.metadata["_ply_raw"]["vertex"]["data"]["mesh"]
    assert np.array_equal(numbers.ravel(), np.repeat(np.arange(len(people)), 19158))

    scene = trimesh.load(tmp_path / "p.glb", process=False)
    assert {name for name, _ in people} <= set(scene.geometry)
    for name, (own, _) in people:
        assert np.allclose(scene.geometry[name].vertices, own * [1, -1, -1], rtol=1e-6, atol=1e-5)
    content = (tmp_path / "p.glb").read_bytes()
    length = struct.unpack("<I", content[12:16])[0]
    tree = json.loads(content[20 : 20 + length])
    names = [node["name"] for node in tree["nodes"]]
    assert names[: len(people)] == [group for group, _ in people]
    assert tree["cameras"][0]["extras"]["width"] == 640


def test_nobody_is_found(dune: Any, models: dict[str, Path], example_photos: Path, tmp_path: Path) -> None:
    photo = example_photos / "coffee.png"
    done = dune(
        *("human", photo, "--model", models[ANNY], "--min-score", 1, "-o", tmp_path / "p.obj", "--json"),
        *("--overlay", tmp_path / "o.png", "--top-view", tmp_path / "t.png"),
    )
    assert done.returncode == 0, done.stderr
    assert "coffee.png: no person has a score of at least 1" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["people"] == []
    assert facts == json.loads((tmp_path / "p.json").read_text())
    assert facts["body_model"]["vertices"] == 19158
    assert read_obj(tmp_path / "p.obj") == {}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o.png")), np.asarray(Image.open(photo).convert("RGB")))
    assert (tmp_path / "t.png").is_file()
    for kind in ("glb", "ply"):
        assert _run(photo, "--model", models[ANNY], "--min-score", 1, "-o", tmp_path / f"p.{kind}", "--overwrite")


def test_select_keeps_the_largest(models: dict[str, Path], example_photos: Path) -> None:
    arguments = (example_photos / "astronaut.png", "--model", models[ANNY], "--json", "--dtype", "float32")
    everybody = json.loads(_run(*arguments).stdout)["people"]
    for which, count in (("largest", 1), ("2", 2), ("all", len(everybody))):
        result = _run(*arguments, "--select", which)
        people = json.loads(result.stdout)["people"]
        assert len(people) == count
        assert [person["id"] for person in people] == list(range(count))
        heads = [person["head_px"] for person in everybody]
        assert all(person["head_px"] in heads for person in people)
        assert all(person["mesh"] is None for person in people)
    assert "left out by --select" in _run(*arguments, "--select", "largest").stderr


def test_a_folder_of_photos(models: dict[str, Path], example_photos: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, turn in (("a.png", None), ("b.png", Image.Transpose.ROTATE_90)):
        with Image.open(example_photos / "rocket.jpg") as image:
            (image if turn is None else image.transpose(turn)).save(photos / name)
    result = _run(
        *(photos, "--model", models[ANNY], "-o", tmp_path / "out", "--format", "ply", "--overlay", tmp_path / "over"),
        *("--intrinsics", "600,600,320,213;600,600,213,320", "--dtype", "float32"),
    )
    assert result.exit_code == 0, result.stderr
    wanted = [tmp_path / "out" / "a.ply", tmp_path / "over" / "a.png", tmp_path / "out" / "b.ply"]
    assert result.stdout.splitlines() == [str(path) for path in (*wanted, tmp_path / "over" / "b.png")]
    sizes = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in "ab"]
    assert [(facts["image"]["width"], facts["camera"]["cx"]) for facts in sizes] == [(640, 320), (427, 213)]


def _dune_file(path: Path) -> Path:
    torch.save(dune_tree(make_state_dict(dune_manifest(64, 1, 4, {}), 1)), path)
    return path


WRONG: dict[str, tuple[Callable[..., list[Any]], int, str]] = {
    "a DUNE file": (
        lambda d, m: ["--model", _dune_file(d / "dune.pth")],
        2,
        "holds a DUNE encoder.*not a human model.*dune encode",
    ),
    "no SMPL-X body": (
        lambda d, m: ["--model", m[SMPLX], "--body-models", d],
        3,
        "SMPL-X body model is not in .*smpl-x.is.tue.mpg.de.*--body-models",
    ),
    "published weights that are not here": (
        lambda d, m: ["--model", "multihmr-672-l-anny"],
        3,
        "dune weights pull multihmr-672-l-anny.*licence",
    ),
    "a height of a predicted size": (
        lambda d, m: ["--model", m[ANNY], "--height", "1.8"],
        2,
        "predicts sizes in metres; leave --height out, or take --model bundled",
    ),
    "joints and a model": (
        lambda d, m: ["--model", m[ANNY], "--joints", _text(d / "j.json", "{}")],
        2,
        "--model and --joints both say where joints come from",
    ),
    "an unknown name": (lambda d, m: ["--model", "multihmr-672-x"], 2, "did you mean multihmr-672-"),
    "another photo's intrinsics": (
        lambda d, m: ["--model", m[ANNY], "--intrinsics", _text(d / "k.json", '{"other.jpg": [[1]]}')],
        2,
        "has no camera for rocket.jpg; it has: other.jpg",
    ),
    "both cameras": (
        lambda d, m: ["--model", m[ANNY], "--intrinsics", "9,9,9,9", "--fov-deg", "60"],
        2,
        "--intrinsics and --fov-deg both",
    ),
    "two cameras for a photo": (
        lambda d, m: ["--model", m[ANNY], "--intrinsics", "600,600,9,9;600,600,9,9"],
        2,
        "2 cameras for 1 images",
    ),
    "a selection in words": (lambda d, m: ["--model", m[ANNY], "--select", "nearest"], 2, "allowed: all, largest, or"),
    "another ending": (lambda d, m: ["--model", m[ANNY], "-o", d / "p.stl"], 2, r"\.stl; allowed: \.obj \.glb \.ply"),
    "one picture for two": (
        lambda d, m: ["--model", m[ANNY], "--overlay", d / "x.png", "--top-view", d / "x.png"],
        2,
        "would both write .*x.png",
    ),
    "a format without a folder": (lambda d, m: ["--model", m[ANNY], "--format", "ply"], 2, "name the folder with -o"),
    "a score in percent": (lambda d, m: ["--model", m[ANNY], "--min-score", "30"], 2, "0<=x<=1"),
}


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_said_in_one_sentence(
    case: str, dune: Any, models: dict[str, Path], example_photos: Path, tmp_path: Path
) -> None:
    arguments, code, message = WRONG[case]
    given = arguments(tmp_path, models)
    output = [] if "-o" in given or "--format" in given else ["-o", tmp_path / "p.obj"]
    done = dune("human", example_photos / "rocket.jpg", *given, *output)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not list(tmp_path.glob("p.*"))


def test_nothing_to_write_is_refused(dune: Any, models: dict[str, Path], example_photos: Path) -> None:
    done = dune("human", example_photos / "rocket.jpg", "--model", models[ANNY])
    assert done.returncode == 2
    assert "nothing to write" in done.stderr


def test_existing_files_are_kept(models: dict[str, Path], example_photos: Path, dune: Any, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("mine")
    done = dune("human", example_photos / "rocket.jpg", "--model", models[ANNY], "-o", tmp_path / "p.obj")
    assert done.returncode == 2
    assert "p.json exists already; add --overwrite" in done.stderr
    assert (tmp_path / "p.json").read_text() == "mine"


@pytest.mark.parametrize("size", [(100, 60), (16, 900), (900, 16)])
def test_small_and_long_photos(size: tuple[int, int], models: dict[str, Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    result = _run(tmp_path / "odd.png", "--model", models[ANNY], "--json", "--overlay", tmp_path / "o.png")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["image"]["width"] == size[0]
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.size == size


def test_help_shows_units_defaults_and_an_example(dune: Any) -> None:
    text = dune("human", "--help").stdout
    for word in ("Example:", "metres", "0.3", "multihmr-672-l-anny", "--select largest|N|all"):
        assert word in text


def test_without_model_the_best_file_that_is_here_is_taken(
    dune: Any, models: dict[str, Path], bodies: Path, example_photos: Path
) -> None:
    home = Path(os.environ["DUNE_WEIGHTS"])
    for name, file in ((SMPLX, "multiHMR_672_S.pt"), (ANNY, "multiHMR_672_L_anny.pt")):
        (home / file).symlink_to(models[name])
        done = dune("human", example_photos / "rocket.jpg", "--body-models", bodies, "--json")
        assert done.returncode == 0, done.stderr
        used = json.loads(done.stdout)["provenance"]["models"]
        assert used[0]["name"] == ("multihmr-672-s" if name == SMPLX else "multihmr-672-l-anny")
        assert "non-commercial" in used[0]["licence"]
