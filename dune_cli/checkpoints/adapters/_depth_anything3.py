"""What the adapters of Depth Anything 3 share (docs/models/depth-anything-3.md, "Files"): names, sizes, config.json.

A file is a flat state dict (safetensors) whose keys begin with `model.`. With its surroundings it is a checkpoint
{"state_dict": …, "model_name": … or None, "config": {"net", "head"} or None}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.checkpoints.state_dict import KeyMap, find_state_dict
from dune_cli.checkpoints.surroundings import Surroundings
from dune_cli.errors import CheckpointError
from dune_cli.models.da3_backbone import Da3BackboneConfig, published_layers
from dune_cli.models.da3_heads import Da3HeadConfig

SCRATCH = "model.head.scratch."
MULTI_VIEW, MONOCULAR = "model.cam_dec.", f"{SCRATCH}sky_output_conv2."
NESTED = ("model.da3.", "model.da3_metric.")
KEYS = KeyMap(
    rules=(
        ("model.backbone.pretrained.", "backbone."),
        ("model.head.norm.", "head.norm."),
        ("model.head.projects.", "head.projects."),
        ("model.head.resize_layers.", "head.resizes."),
        (f"{SCRATCH}layer{{i}}_rn.", "head.reduce.{i}."),
        (f"{SCRATCH}refinenet{{i}}.resConfUnit{{n}}.", "head.fuse.{i}.unit{n}."),
        (f"{SCRATCH}refinenet{{i}}.out_conv.", "head.fuse.{i}.out."),
        (f"{SCRATCH}refinenet{{i}}_aux.resConfUnit{{n}}.", "head.ray_fuse.{i}.unit{n}."),
        (f"{SCRATCH}refinenet{{i}}_aux.out_conv.", "head.ray_fuse.{i}.out."),
        (f"{SCRATCH}output_conv1.", "head.output1."),
        (f"{SCRATCH}output_conv2.", "head.output2."),
        (f"{SCRATCH}sky_output_conv2.", "head.sky_output2."),
        (f"{SCRATCH}output_conv1_aux.3.", "head.ray_output1."),
        (f"{SCRATCH}output_conv2_aux.3.0.", "head.ray_output2."),
        (f"{SCRATCH}output_conv2_aux.0.2.", "head.ray_norm."),
        (f"{SCRATCH}output_conv2_aux.3.5.", "head.ray_output3."),
        ("model.cam_dec.backbone.0.", "camera_decoder.fc1."),
        ("model.cam_dec.backbone.2.", "camera_decoder.fc2."),
        ("model.cam_dec.fc_t.", "camera_decoder.translation."),
        ("model.cam_dec.fc_qvec.", "camera_decoder.quaternion."),
        ("model.cam_dec.fc_fov.0.", "camera_decoder.fov."),
        ("model.cam_enc.pose_branch.", "camera_encoder."),
        ("model.cam_enc.", "camera_encoder."),
    ),
)
_FIRST_GLOBAL = {12: 4, 24: 8}  # by depth, of the published multi-view models
_VITS = {"vits": 384, "vitb": 768, "vitl": 1024, "vitg": 1536}
_KIND = re.compile(r"(?:da3|depth[-_ ]?anything[-_ ]?v?3)[-_ ]?(metric|mono)", re.IGNORECASE)
_NAME_OF = {"metric": "da3metric-large", "mono": "da3mono-large"}


def is_nested(checkpoint: Mapping[str, Any]) -> bool:
    """Whether it holds two networks, a multi-view and a metric one."""
    return any(key.startswith(NESTED) for key in find_state_dict(checkpoint))


def has(checkpoint: Mapping[str, Any], prefix: str) -> bool:
    """Whether it is a file of Depth Anything 3 with a key of this prefix."""
    state = find_state_dict(checkpoint)
    return "model.backbone.pretrained.cls_token" in state and any(key.startswith(prefix) for key in state)


def with_surroundings(checkpoint: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    """The checkpoint with what config.json says beside it, else what its names say, where it does not say it itself."""
    name, config = checkpoint.get("model_name"), checkpoint.get("config")
    if name is None and config is None:
        content = around.config() or {}
        name, config = content.get("model_name"), content.get("config")
    if name is None:
        kinds = [set(map(str.lower, _KIND.findall(one))) for one in around.names]
        name = next((_NAME_OF[kind] for (kind,) in (one for one in kinds if len(one) == 1)), None)
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"its config.json says model_name {name!r}; a name such as da3-small is needed")
    if config is not None and not isinstance(config, Mapping):
        raise CheckpointError("its config.json has a config that is no object; fetch it again, or remove it")
    return {"state_dict": find_state_dict(checkpoint), "model_name": name, "config": config}


def kind_of(checkpoint: Mapping[str, Any]) -> str | None:
    """ "metric" or "mono" by the model's name; None where it says neither."""
    name = checkpoint.get("model_name")
    found = _KIND.search(name) if isinstance(name, str) else None
    return None if found is None else found[1].lower()


def tensors_of(checkpoint: Mapping[str, Any], what: str) -> dict[str, torch.Tensor]:
    """The state dict in our names, with what the network does not use.

    One LayerNorm serves the rays of all levels. safetensors stores it once; where there are several, the last one
    counts, which is the one that is used. CheckpointError for a file of two networks.
    """
    if is_nested(checkpoint):
        raise CheckpointError(
            f"{what}: it is a nested file of two networks (model.da3, model.da3_metric), which is not read; take "
            "DA3-BASE or DA3-SMALL and DA3METRIC-LARGE, each in a file of its own"
        )
    state = find_state_dict(checkpoint)
    for leaf in ("weight", "bias"):
        stored = [key for level in range(4) if (key := f"{SCRATCH}output_conv2_aux.{level}.2.{leaf}") in state]
        if stored:
            state[f"{SCRATCH}output_conv2_aux.0.2.{leaf}"] = state[stored[-1]]
    return KEYS.apply(state)


def sizes(
    checkpoint: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], multi_view: bool, what: str
) -> tuple[Da3BackboneConfig, Da3HeadConfig]:
    """The configuration: shapes, and what config.json says besides. CheckpointError where the two contradict, and
    where neither tells which blocks are read."""
    shapes = _common.Shapes(tensors, KEYS, what)
    vit = _common.vit_config(shapes, "backbone.", "offset", what)
    net, head = _section(checkpoint, "net", what), _section(checkpoint, "head", what)
    layers = _layers(net.get("out_layers", published_layers(vit.depth, multi_view)), vit.depth, what)
    default = _FIRST_GLOBAL.get(vit.depth) if multi_view else None
    starts = [_start(net, key, default, what) for key in ("alt_start", "rope_start", "qknorm_start")]
    if (starts[0] is not None) != multi_view or not all(one is None or one < vit.depth for one in starts):
        raise CheckpointError(
            f"{what}: config.json says alt_start {net.get('alt_start')}, which its keys contradict; fetch both again"
        )
    if multi_view and (starts[0] < 1 or min(layers) < starts[0]):
        raise CheckpointError(
            f"{what}: config.json says alt_start {starts[0]} and out_layers {list(layers)}; blocks before alt_start "
            "cannot be read"
        )
    config = Da3HeadConfig(
        inputs=shapes.of("head.projects.0.weight", 4)[1],
        levels=tuple(shapes.of(f"head.projects.{level}.weight", 4)[0] for level in range(4)),
        features=shapes.of("head.reduce.1.weight", 4)[0],
        dual=multi_view,
    )
    inputs = 2 * vit.width if multi_view else vit.width
    if config.inputs != inputs or config.features % 8 or any(channels % 4 for channels in config.levels):
        raise CheckpointError(
            f"the file does not fit {what}: model.head takes {config.inputs} channels to {list(config.levels)} and "
            f"{config.features}; of a backbone of width {vit.width} it takes {inputs}, to multiples of 4 and of 8"
        )
    stated = {
        "net.name": (net.get("name"), next((name for name, width in _VITS.items() if width == vit.width), None)),
        "net.cat_token": (net.get("cat_token"), multi_view),
        "head.dim_in": (head.get("dim_in"), config.inputs),
        "head.features": (head.get("features"), config.features),
        "head.out_channels": (head.get("out_channels"), list(config.levels)),
        "head.output_dim": (head.get("output_dim"), 2 if multi_view else 1),
    }
    for key, (said, found) in stated.items():
        if said is not None and found is not None and said != found:
            raise CheckpointError(f"{what}: config.json says {key} {said}, the weights {found}; fetch both again")
    return Da3BackboneConfig(vit, layers, *starts), config


def _section(checkpoint: Mapping[str, Any], name: str, what: str) -> Mapping[str, Any]:
    section = (checkpoint.get("config") or {}).get(name, {})
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{what}: config.json has a config.{name} that is no object; fetch it again")
    return section


def _layers(value: Any, depth: int, what: str) -> tuple[int, int, int, int]:
    if value is None:
        raise CheckpointError(
            f"{what}: which of its {depth} blocks the head reads is not known; put its config.json beside it"
        )
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    fits = len(numbers) == 4 and all(type(one) is int and 0 <= one < depth for one in numbers)
    if not fits or sorted(set(numbers)) != numbers:
        raise CheckpointError(f"{what}: config.json says out_layers {value!r}; four of its {depth} blocks are needed")
    return tuple(numbers)


def _start(net: Mapping[str, Any], key: str, default: int | None, what: str) -> int | None:
    value = net.get(key, -1 if default is None else default)
    if type(value) is not int or value < -1:
        raise CheckpointError(f"{what}: config.json says {key} {value!r}; the number of a block, or -1, is needed")
    return None if value == -1 else value
