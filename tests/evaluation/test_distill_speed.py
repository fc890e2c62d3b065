"""The speed of the distiller: numbers that add up, teachers of the published shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dune_cli.commands import bench
from dune_cli.evaluation import distill_speed, speed
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import VitTeacher


@pytest.mark.slow
def test_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # tests side by side must not share it

    def small(student: str, name: str, device: torch.device, dtype: torch.dtype) -> VitTeacher:
        vit = VisionTransformer(VitConfig(64, 1, 1, 64, 14, 0, 2, "offset"))
        return VitTeacher(name, vit, ("patch",), Source("random weights")).eval().requires_grad_(False)

    monkeypatch.setattr(distill_speed, "_teacher", small)
    with speed.threads(1):
        found = distill_speed.measure_distill("dune-vits14", 28, 2, "cpu", rounds=1)
    assert (found.size_px, found.batch_size, found.threads) == (28, 2, 1)
    for row in found.steps:
        assert row.images_per_second == pytest.approx(2 / row.seconds)
        assert row.gflop_per_second == pytest.approx(found.gflop / row.seconds)
        assert row.share == pytest.approx(row.gflop_per_second / found.peak[row.way.partition(",")[0]])
    # a step is one pass forward and two backward: 5 blocks' worth of tokens more than the ViT's own products
    tokens = 2 * (4 + 5)
    forward = 12 * 24 * tokens * 384**2 / 1e9
    assert found.gflop > 3 * forward
    assert found.gflop < 3 * forward * 1.7  # three projectors of one block each, and attention
    assert set(found.loop) == {"on the fly", "cached"}
    assert all(value > 0 for value in (*found.loop.values(), *found.loading.values(), found.teacher_images_per_second))
    assert any("with the teacher cache" in line for line in bench.distill_table(found))


def test_the_recipes_are_those_of_the_command() -> None:
    assert bench.MODELS["distill"] == tuple(distill_speed.RECIPES)


def test_published_teachers_have_their_shapes() -> None:
    with torch.device("meta"):
        teacher = distill_speed._teacher("dune-vitb14", "mast3r", torch.device("meta"), torch.float32)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == pytest.approx(304e6, rel=0.02)
    assert teacher.widths == {"patch": 1024}
