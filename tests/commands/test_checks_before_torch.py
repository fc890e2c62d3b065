"""What is wrong with the command line or missing on the disk is told before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# command line -> exit code and a word of the message. p0.png and p1.png are photos, photos/ a folder with both, empty/
# one without; broken.jpg is none; `there.*` exist.
CASES = {
    "encode none.png -o a.npz": (2, "no such file"),
    "encode p0.png -o there.npz": (2, "--overwrite"),
    "encode p0.png -o a.npz --model dinov2-vits14": (3, "dune weights pull dinov2-vits14"),
    "encode p0.png -o a.npz --device gpu": (2, "unknown device"),
    "encode p0.png -o a.npz --model dinov9": (2, "neither a file nor a registry name"),
    "encode p0.png -o a.npz --nonsense": (2, "No such option"),
    "reconstruct none.png p0.png -o a.ply": (2, "no such file"),
    "reconstruct p0.png p1.png -o there.ply": (2, "--overwrite"),
    "reconstruct p0.png p1.png -o a.ply --model mast3r-vitl": (3, "pull mast3r-vitl"),
    "reconstruct p0.png p1.png -o a.ply --matcher nope": (2, "unknown matcher"),
    "reconstruct p0.png p1.png -o a.ply --intrinsics none.json": (2, "none.json"),
    "reconstruct photos -o there.ply": (2, "--overwrite"),
    "reconstruct empty -o a.ply": (2, "holds no images"),
    "reconstruct photos -o a.ply --poses none.json": (2, "none.json"),
    "reloc none.png p0.png": (2, "no such file"),
    "reloc p0.png p1.png -o there.json": (2, "--overwrite"),
    "reloc p0.png p1.png --model mast3r-vitl": (3, "pull mast3r-vitl"),
    "reloc p0.png p1.png --ref-depth none.png": (2, "none.png"),
    "reloc --map none p0.png": (2, "the map none is no folder"),
    "reloc --map empty p0.png": (2, "holds no map"),
    "mapfree none --unit-translation -o a.zip": (2, "holds no scene"),
    "mapfree empty --unit-translation -o there.zip": (2, "--overwrite"),
    "depth none.png -o a.png": (2, "no such file"),
    "depth p0.png -o there.png": (2, "--overwrite"),
    "depth p0.png -o a.png --model dinov2-vits14-nyu-dpt": (3, "pull dinov2-vits14-nyu-dpt"),
    "depth p0.png -o a.png --depth-range 5,1": (2, "is no range"),
    "depth p0.png -o a.png --intrinsics none.json": (2, "none.json"),
    "depth broken.jpg -o a.png": (2, "broken.jpg"),
    "depth p0.png -o a.png --size 99999999999999999999": (2, "is too large"),
    "depth p0.png -o p0.png --overwrite": (2, "would replace a photo"),
    "reconstruct photos -o a.ply --masks none": (2, "no such file or folder: --masks none"),
    "reconstruct photos -o a.ply --rig none.json": (2, "none.json"),
    "reconstruct photos -o a.ply --mask nope": (2, "knows no class nope; --mask takes: other, wall"),
    "view p0.png": (2, "is a picture of kind RGB"),
    "view broken.jpg": (2, "has the ending .jpg"),
    "reconstruct photos -o a.ply --seed 99999999999": (2, "is too large"),
    "reconstruct photos -o a.ply --seed -1": (2, "not in the range"),
    "reconstruct photos -o a.ply --gps none.csv": (2, "none.csv"),
    "encode broken.jpg -o a.npz": (2, "broken.jpg"),
    "classify broken.jpg": (2, "broken.jpg"),
    "segment broken.jpg -o a.png": (2, "broken.jpg"),
    "predict broken.jpg --tasks depth -o out": (2, "broken.jpg"),
    "human p0.png -o a.obj --joints none.json": (2, "none.json"),
    "human broken.jpg -o a.obj": (2, "broken.jpg"),
    "eval mapping none": (2, "no such file or folder: none"),
    "export dune-mini -o a.onnx": (2, "dune export encoder|depth|segment|two-view --model dune-mini"),
    "export encodr -o a.onnx": (2, "Did you mean 'encoder'?"),
    "config set depth.output a.png": (2, "--output is given on the command line alone"),
    "human none.png -o a.obj": (2, "no such file"),
    "human p0.png -o there.obj": (2, "--overwrite"),
    "human p0.png -o a.obj --model multihmr-672-s": (3, "pull multihmr-672-s"),
    "human p0.png -o a.obj --model none.pt": (2, "no such file"),
    "classify none.png": (2, "no such file"),
    "classify p0.png --model dinov2-vits14-linear": (3, "pull dinov2-vits14-linear"),
    "segment p0.png -o there.png": (2, "--overwrite"),
    "segment p0.png -o a.png --model dinov2-vits14-ade20k-linear": (3, "pull dinov2-vits14-ade20k-linear"),
    "predict none.png --tasks depth -o out": (2, "no such file"),
    "predict p0.png --tasks depth --model depth=mast3r-vitl -o out": (3, "pull mast3r-vitl"),
    "predict p0.png --tasks nope -o out": (2, "is no task"),
    "distill --teachers xfeat --data none -o run": (2, "no such folder"),
    "distill --teachers xfeat --data empty -o run": (2, "holds no images"),
    "distill --teachers nope --data photos -o run": (2, "unknown teacher"),
    "distill --teachers dinov2 --data photos -o run": (3, "pull dinov2-vitl14-reg"),
    "distill --teachers dinov2=none.pth --data photos -o run": (2, "no such file"),
    "distill --teachers xfeat --data photos -o run --student nope": (2, "unknown --student"),
    "distill --teachers xfeat --data photos -o run --init none.pth": (2, "no such file"),
    "distill --teachers xfeat --data photos -o run --resume": (2, "holds no run"),
    "distill --teachers xfeat --data photos -o run --steps 0": (2, "--steps"),
    "train matcher --encoder none.pth --data photos -o run": (2, "no such file"),
    "train matcher --encoder dune-mini --data none -o run": (2, "is no folder"),
    "eval pairs none": (2, "is no folder"),
    "eval pairs empty -o there.json": (2, "--overwrite"),
    "eval multiview none": (2, "is no folder"),
    "eval depthmaps empty": (2, "no cameras.json"),
    "eval reloc none": (2, "is no folder"),
    "eval mapfree none --submission none.zip": (2, "holds no scene"),
    "eval features --labelled none --model pixels": (2, "is no folder"),
    "eval features --labelled photos --model dinov2-vits14": (3, "pull dinov2-vits14"),
    "bench human --model nope": (2, "is no model"),
    "weights info none.pth": (2, "no such file"),
}

RUN = """
import json, sys
from click.testing import CliRunner
from dune_cli.cli import main

class Reached(BaseException):
    pass

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm", "viser"):
            raise Reached(name)

sys.meta_path.insert(0, Guard())
found = {}
for line in json.load(sys.stdin):
    try:
        result = CliRunner().invoke(main, line.split())
        found[line] = [result.exit_code, result.stderr.strip().splitlines()[-1:]]
    except Reached as error:
        found[line] = [None, [f"imported {error}"]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | None, list[str]]]:
    """What each command line ends with in one process in which torch cannot be imported."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("told")
    for name in ("photos", "empty"):
        (folder / name).mkdir()
    for name in ("p0.png", "p1.png", "photos/p0.png", "photos/p1.png", "photos/p2.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    (folder / "broken.jpg").write_text("no photo")
    for ending in ("npz", "ply", "json", "png", "obj", "zip"):
        (folder / f"there.{ending}").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(list(CASES)), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", CASES)
def test_it_is_told_before_torch_is_imported(line: str, told: dict[str, tuple[int | None, list[str]]]) -> None:
    code, words = CASES[line]
    found, said = told[line]
    assert found == code, said
    assert words in " ".join(said)


def test_every_teacher_without_a_file_says_what_it_takes() -> None:
    """Early and late the same weights are missed."""
    from dune_cli.teachers import registry

    named = {
        name: Path(registry.__file__).with_name(f"{name.replace('-', '_')}.py").read_text() for name in registry.names()
    }
    for name, source in named.items():
        default = registry.weights_of(name)
        assert default is None or f'"{default}"' in source, name
    assert {name for name in named if registry.weights_of(name) is None} == {"aliked", "timm", "xfeat"}
