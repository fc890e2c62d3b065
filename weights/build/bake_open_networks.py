"""Bakes the files of the networks `fastdepth` and `mosaic` out of the publishers' TensorFlow Lite files, once.

    python weights/build/bake_open_networks.py           (where dune is not installed: PYTHONPATH=. python …)
    python weights/build/bake_open_networks.py --files DIR

Downloads 3.7 MB (or takes the files from DIR, where they lie by their published names), checks their hashes, and writes
the float values that their int8 and uint8 weights mean into dune's weights folder. dune needs no TensorFlow afterwards.

| network | file | from | licence |
|---|---|---|---|
| FastDepth | fast_depth_224.tflite | github.com/openmv/openmv, lib/models | MIT (© 2019 Diana Wofk) |
| MOSAIC | mobile_segmenter_r3_quant.tflite | github.com/mlcommons/mobile_models, v1_1/Google | Apache-2.0 |
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from baked import report
from network_readers import read_tflite_convolutions
from torch import nn

from dune_cli.checkpoints import download, weight_files, weights_folder
from dune_cli.errors import DuneError, UserError
from dune_cli.io.outputs import atomic_path, check_output
from dune_cli.models.fastdepth import FastDepth
from dune_cli.models.mosaic import Mosaic
from dune_cli.provenance import sha256_of

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Published:
    """A network and the published file of its weights: file name, URL, sha256, and the notice of its licence."""

    network: type[nn.Module]
    file: str
    url: str
    sha256: str
    notice: str


NETWORKS = {
    "fastdepth": Published(
        FastDepth,
        "fast_depth_224.tflite",
        f"{GITHUB}/openmv/openmv/706e4f64fe35ddb27c65da95fa777c3a41285b50/lib/models/fast_depth_224.tflite",
        "e8957602750f16ac130210868f4403b38b4042f0d10c00b89ec03fc3dc840125",
        "FastDepth, MIT License, Copyright (c) 2019 Diana Wofk; dequantised, otherwise unchanged",
    ),
    "mosaic": Published(
        Mosaic,
        "mobile_segmenter_r3_quant.tflite",
        f"{GITHUB}/mlcommons/mobile_models/18dbc63e017bc51698ecdb7c7e4842c9bb505483/v1_1/Google/"
        "mobile_segmenter_r3_quant.tflite",
        "3e3829907f0024c38fa1e1f4a6831c307403126ea6ad5d9ab29363e6652dd6f5",
        "MOSAIC, Apache-2.0, by Google, from mlcommons/mobile_models; dequantised, otherwise unchanged",
    ),
}


def published_file(published: Published, folder: Path) -> Path:
    """The published file in `folder`, downloaded unless it is there. Raises UserError if its hash is another."""
    path = folder / published.file
    if not path.is_file():
        print(f"fetching {published.url}")
        download.fetch(published.url, path)
    if sha256_of(path) != published.sha256:
        raise UserError(f"{path} is another file than the published one: its sha256 is not {published.sha256}")
    return path


def load_published(name: str, path: Path) -> nn.Module:
    """The network `name` with the weights of its published file."""
    network = NETWORKS[name].network()
    published = read_tflite_convolutions(path)
    convolutions = network.convolutions()
    if len(published) != len(convolutions):
        raise UserError(f"{path} has {len(published)} convolutions; {name} has {len(convolutions)}")
    with torch.no_grad():
        for convolution, (kernel, bias) in zip(convolutions, published):
            if kernel.shape != convolution.weight.shape:
                raise UserError(
                    f"{path}: a kernel of {tuple(kernel.shape)} where {tuple(convolution.weight.shape)} fits"
                )
            convolution.weight.copy_(kernel)
            convolution.bias.copy_(bias)
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, help="folder with the published .tflite files (default: download them)")
    parser.add_argument("-o", "--output", type=Path, help="output folder (default: dune's weights folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args()
    folder = options.output or weights_folder.weights_folder()
    outputs = {
        name: check_output(folder / f"{name}.safetensors", (".safetensors",), options.overwrite) for name in NETWORKS
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name, output in outputs.items():
            source = published_file(NETWORKS[name], options.files or Path(scratch))
            network = load_published(name, source)
            facts = {"notice": NETWORKS[name].notice, "source": {source.name: NETWORKS[name].sha256}}
            with atomic_path(output) as path:
                weight_files.write_safetensors(
                    path, network.state_dict(), {f"dune.{name}": json.dumps(facts, sort_keys=True)}
                )
            report(output, name)


if __name__ == "__main__":
    try:
        main()
    except DuneError as error:
        raise SystemExit(str(error)) from error
