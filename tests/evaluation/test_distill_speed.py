"""The speed of the distiller: numbers that add up, teachers of the published shapes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dune_cli import runtime
from dune_cli.commands import bench
from dune_cli.evaluation import distill_speed
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import VitTeacher
from dune_cli.training.distill.students import new_encoder
from support import small_networks


def test_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small student, traced but not compiled to machine code: training/distill/test_preflight.py does that."""

    def small(student: str, name: str, device: torch.device, dtype: torch.dtype) -> VitTeacher:
        vit = VisionTransformer(VitConfig(64, 1, 1, 64, 14, 0, 2, "offset"))
        return VitTeacher(name, vit, ("patch",), Source("random weights")).eval().requires_grad_(False)

    def student(name: str, size_px: int, seed: int, open_weights: bool) -> VisionTransformer:
        return new_encoder("vit:64x2", size_px, seed)

    monkeypatch.setattr(distill_speed, "_teacher", small)
    monkeypatch.setattr(distill_speed, "new_encoder", student)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    small_networks.install(monkeypatch)
    with runtime.use_torch_threads(1):
        result = distill_speed.measure_distill("dune-vits14", 28, 2, "cpu", rounds=1)
    assert (result.size_px, result.batch_size, result.threads) == (28, 2, 1)
    for row in result.steps:
        assert row.images_per_second == pytest.approx(2 / row.seconds)
        assert row.gflop_per_second == pytest.approx(result.gflop / row.seconds)
        assert row.share == pytest.approx(row.gflop_per_second / result.peak[row.way.partition(",")[0]])
    # a step is one pass forward and two backward of two blocks on 4 patches and 5 other tokens of two photos, and of
    # three projectors of one block on the patches; attention and the projectors' ends are not counted here
    products = 24 * 64**2 * 2 * (2 * (4 + 5) + 3 * 4) / 1e9
    assert 3 * products < result.gflop < 3 * products * 1.5
    assert set(result.loop) == {"on the fly", "cached"}
    assert all(
        value > 0 for value in (*result.loop.values(), *result.loading.values(), result.teacher_images_per_second)
    )
    assert any("with the teacher cache" in line for line in bench.distill_table(result))


def test_the_recipes_are_those_of_the_command() -> None:
    assert bench.MODELS["distill"] == tuple(distill_speed.RECIPES)


def test_published_teachers_have_their_shapes() -> None:
    with torch.device("meta"):
        teacher = distill_speed._teacher("dune-vitb14", "mast3r", torch.device("meta"), torch.float32)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == pytest.approx(304e6, rel=0.02)
    assert teacher.widths == {"patch": 1024}
