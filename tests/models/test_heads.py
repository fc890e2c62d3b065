"""Laws of the heads on encoder features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dune_cli.models import heads
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder
from dune_cli.models.heads import Feature, FeatureHeadConfig, HeadCard, HeadedEncoder
from dune_cli.models.patch_embed import HALF, normalise
from dune_cli.models.shared_backbone import SharedBackboneSlot, share
from dune_cli.models.vit import VisionTransformer, VitConfig

CARD = HeadCard("mini", "0" * 64, 64, "apache-2.0")


def mini() -> MiniEncoder:
    torch.manual_seed(0)
    config = MiniConfig(width=64, depth=3, heads=1, hidden=64, parts=("xfeat", "lite"))
    return MiniEncoder(config).eval().requires_grad_(False)


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    config = VitConfig(64, 5, 1, 64, 14, 2, 4, "antialias")
    network = VisionTransformer(config).eval().requires_grad_(False)
    nn.init.normal_(network.pos_embed, std=0.1)
    return network


def head_on(encoder: nn.Module, task: str, kind: str, outputs: int = 1, **sizes: object) -> HeadedEncoder:
    names = heads.default_features(encoder, task, kind)
    config = FeatureHeadConfig(task, kind, heads.measure(encoder, names), outputs, **sizes)
    torch.manual_seed(1)
    return HeadedEncoder(encoder, heads.build_head(config), CARD).eval()


@pytest.mark.parametrize("encoder", [mini, vit], ids=["dune-mini", "vit"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "dpt"])
@torch.inference_mode()
def test_dense_heads_take_any_whole_grid(encoder, kind: str) -> None:
    network = encoder()
    model = head_on(network, "segmentation", kind, 5, upsampling=2)
    patch = network.patch
    for rows, columns in ((2, 3), (7, 1), (1, 1)):
        images = torch.rand(2, 3, rows * patch, columns * patch)
        scale = model.config.output_scale
        assert tuple(model(images).shape) == (2, 5, scale * rows, scale * columns)
        assert tuple(model.logits(images).shape) == (2, 5, rows * patch, columns * patch)
        assert torch.allclose(model(images[1:]), model(images)[1:], atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp", "efficientnet-lite2"])
def test_heads_for_whole_images(kind: str) -> None:
    model = head_on(mini(), "classification", kind, 7)
    assert tuple(model(torch.rand(2, 3, 48, 80)).shape) == (2, 7)


def test_features_of_dune_mini_and_of_a_vit() -> None:
    network = mini()
    assert heads.feature_names(network) == [
        *("tokens0", "cls0", "tokens1", "cls1", "tokens2", "cls2"),
        *("xfeat4", "xfeat8", "lite4", "lite8", "lite16"),
    ]
    features = heads.measure(network, ("tokens2", "cls2", "lite16", "xfeat8", "lite4", "mean:lite8"))
    assert [(f.channels, f.scale) for f in features] == [(64, 1), (64, 0), (120, 1), (64, 2), (24, 4), (48, 0)]
    images = torch.rand(1, 3, 32, 48)
    found = heads.extract(network, images, ("tokens2", "cls0", "mean:xfeat4", "lite4"))
    tokens = network(images)
    assert torch.equal(found["tokens2"], tokens.map().permute(0, 3, 1, 2))
    assert torch.equal(found["cls0"], network.intermediate(images, (0,))[0].cls)
    assert torch.equal(found["lite4"], network.pyramid(images).maps["lite"][4])
    assert torch.equal(found["mean:xfeat4"], network.pyramid(images).maps["xfeat"][4].mean((2, 3)))
    assert heads.default_features(vit(), "depth", "dpt") == ("tokens0", "tokens1", "tokens3", "tokens4", "cls4")


def test_names_that_an_encoder_does_not_give_are_refused() -> None:
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="'edges' is no feature; allowed: tokens0"):
        heads.extract(mini(), images, ("edges",))
    with pytest.raises(ValueError, match="block 9 was asked for; the encoder has the blocks 0 to 2"):
        heads.extract(mini(), images, ("tokens9",))
    with pytest.raises(ValueError, match="'lite16' is no feature of this encoder; its stem gives: none"):
        heads.extract(vit(), torch.rand(1, 3, 28, 28), ("lite16",))
    with pytest.raises(ValueError, match="kind 'dpt' for 'classification'; allowed: linear, mlp, efficientnet-lite2"):
        FeatureHeadConfig("classification", "dpt", (Feature("cls0", 4, 0),), 3)


def test_a_linear_head_is_a_product_of_the_standardised_features() -> None:
    config = FeatureHeadConfig(
        "segmentation", "linear", (Feature("a", 3, 1), Feature("b", 2, 2), Feature("c", 1, 0)), 4
    )
    head = heads.build_head(config)
    head.norms["a"].mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    head.norms["a"].scale.fill_(0.5)
    a, b, c = torch.randn(1, 3, 2, 2), torch.randn(1, 2, 4, 4), torch.randn(1, 1)
    cell = [(a[0, :, 1, 0] - torch.tensor([1.0, 2.0, 3.0])) / 2, b[0, :, 2:, :2].mean((1, 2)), c[0]]
    want = head.project.weight.flatten(1) @ torch.cat(cell) + head.project.bias
    assert torch.allclose(head({"a": a, "b": b, "c": c})[0, :, 1, 0], want, atol=1e-6)


def test_convex_upsampling() -> None:
    torch.manual_seed(0)
    coarse, logits = torch.randn(2, 3, 4, 5), torch.randn(2, 36, 4, 5)
    fine = heads.convex_upsample(coarse, logits)
    assert tuple(fine.shape) == (2, 3, 8, 10)
    assert fine.min() >= coarse.min() and fine.max() <= coarse.max()
    assert torch.allclose(heads.convex_upsample(torch.ones_like(coarse), logits), torch.ones(2, 3, 8, 10))
    middle = torch.zeros(2, 9, 4, 4, 5)
    middle[:, 4] = 100.0  # all weight to the cell itself: cells are repeated, which says where each fine cell lies
    repeated = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(heads.convex_upsample(coarse, middle.flatten(1, 2)), repeated)


def test_depth_grows_with_the_focal_length() -> None:
    model = head_on(mini(), "depth", "dpt", canonical_focal_px=300.0)
    images = torch.rand(2, 3, 48, 64)
    with torch.inference_mode():
        at_300 = model.log_depth(images, 300.0)
        assert torch.equal(at_300, model(images)[:, 0])
        both = model.log_depth(images, torch.tensor([300.0, 600.0])).exp()
    assert torch.allclose(both[0], at_300[0].exp())
    assert torch.allclose(both[1], 2 * at_300[1].exp())


def test_the_input_has_the_shape_of_the_image() -> None:
    assert heads.input_size(480, 640, 16, 277) == (240, 320)
    assert heads.input_size(640, 480, 16, 277) == (320, 240)
    assert heads.input_size(480, 640, 14, 277, long_side_px=448) == (336, 448)
    assert heads.input_size(10, 4000, 16, 224) == (16, 4480)
    with pytest.raises(ValueError, match="0 x 4 px has no size"):
        heads.input_size(0, 4, 16, 224)


def test_one_pass_for_heads_of_one_encoder() -> None:
    """Equal encoders from two files are one; the results are those of each alone, to the bit."""
    depth, classes = head_on(mini(), "depth", "dpt"), head_on(mini(), "segmentation", "linear", 3)
    images = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        alone = [model(images) for model in (depth, classes)]
        slots = [
            SharedBackboneSlot(name, model, "encoder", model.blocks) for name, model in zip("ab", (depth, classes))
        ]
        backbones = share(slots)
        assert backbones["a"] is backbones["b"] is depth.encoder
        together = [model(images) for model in (depth, classes)]
        assert backbones["a"].passes == 1
        assert all(torch.equal(one, two) for one, two in zip(alone, together))
        depth(images.flip(-1))
        assert backbones["a"].passes == 2


def test_a_depth_head_with_a_scene_head() -> None:
    network = mini()
    depth, scene = head_on(network, "depth", "dpt"), head_on(network, "segmentation", "linear", 3)
    images = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        assert depth.with_scene(images)[1] is None
        depth.scene = scene
        result, classes = depth.with_scene(images)
        assert torch.equal(result, depth(images)) and torch.equal(classes, scene(images))
    assert depth.blocks == (1, 2)
    assert len(depth.sources) == 3


def test_the_efficientnet_head_completes_its_stem() -> None:
    """Stem and head, with one network's weights, are that network (its weights drawn at random)."""
    import timm

    encoder = mini()
    whole = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    encoder.stem["lite"].network.load_state_dict(whole.state_dict(), strict=False)
    model = head_on(encoder, "classification", "efficientnet-lite2", 1000)
    state = whole.state_dict()
    model.head.load_state_dict({key: state[key] for key in model.head.state_dict()})
    images = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        assert torch.allclose(model(images), whole(normalise(images, HALF, HALF)), atol=1e-4)
