"""Files of Depth Anything 3: recognised by keys, told apart by names and config.json, refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dune_cli import load_depth, load_encoder, load_multiview
from dune_cli.checkpoints import adapters, inventory, loader, weight_files, weights_folder
from dune_cli.checkpoints.surroundings import UNKNOWN, Surroundings
from dune_cli.errors import CheckpointError, UserError
from dune_cli.models.depth_anything3 import MonocularDepth
from support.da3_files import config_of, shared_da3, state_of
from support.published_files import Fixture

NORM = "model.head.scratch.output_conv2_aux.{}.2.weight"


@pytest.fixture(scope="module")
def multi_view() -> dict[str, torch.Tensor]:
    return state_of(Fixture("da3_small"))


@pytest.fixture(scope="module")
def monocular() -> dict[str, torch.Tensor]:
    return state_of(Fixture("da3_metric_mini"))


def build(state: dict[str, torch.Tensor], around: Surroundings = UNKNOWN) -> Any:
    adapter, checkpoint = adapters.identify(state, None, around)
    return adapter.build(checkpoint)


def beside(folder: Path, config: object, *names: str) -> Surroundings:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return Surroundings(names, folder)


def test_shapes_decide_without_a_config(multi_view: dict[str, torch.Tensor]) -> None:
    network = build(multi_view)
    assert network.backbone.layers == (5, 7, 9, 11) and network.backbone.first_global == 4
    with_config = build(multi_view, Surroundings(folder=shared_da3("da3_small").parent))
    for one, two in zip(network.state_dict().values(), with_config.state_dict().values()):
        assert torch.equal(one, two)


def test_what_a_file_holds(multi_view: dict[str, torch.Tensor], monocular: dict[str, torch.Tensor]) -> None:
    found = adapters.describe(multi_view)
    assert (found.layout, found.kind, found.width, found.patch) == ("da3-multi-view", "multi-view", 384, 14)
    assert found.parameters == 33_993_874  # of 34.3 M: rays of coarser levels are not used
    assert "views joined from block 4 on" in found.architecture and found.notes == ("takes given poses",)
    found = adapters.describe(monocular)
    assert (found.layout, found.kind) == ("da3-monocular", "depth")
    assert "METRIC or MONO (neither name nor config.json says)" in found.architecture
    assert "metric depth" in adapters.describe(monocular, None, Surroundings(("da3metric-large",))).architecture


def test_the_shared_norm_is_read_wherever_it_was_stored(multi_view: dict[str, torch.Tensor]) -> None:
    expected = build(multi_view).head.ray_norm.weight
    for level in (1, 3):
        moved = {key.replace("aux.0.2.", f"aux.{level}.2."): value for key, value in multi_view.items()}
        assert torch.equal(build(moved).head.ray_norm.weight, expected)
    untied = multi_view | {NORM.format(3): 2 * multi_view[NORM.format(0)]}
    assert torch.equal(build(untied).head.ray_norm.weight, 2 * expected)
    without = {key: value for key, value in multi_view.items() if key != NORM.format(0)}
    with pytest.raises(CheckpointError, match=r"1 key missing: model.head.scratch.output_conv2_aux.0.2.weight"):
        build(without)


def test_unknown_keys_are_ignored_and_unused_ones_may_lack(multi_view: dict[str, torch.Tensor]) -> None:
    more = multi_view | {"model.gs_head.weight": torch.zeros(3), "model.backbone.pretrained.mask_token": torch.zeros(1)}
    used = {key: value for key, value in more.items() if "_aux.1.0." not in key and "_aux.1.4" not in key}
    build(used)


@pytest.mark.parametrize(
    "key",
    [
        "model.backbone.pretrained.camera_token",
        "model.backbone.pretrained.blocks.7.attn.q_norm.weight",
        "model.head.scratch.refinenet2_aux.resConfUnit1.conv1.bias",
        "model.cam_dec.fc_qvec.weight",
        "model.cam_enc.pose_branch.fc1.bias",
        "model.head.norm.weight",
    ],
)
def test_a_missing_key_and_a_wrong_shape_are_named(multi_view: dict[str, torch.Tensor], key: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not fit a multi-view model of Depth Anything 3.*{key}") as caught:
        build({name: value for name, value in multi_view.items() if name != key})
    assert "\n" not in str(caught.value)
    shape = [3, *multi_view[key].shape]
    with pytest.raises(CheckpointError, match=f"of another shape: {key} is \\({shape[0]}, "):
        build(multi_view | {key: torch.zeros(shape)})


def test_heads_that_do_not_belong_to_the_backbone(monocular: dict[str, torch.Tensor]) -> None:
    around = Surroundings(("DA3METRIC-LARGE",))
    wrong = {f"model.head.projects.{i}.weight": torch.zeros(48 * 2**i, 768, 1, 1) for i in range(4)}
    with pytest.raises(CheckpointError, match=r"model.head takes 768 channels .* of width 384 it takes 384"):
        build(monocular | wrong, around)
    with pytest.raises(CheckpointError, match=r"model.head.projects.2.weight is missing"):
        build({key: value for key, value in monocular.items() if "projects.2" not in key}, around)


@pytest.mark.parametrize(
    ("names", "metric"),
    [
        (("da3metric-large", "DA3METRIC-LARGE.safetensors"), True),
        (("model.safetensors", "DA3MONO-LARGE"), False),
        (("model.safetensors", "0a1b2c", "snapshots", "models--depth-anything--DA3METRIC-LARGE"), True),
        (("da3mono_large.safetensors", "DA3METRIC-LARGE"), False),  # the nearest name
        (("both da3metric da3mono.safetensors", "depth_anything_3_mono"), False),
    ],
)
def test_names_tell_metric_from_mono(monocular: dict[str, torch.Tensor], names: tuple[str, ...], metric: bool) -> None:
    model = build(monocular, Surroundings(names))
    assert isinstance(model, MonocularDepth) and model.metric is metric
    assert model.backbone.layers == (2, 5, 8, 11)


def test_config_tells_metric_from_mono(tmp_path: Path, monocular: dict[str, torch.Tensor]) -> None:
    for name, metric in (("da3metric-large", True), ("da3mono-large", False)):
        around = beside(tmp_path, {"model_name": name}, "DA3METRIC-LARGE")
        assert build(monocular, around).metric is metric
    around = beside(tmp_path, {"config": config_of(Fixture("da3_mono_mini"))["config"]}, "da3mono-large")
    assert build(monocular, around).metric is False


def test_metric_and_mono_that_cannot_be_told_apart(tmp_path: Path, monocular: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(monocular, path)
    with pytest.raises(
        CheckpointError, match=r"same keys and shapes, and neither its name nor a config.json says"
    ) as e:
        load_depth(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    (tmp_path / "config.json").write_text('{"model_name": "da3-small"}')
    with pytest.raises(CheckpointError, match=r"config.json says model_name 'da3-small'; put its config.json"):
        load_depth(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not a JSON file"):
        load_depth(path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json is no JSON object; fetch it again, or remove it"):
        load_depth(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_layers": [5, 7, 9]}, r"says out_layers \[5, 7, 9\]; four of its 12 blocks are needed"),
        ({"out_layers": [5, 7, 9, 12]}, "four of its 12 blocks are needed"),
        ({"out_layers": [1, 7, 9, 11]}, r"alt_start 4 and out_layers \[1, 7, 9, 11\]; blocks before alt_start cannot"),
        ({"out_layers": "all"}, "says out_layers 'all'"),
        ({"alt_start": -1}, "says alt_start -1, which its keys contradict"),
        ({"alt_start": True}, "says alt_start True; the number of a block, or -1"),
        ({"rope_start": 40}, "which its keys contradict"),
        ({"name": "vitl"}, "says net.name vitl, the weights vits"),
        ({"cat_token": False}, "says net.cat_token False, the weights True"),
    ],
)
def test_a_config_that_does_not_fit(
    tmp_path: Path, multi_view: dict[str, torch.Tensor], change: dict[str, object], message: str
) -> None:
    config = config_of(Fixture("da3_small"))
    net = {**config["config"]["net"], **change}
    with pytest.raises(CheckpointError, match=message):
        build(multi_view, beside(tmp_path, {**config, "config": {**config["config"], "net": net}}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_name": 3}, "says model_name 3; a name such as da3-small is needed"),
        ({"config": "net"}, "has a config that is no object"),
        ({"config": {"net": 3}}, "has a config.net that is no object"),
        ({"config": {"head": {"features": 128}}}, "says head.features 128, the weights 64"),
        ({"config": {"head": {"out_channels": [1, 2]}}}, r"says head.out_channels \[1, 2\], the weights \[48, 96"),
    ],
)
def test_a_config_that_is_none(
    tmp_path: Path, multi_view: dict[str, torch.Tensor], config: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(multi_view, beside(tmp_path, config))


def test_a_backbone_of_unknown_depth_needs_its_config(multi_view: dict[str, torch.Tensor]) -> None:
    shallow = {key: value for key, value in multi_view.items() if ".blocks.11." not in key}
    with pytest.raises(CheckpointError, match="which of its 11 blocks the head reads is not known; put its config"):
        build(shallow)


def test_nested_files_are_refused(multi_view: dict[str, torch.Tensor]) -> None:
    nested = {key.replace("model.", "model.da3.", 1): value for key, value in multi_view.items()}
    with pytest.raises(
        CheckpointError, match=r"nested file of two networks .* take DA3-BASE or DA3-SMALL and DA3METRIC"
    ):
        build(nested)


def test_other_loaders_say_who_takes_it() -> None:
    with pytest.raises(
        CheckpointError, match=r"it holds a multi-view model .*load_multiview \(dune reconstruct or depth"
    ):
        load_encoder(shared_da3("da3_small"))
    with pytest.raises(CheckpointError, match="it holds a monocular model of Depth Anything 3"):
        load_multiview(shared_da3("da3_mono_mini"))
    with pytest.raises(CheckpointError, match="which has its own encoder; leave encoder="):
        load_depth(shared_da3("da3_mono_mini"), encoder=shared_da3("da3_small"))
    with pytest.raises(UserError, match="a depth range belongs to a DINOv2 depth head; a monocular model of Depth"):
        load_depth(shared_da3("da3_mono_mini"), depth_range=(0.1, 5))


@pytest.mark.parametrize("name", ["da3_small", "da3_metric_mini"])
def test_converted_files_load_the_same(tmp_path: Path, name: str) -> None:
    """The header keeps what config.json said."""
    located = weights_folder.locate(shared_da3(name))
    facts = inventory.describe_file(located)
    assert facts["layout"].startswith("da3-")
    target = tmp_path / "converted.safetensors"
    inventory.convert(located, target)
    kind = "multi-view" if name == "da3_small" else "depth"
    one, two = loader.load(shared_da3(name), kind), loader.load(target, kind)
    assert one.backbone.layers == two.backbone.layers
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    notes = adapters.describe(*(lambda file: (file.checkpoint, file.metadata))(weight_files.read_weights(target))).notes
    assert notes[-1] == "converted to safetensors by dune"


def test_a_registry_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `dune weights pull` lays it: no config.json beside it."""
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path))
    (tmp_path / "DA3METRIC-LARGE.safetensors").symlink_to(shared_da3("da3_metric_mini"))
    located = weights_folder.LocatedFile(tmp_path / "DA3METRIC-LARGE.safetensors", None)
    file = weight_files.read_located(located)
    assert adapters.identify(file.checkpoint, file.metadata, file.surroundings)[1]["model_name"] == "da3metric-large"
