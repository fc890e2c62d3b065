"""Laws of the networks: batches, sizes, positions, number types, symmetric views, work not done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dune_cli.checkpoints.adapters import dinov2, dune, mast3r
from dune_cli.models.blocks import GatedMlp, Rope2d, rotate
from dune_cli.models.mast3r import TwoViewModel
from dune_cli.models.patch_embed import resample
from dune_cli.models.precision import set_trunk_dtype
from dune_cli.models.vit import VisionTransformer
from support.published_files import Fixture, dinov2_manifest, dune_manifest, make_image, make_state_dict, mast3r_tree


def small_vit(registers: int = 0, width: int = 128, depth: int = 3, side: int = 5) -> VisionTransformer:
    state = make_state_dict(dinov2_manifest(width, depth, side, registers), 3)
    return dinov2.build(state).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mini() -> Fixture:
    return Fixture("mast3r_mini")


@pytest.fixture(scope="module")
def two_view(mini: Fixture) -> TwoViewModel:
    return mast3r.build(mast3r_tree(mini.config["model"], mini.state())).eval().requires_grad_(False)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(70, 70), (42, 98), (98, 42), (14, 14), (154, 28)])
def test_a_batch_equals_its_images_one_by_one(registers: int, size: tuple[int, int]) -> None:
    encoder = small_vit(registers)
    images = make_image([3, 3, *size], 1)
    batch = encoder(images)
    assert batch.grid == (size[0] // 14, size[1] // 14)
    assert batch.patches.shape == (3, batch.grid[0] * batch.grid[1], 128)
    assert batch.registers.shape == (3, registers, 128)
    assert batch.map().shape == (3, *batch.grid, 128)
    for index in range(3):
        single = encoder(images[index : index + 1])
        torch.testing.assert_close(single.patches[0], batch.patches[index], atol=1e-5, rtol=0)
        torch.testing.assert_close(single.cls[0], batch.cls[index], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "shape, said", [((1, 3, 70, 71), "70x71"), ((1, 3, 13, 14), "13x14"), ((1, 1, 14, 14), "(1, 1, 14, 14)")]
)
def test_sizes_that_do_not_fit_are_named(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match="received") as caught:
        small_vit()(torch.zeros(shape))
    assert said in str(caught.value)


def test_two_view_sizes_that_do_not_fit_are_named(two_view: TwoViewModel) -> None:
    with pytest.raises(ValueError, match="multiples of the patch size 16; received 96x100"):
        two_view(torch.zeros(1, 3, 96, 160), torch.zeros(1, 3, 96, 100))
    with pytest.raises(ValueError, match="one batch size; received 1 and 2"):
        two_view(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


def test_the_native_grid_is_not_resampled() -> None:
    positions = torch.randn(1, 26, 8)
    for policy in ("offset", "antialias"):
        assert resample(positions, (5, 5), policy) is positions


@pytest.mark.parametrize("grid", [(3, 9), (11, 2), (5, 6), (1, 1), (37, 23), (64, 48), (7, 130)])
@pytest.mark.parametrize("side", [5, 24, 32, 37])
def test_every_grid_is_reached_by_both_policies(grid: tuple[int, int], side: int) -> None:
    positions = torch.randn(1, 1 + side * side, 4)
    for policy in ("offset", "antialias"):
        out = resample(positions, grid, policy)
        assert out.shape == (1, 1 + grid[0] * grid[1], 4)
        assert torch.equal(out[:, 0], positions[:, 0])


def _cubic(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Bicubic convolution (a = -0.75) along one axis, edges repeated."""
    base = at.floor()
    total = torch.zeros(len(at))
    for tap in range(-1, 3):
        distance = (at - base - tap).abs()
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        total += torch.where(distance <= 1, near, far) * values[(base + tap).long().clamp(0, len(values) - 1)]
    return total


@pytest.mark.parametrize("width", [5, 16, 22, 37])
def test_the_offset_policy_samples_with_its_own_factor(width: int) -> None:
    """At (x + 0.5)·M/(w + 0.1) - 0.5, and not where the sizes alone would say, (x + 0.5)·M/w - 0.5."""
    side = 24
    values = torch.randn(side)
    positions = torch.cat([torch.zeros(1, 1, 1), values.expand(side, side).reshape(1, -1, 1)], 1)
    out = resample(positions, (side, width), "offset")[0, 1:, 0].view(side, width)[12]
    x = torch.arange(width) + 0.5
    torch.testing.assert_close(out, _cubic(values, x * side / (width + 0.1) - 0.5), atol=1e-4, rtol=0)
    assert (out - _cubic(values, x * side / width - 0.5)).abs().max() > 0.01


def test_positions_are_kept_per_grid_and_forgotten_when_they_change() -> None:
    encoder = small_vit()
    image = make_image([1, 3, 42, 56], 2)
    first = encoder(image).patches
    assert torch.equal(first, encoder(image).patches)
    state = encoder.state_dict()
    encoder.load_state_dict(state | {"pos_embed": state["pos_embed"] + 1})
    assert not torch.allclose(first, encoder(image).patches)
    encoder.load_state_dict(state)
    torch.testing.assert_close(encoder(image).patches, first)


def test_a_vit_trains() -> None:
    encoder = small_vit().train().requires_grad_(True)
    encoder(make_image([1, 3, 42, 56], 2)).patches.square().mean().backward()
    missing = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert missing == []


def test_features_made_without_gradients_leave_later_training_alone() -> None:
    encoder = small_vit()
    image = make_image([1, 3, 42, 56], 2)
    with torch.inference_mode():
        encoder(image)
    encoder.train().requires_grad_(True)
    encoder(image).cls.sum().backward()
    assert encoder.pos_embed.grad is not None


def test_two_view_model_trains_after_inference(mini: Fixture) -> None:
    model = mast3r.build(mast3r_tree(mini.config["model"], mini.state()))
    images = make_image([2, 3, 32, 48], 1).split(1)
    with torch.inference_mode():
        model(*images)
    model(*images).descriptors1.sum().backward()
    assert model.decoder.blocks2[0].attn.qkv.weight.grad is not None


def test_rotation_makes_scores_depend_on_the_offset_only() -> None:
    rope = Rope2d(32, 100.0)
    rotation = rope((6, 7), torch.device("cpu"))
    q, k = torch.randn(2, 32)
    scores = rotate(q.expand(1, 42, 1, 32), rotation)[0, :, 0] @ rotate(k.expand(1, 42, 1, 32), rotation)[0, :, 0].T
    rows, columns = torch.arange(42) // 7, torch.arange(42) % 7
    seen: dict[tuple[int, int], float] = {}
    for i in range(42):
        for j in range(42):
            offset = int(rows[i] - rows[j]), int(columns[i] - columns[j])
            assert abs(seen.setdefault(offset, float(scores[i, j])) - float(scores[i, j])) < 1e-4
    assert torch.allclose(rotate(q.expand(1, 42, 1, 32), rotation).norm(dim=-1), q.norm(), atol=1e-5)


def test_symmetric_weights_make_swapped_views_swap_their_outputs(mini: Fixture) -> None:
    state = {key: value for key, value in mini.state().items() if not key.startswith("dec_blocks2.")}
    first = "downstream_head1."
    heads = {key.replace("head1", "head2", 1): value for key, value in state.items() if key.startswith(first)}
    model = mast3r.build(mast3r_tree(mini.config["model"], state | heads)).eval().requires_grad_(False)
    a, b = make_image([2, 3, 64, 48], 5).split(1)
    there, back = model(a, b), model(b, a)
    torch.testing.assert_close(there.points1, back.points2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.descriptors2, back.descriptors1, rtol=0, atol=1e-5)
    assert not torch.allclose(there.descriptors1, there.descriptors2)


@pytest.mark.parametrize("sizes", [((64, 96), (64, 96)), ((48, 80), (112, 32)), ((80, 48), (16, 16))])
def test_views_may_differ_in_size_and_batches_are_independent(two_view: TwoViewModel, sizes: Any) -> None:
    one, two = (make_image([2, 3, *size], seed) for seed, size in enumerate(sizes, 7))
    batch = two_view(one, two)
    assert batch.points1.shape == (2, *sizes[0], 3)
    assert batch.descriptors2.shape == (2, *sizes[1], 24)
    assert batch.descriptor_confidence2.shape == (2, *sizes[1])
    for index in range(2):
        single = two_view(one[index : index + 1], two[index : index + 1])
        error = (single.points2[0] - batch.points2[index]).norm(dim=-1) / batch.points2[index].norm(dim=-1)
        assert error.max() < 1e-3
        torch.testing.assert_close(single.descriptors1[0], batch.descriptors1[index], atol=1e-5, rtol=0)


def test_features_encoded_once_serve_several_pairs(two_view: TwoViewModel) -> None:
    images = make_image([3, 3, 48, 64], 4).split(1)
    views = [two_view.encode(image) for image in images]
    direct, reused = two_view(images[0], images[2]), two_view.decode(views[0], views[2])
    torch.testing.assert_close(direct.descriptors1, reused.descriptors1, atol=1e-5, rtol=0)


def test_what_is_not_asked_for_is_not_computed(two_view: TwoViewModel, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_image([2, 3, 48, 64], 4).split(1)
    full = two_view(*images)
    for head in (two_view.head1, two_view.head2):
        monkeypatch.setattr(head.points, "forward", None)
    only = two_view(*images, points=False)
    assert only.points1 is None
    assert only.confidence2 is None
    assert torch.equal(only.descriptors2, full.descriptors2)
    monkeypatch.undo()
    for head in (two_view.head1, two_view.head2):
        monkeypatch.setattr(head.local, "forward", None)
    only = two_view(*images, descriptors=False)
    assert only.descriptors1 is None
    assert only.descriptor_confidence2 is None
    assert torch.equal(only.points2, full.points2)


def test_bfloat16_trunk_stays_near_float32_and_answers_in_float32() -> None:
    encoder = small_vit(4)
    image = make_image([1, 3, 98, 70], 6)
    exact = encoder(image)
    set_trunk_dtype(encoder, torch.bfloat16)
    assert {encoder.blocks[0].attn.qkv.weight.dtype, encoder.blocks[2].mlp.fc2.bias.dtype} == {torch.bfloat16}
    kept = {encoder.norm.weight.dtype, encoder.blocks[0].ls1.gamma.dtype, encoder.patch_embed.proj.weight.dtype}
    assert kept == {torch.float32}
    rough = encoder(image)
    assert rough.patches.dtype == torch.float32
    error = (rough.patches - exact.patches).norm() / exact.patches.norm()
    assert 1e-5 < error < 0.02


def test_bfloat16_two_view_stays_near_float32(mini: Fixture) -> None:
    model = mast3r.build(mast3r_tree(mini.config["model"], mini.state())).eval().requires_grad_(False)
    images = make_image([2, 3, 64, 96], 8).split(1)
    exact = model(*images)
    set_trunk_dtype(model, torch.bfloat16)
    assert model.head1.local.fc1.weight.dtype == model.head1.points.head[0].weight.dtype == torch.float32
    rough = model(*images)
    assert rough.points1.dtype == torch.float32
    cosine = (rough.descriptors1 * exact.descriptors1).sum(-1)
    assert 0.99 < cosine.mean() < 1
    with pytest.raises(ValueError, match="float64"):
        set_trunk_dtype(model, torch.float64)


@pytest.mark.parametrize("width, heads", [(384, 6), (768, 12), (1024, 16)])
def test_head_counts_follow_from_the_width(width: int, heads: int) -> None:
    """Against timm's independent ViT: attention depends on how the width is cut into heads."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    other = timm.models.vision_transformer.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=width, depth=2, num_heads=heads, init_values=0.5, num_classes=0
    ).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    encoder = dinov2.build(other.state_dict()).eval().requires_grad_(False)
    assert encoder.blocks[0].attn.heads == heads
    image = make_image([2, 3, 56, 56], 9)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = other.forward_features((image - mean) / std).detach()
    tokens = encoder(image)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.cls, expected[:, 0], atol=1e-4, rtol=0)


def test_projection_equals_its_parts() -> None:
    """A projector is a block over CLS and patches (no registers) and a linear layer, here spelt out."""
    state = make_state_dict(dune_manifest(128, 2, 4, {"one": 32, "two": 48}), 11)
    encoder = dune.build({"model": state}).eval().requires_grad_(False)
    image = make_image([2, 3, 42, 70], 3)
    tokens = encoder(image, norm=False)
    x = torch.cat([tokens.cls[:, None], tokens.patches], 1)
    at = "projectors.two.blocks.0."
    y = F.layer_norm(x, (128,), state[f"{at}norm1.weight"], state[f"{at}norm1.bias"], 1e-6)
    q, k, v = F.linear(y, state[f"{at}attn.qkv.weight"], state[f"{at}attn.qkv.bias"]).view(2, -1, 3, 2, 64).unbind(2)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 8
    y = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).reshape(2, -1, 128)
    x = x + state[f"{at}ls1.gamma"] * F.linear(y, state[f"{at}attn.proj.weight"], state[f"{at}attn.proj.bias"])
    y = F.layer_norm(x, (128,), state[f"{at}norm2.weight"], state[f"{at}norm2.bias"], 1e-6)
    y = F.gelu(F.linear(y, state[f"{at}mlp.fc1.weight"], state[f"{at}mlp.fc1.bias"]))
    x = x + state[f"{at}ls2.gamma"] * F.linear(y, state[f"{at}mlp.fc2.weight"], state[f"{at}mlp.fc2.bias"])
    x = F.linear(x, state["projectors.two.linear.weight"], state["projectors.two.linear.bias"])
    found = encoder.project(image, "two")
    torch.testing.assert_close(found.cls, x[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.patches, x[:, 1:], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="it has: one, two"):
        encoder.project(image, "three")


def test_the_gated_mlp_is_timms() -> None:
    from timm.layers.mlp import SwiGLUPacked

    torch.manual_seed(3)
    ours, theirs = GatedMlp(12, 16), SwiGLUPacked(12, hidden_features=32)
    theirs.fc1.load_state_dict(ours.w12.state_dict())
    theirs.fc2.load_state_dict(ours.w3.state_dict())
    x = torch.randn(2, 5, 12)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
