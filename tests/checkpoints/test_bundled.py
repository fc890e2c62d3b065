"""The model that comes with dune: whole, loadable offline, and what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dune_cli.checkpoints import inventory, registry, weights_folder
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.io.photos import read_photo
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.provenance import sha256_of

NAME = "dune-mini"


@pytest.mark.parametrize("name", [entry.name for entry in registry.all_entries() if entry.bundled])
def test_bundled_files_are_the_ones_that_the_registry_means(name: str) -> None:
    located = weights_folder.locate(name)
    assert located.entry is not None and located.origin == "comes with dune"
    assert sha256_of(located.path) == located.entry.sha256
    assert located.path.stat().st_size == located.entry.size_bytes


def test_the_encoder_loads_and_sees(example_photos: Path) -> None:
    encoder = load_encoder(NAME)
    assert isinstance(encoder, DistilledEncoder)
    assert set(encoder.teachers) == {"xfeat", "efficientnet-lite2", "people"}
    assert sum(parameter.numel() for parameter in encoder.vit.parameters()) <= 8_000_000
    assert "Apache-2.0" in encoder.source.licence
    header = inventory.describe_file(weights_folder.locate(NAME))["metadata"]["dune.licence"]
    assert "stem: " in header and "distilled by dune from: " in header
    crops = []
    for name in ("astronaut.png", "chelsea.png"):
        rgb = read_photo(example_photos / name).rgb
        crops.append(torch.from_numpy(rgb[:224, :224].astype(np.float32) / 255).permute(2, 0, 1))
    with torch.inference_mode():
        tokens = encoder(torch.stack(crops))
        flipped = encoder(torch.stack(crops).flip(-1))
    assert torch.isfinite(tokens.patches).all() and tokens.patches.std() > 0.1
    # a photo and its mirror image resemble each other more than two photos do
    one, other = torch.nn.functional.normalize(tokens.patches.mean(1), dim=1)
    mirrored = torch.nn.functional.normalize(flipped.patches.mean(1), dim=1)[0]
    assert one @ mirrored > one @ other + 0.05


def test_encode_needs_no_model(dune: Any, example_photos: Path, tmp_path: Path) -> None:
    done = dune("encode", example_photos / "chelsea.png", "-o", tmp_path / "f.npz", "--teacher", "xfeat")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "f.npz")["patches"].shape[-1] == 256
    assert "licence of the weights: Apache-2.0" in done.stderr
