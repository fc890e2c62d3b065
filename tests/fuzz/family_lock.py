"""lock.json of the weights folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dune_cli.checkpoints.weights_folder import Pin, read_pins
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    pin = {"sha256": "0f" * 32, "size_bytes": 1234, "source": "https://example.org/a.pth", "pinned": "2026-01-02"}
    tree = {"schema": "dune.lock/1", "files": {"a.pth": pin, "sub/b.safetensors": {**pin, "sha256": "a1" * 32}}}
    return [Sample({"lock.json": json.dumps(tree, indent=1).encode()}, read_pins, _are_pins)]


def _are_pins(pins: dict[str, Pin]) -> None:
    for name, pin in pins.items():
        assert isinstance(name, str) and re.fullmatch("[0-9a-f]{64}", pin.sha256)
        assert isinstance(pin.size_bytes, int) and not isinstance(pin.size_bytes, bool) and pin.size_bytes >= 0
        assert isinstance(pin.source, str) and isinstance(pin.pinned, str)
