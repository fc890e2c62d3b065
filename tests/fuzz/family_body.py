"""SMPL-X model files (made up, of the published layout)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.bodies.smplx import JOINTS, PARENTS, SmplX, read_model
from dune_cli.provenance import Source
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    vertices = 8
    weights, regressor = rng.random((vertices, 55)) ** 8, rng.random((55, vertices)) ** 8
    arrays = {
        "v_template": rng.normal(0, 0.4, (vertices, 3)),
        "f": rng.integers(0, vertices, (12, 3)).astype(np.uint32),
        "shapedirs": rng.normal(0, 0.01, (vertices, 3, 20)).astype(np.float32),
        "posedirs": rng.normal(0, 0.001, (vertices, 3, 486)).astype(np.float32),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([(2**32 - 1, *PARENTS[1:]), range(55)], np.uint32),
        "part2num": np.array("not needed"),
    }
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        found.append(Sample({"SMPLX_NEUTRAL.npz": file.getvalue()}, _read, _is_body))
    return found


def _read(case: Path) -> SmplX:
    return SmplX(read_model(case / "SMPLX_NEUTRAL.npz", 10, 10), 10, 10, Source("smplx-neutral"))


def _is_body(body: SmplX) -> None:
    import torch

    posed = body(body.rest_rotations(), torch.zeros(1, 10))
    assert posed.joints.shape == (1, len(JOINTS), 3) and torch.isfinite(posed.joints).all()
    assert torch.isfinite(posed.vertices).all() and posed.vertices.abs().max() < 1e5
    assert body.faces.min() >= 0 and body.faces.max() < posed.vertices.shape[1]
