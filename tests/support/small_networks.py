"""Networks of `dune bench` with few decoder blocks and weights that nobody drew, where speed is not the point."""

from __future__ import annotations

import pytest
import torch

from dune_cli.evaluation import network_speed, speed
from dune_cli.models.mast3r import DecoderConfig


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    def shallow(encoder_width: int, width: int, depth: int, *rest: float) -> DecoderConfig:
        return DecoderConfig(encoder_width, width, depth // 3, *rest)

    monkeypatch.setattr(network_speed, "DecoderConfig", shallow)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *_, **__: self.fill_(0.01))
    monkeypatch.setattr(speed, "SQUARE", 256)
