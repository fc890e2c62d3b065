"""Files of Depth Anything 3 in the published layout, with the deterministic weights of the parity fixtures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from support.published_files import Fixture, make_image
from support.shared import shared_file

FIXTURES = ("da3_small", "da3_metric_mini", "da3_mono_mini")
FOLDERS = {"da3_small": "DA3-SMALL", "da3_metric_mini": "DA3METRIC-LARGE", "da3_mono_mini": "DA3MONO-LARGE"}


def state_of(fixture: Fixture) -> dict[str, torch.Tensor]:
    """The recipe's values, adjusted as the fixture says."""
    state = fixture.state()
    for pattern, change in fixture.config["adjust"]:
        for key in state:
            if re.fullmatch(pattern, key):
                state[key] = state[key] * change.get("scale", 1.0) + change.get("add", 0.0)
    return state


def config_of(fixture: Fixture) -> dict[str, object]:
    """The content of config.json."""
    return {"model_name": fixture.config["model"], "config": fixture.config["config"]}


def write_da3(folder: Path, name: str, config: dict[str, object] | None = None) -> Path:
    """`folder`/DA3-…/model.safetensors with its config.json (or `config`; {}: none). The weight file."""
    fixture = Fixture(name)
    place = folder / FOLDERS[name]
    place.mkdir(parents=True, exist_ok=True)
    save_file(state_of(fixture), place / "model.safetensors", {"format": "pt"})
    config = config_of(fixture) if config is None else config
    if config:
        (place / "config.json").write_text(json.dumps(config))
    return place / "model.safetensors"


def shared_da3(name: str) -> Path:
    """The weight file of `write_da3`, written once for all tests of a run, which do not change it."""
    folder = shared_file(name, lambda temporary: write_da3(temporary, name))
    return folder / FOLDERS[name] / "model.safetensors"


def images_of(case: dict[str, object]) -> torch.Tensor:
    """(V, 3, H, W) in [0, 1]."""
    height, width = case["hw"]
    return torch.cat([make_image([1, 3, height, width], seed) for seed in case["image_seeds"]])
