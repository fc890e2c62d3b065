"""LoMa's weight file in the published layout, with the deterministic weights of the parity fixture."""

from __future__ import annotations

from pathlib import Path

import torch

from support.da3_files import state_of
from support.published_files import Fixture
from support.shared import shared_file

FIXTURE = "loma_b128"


def published_state() -> dict[str, torch.Tensor]:
    """The flat state dict as the publishers' code writes it: the fixture leaves the counters of BatchNorm out."""
    state = state_of(Fixture(FIXTURE))
    means = [key for key in state if key.endswith(".running_mean")]
    return state | {key.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for key in means}


def shared_loma() -> Path:
    """A weights folder with loma_B128.pth, written once for all tests of a run."""

    def write(folder: Path) -> None:
        folder.mkdir()
        torch.save(published_state(), folder / "loma_B128.pth")

    return shared_file("loma-weights", write)
