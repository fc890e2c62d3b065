"""timm's ViTs by name: `timm:NAME` with the weights in the Hugging Face cache, `timm:NAME=FILE` with a state dict file.

Nothing is downloaded here, but for FILE of `hf://owner/name/file`.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli import optional
from dune_cli.checkpoints import hub, weight_files, weights_folder
from dune_cli.checkpoints.state_dict import find_state_dict, load_strict
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.models.timm_encoder import TimmEncoder
from dune_cli.provenance import Source

PREFIX = "timm:"
FILES = ("model.safetensors", "pytorch_model.bin")


def is_vit(spec: str) -> bool:
    """Whether `timm:NAME[=FILE]` is a ViT that `load` takes. UserError for a name that timm does not know."""
    name = spec.removeprefix(PREFIX).partition("=")[0]
    try:
        with torch.device("meta"):
            _create(name)
    except UserError:
        _known(name)
        return False
    return True


def load_convolutional(spec: str) -> tuple[nn.Module, Mapping[str, Any], Source]:
    """`timm:NAME[=FILE]` of any other family -> the network without its classifier, its settings, its source.

    Raises as `load`.
    """
    timm = optional.import_timm("timm:NAME")
    name, _, given = spec.removeprefix(PREFIX).partition("=")
    _known(name)
    network = timm.create_model(name, pretrained=False, num_classes=0)
    source = _fill(network, name, given)
    return network.eval(), network.pretrained_cfg, source


def load(spec: str) -> tuple[TimmEncoder, Source]:
    """`timm:NAME[=FILE]` -> the encoder with its weights.

    Raises UserError, WeightsMissing, CheckpointError, PackageMissing.
    """
    name, _, given = spec.removeprefix(PREFIX).partition("=")
    network = _create(name)
    settings = network.pretrained_cfg
    source = _fill(network, name, given)
    encoder = TimmEncoder(network, _patch(network, name), settings["input_size"][-1], settings["mean"], settings["std"])
    return encoder, source


def _fill(network: nn.Module, name: str, given: str) -> Source:
    """The weights of the file `given`, or of the Hugging Face cache, into the network."""
    if hub.is_hub(given):
        file = weight_files.open_weights(given)
    else:
        path = Path(given) if given else _cached(name, network.pretrained_cfg)
        file = weight_files.read_located(weights_folder.LocatedFile(path, None))
    with weight_files.naming_file(file.path):
        load_strict(network, _used(network, find_state_dict(file.checkpoint)), f"timm's {name}")
    own = None if given else network.pretrained_cfg.get("license")
    return Source(f"{PREFIX}{name}", file.sha256, file.metadata.get("dune.licence") or own or "unknown")


def _create(name: str) -> nn.Module:
    timm = optional.import_timm("timm:NAME")
    _known(name)
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"timm's {name!r} does not take every image size; name a plain ViT") from error
    _patch(network, name)
    return network


def _known(name: str) -> None:
    """UserError for a name that timm does not know."""
    timm = optional.import_timm("timm:NAME")
    plain = name.partition(".")[0]
    known = timm.list_models()
    if plain not in known:
        near = difflib.get_close_matches(plain, known, 3)
        raise UserError(f"timm has no network {name!r}" + (f"; near: {', '.join(near)}" if near else ""))


def _patch(network: nn.Module, name: str) -> int:
    size = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if size is None or size[0] != size[1] or not hasattr(network, "num_prefix_tokens") or not hasattr(network, "norm"):
        raise UserError(f"timm's {name!r} is no ViT with tokens on a patch grid; name one that is")
    return int(size[0])


def _cached(name: str, settings: Mapping[str, Any]) -> Path:
    repository = settings.get("hf_hub_id")
    if not repository:
        raise WeightsMissing(f"timm publishes no weights for {name!r}; give a file: {PREFIX}{name}=FILE")
    from huggingface_hub import try_to_load_from_cache

    wanted = settings.get("hf_hub_filename")
    for filename in (wanted,) if wanted else FILES:
        found = try_to_load_from_cache(repository, filename)
        if isinstance(found, (str, os.PathLike)):
            return Path(found)
    raise WeightsMissing(
        f"the weights of timm's {name!r} are not in the Hugging Face cache; fetch them with 'hf download {repository}' "
        f"(licence: {settings.get('license') or 'see its page'}), or give a file: {PREFIX}{name}=FILE"
    )


def _used(network: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in the network's names, by timm's own filter, without the classifier."""
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        try:
            state = translate(state, network)
        except (RuntimeError, KeyError, IndexError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the file does not fit this network: timm cannot translate it ({reason})") from error
    classifier = network.pretrained_cfg.get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {key: value for key, value in state.items() if not key.startswith(tuple(f"{name}." for name in names))}
