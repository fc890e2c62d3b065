"""Name or file of a head in, encoder with head and weights out: `load_depth`, `load_classifier`, `load_segmenter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dune_cli.checkpoints import load, registry, store
from dune_cli.checkpoints.layouts import dinov2_depth, dinov2_heads
from dune_cli.checkpoints.opened import Opened, expect, finish, naming, open_weights, target
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.models.classification import Classifier
from dune_cli.models.depth import HeadDepth, PairedDepth
from dune_cli.models.segmentation import Segmenter
from dune_cli.models.vit import VisionTransformer


def load_depth(
    name_or_path: str | Path,
    encoder: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    depth_range: tuple[float, float] | None = None,
) -> HeadDepth | PairedDepth:
    """A depth model: `model(images, flip=False)`, images (B, 3, H, W) of any sides -> z (B, H, W) in metres.

    One of DINOv2's depth heads, on `encoder` (a name or file; without it the one that the head's name tells, beside
    the head and then among the weights), or a two-view model, which sees the image twice.
    `depth_range`: (minimum, maximum) in metres of a head instead of the published one (0.001 to 10 for NYU, to 80 for
    KITTI). DINOv2's own hub function builds the linear NYU heads with 80: pass (0.001, 80) to get its numbers.
    `dtype` "auto" is float32 for a two-view model.
    Raises WeightsMissing, CheckpointError, UserError.
    """
    opened = open_weights(name_or_path)
    expect(opened, "depth", "two-view")
    if opened.adapter.KIND == "two-view" and dtype == "auto":
        dtype = "float32"  # geometry: as `load_two_view`
    where, kind = target(device, dtype)
    if opened.adapter.KIND == "two-view":
        if depth_range is not None:
            raise UserError("a depth range belongs to a depth head; a two-view model has none: leave it out")
        model: Any = PairedDepth(load.two_view_of(opened, encoder))
        model.model.source = opened.source
    else:
        depth_range = depth_range or _range_of(opened)
        network = _encoder_of(opened, encoder)
        with naming(opened.path):
            model = dinov2_depth.build(opened.tree, network, depth_range)
    return finish(model, opened.source, where, kind)


def load_classifier(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> Classifier:
    """One of DINOv2's ImageNet heads: `model(images)`, images (B, 3, H, W) -> logits (B, classes).

    The published preparation is short side 256, centre crop 224. `encoder` as in `load_depth`.
    Raises WeightsMissing, CheckpointError, UserError.
    """
    return _load_head(name_or_path, encoder, device, dtype, "classifier")


def load_segmenter(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> Segmenter:
    """One of DINOv2's linear segmentation heads: `model(images)`, any sides -> logits (B, classes, H, W).

    `model.slide(images)`: by the published windows; `model.probabilities(images)`: the whole protocol with its scales.
    `encoder` as in `load_depth`. Raises WeightsMissing, CheckpointError, UserError.
    """
    return _load_head(name_or_path, encoder, device, dtype, "segmenter")


def _load_head(name_or_path: str | Path, encoder: str | Path | None, device: str, dtype: str, wanted: str) -> Any:
    where, kind = target(device, dtype)
    opened = open_weights(name_or_path)
    expect(opened, wanted)
    network = _encoder_of(opened, encoder)
    with naming(opened.path):
        model = opened.adapter.build(opened.tree, network)
    return finish(model, opened.source, where, kind)


def _published_name(opened: Opened) -> dinov2_heads.PublishedName | None:
    entry = opened.located.entry
    return dinov2_heads.published_name(entry.file if entry else opened.path.name)


def _range_of(opened: Opened) -> tuple[float, float]:
    """From the published name, else from the configuration text inside the file."""
    name = _published_name(opened)
    found = dinov2_depth.RANGES.get(name.data or "") if name else dinov2_depth.stated_range(opened.tree)
    if found is None:
        raise UserError(
            f"the depth range of {opened.path} is told neither by its name (..._nyu_..., ..._kitti_...) nor inside; "
            "give it: --depth-range 0.001,10 is NYU's and 0.001,80 KITTI's (metres)"
        )
    return found


def _encoder_of(opened: Opened, encoder: str | Path | None) -> VisionTransformer:
    """The DINOv2 encoder of a head, with its weights, on the CPU."""
    name = _published_name(opened)
    found = open_weights(_find_encoder(opened, name) if encoder is None else encoder)
    expect(found, "encoder")
    if found.adapter.NAME != "dinov2":
        raise CheckpointError(
            f"{found.path}: it holds {found.adapter.WHAT}; DINOv2's published heads read DINOv2's own encoder"
            + (f", {name.encoder_file}" if name else "")
        )
    with naming(found.path):
        network = found.adapter.build(found.tree)
    network.source = found.source
    with naming(opened.path):
        dinov2_heads.check_encoder(network, name)
    return network


def _find_encoder(opened: Opened, name: dinov2_heads.PublishedName | None) -> str | Path:
    """Where the encoder that the head's name tells lies: beside the head, else among the weights."""
    if name is None:
        raise UserError(
            f"the name of {opened.path} does not tell which encoder it belongs to; give it with --encoder (encoder=)"
        )
    entry = registry.find_file(name.encoder_file)
    names = [name.encoder_file] + ([entry.converted_file] if entry else [])
    beside = [path for path in map(opened.path.with_name, names) if path.is_file()]
    if beside:
        return beside[0]
    if entry is None:
        raise WeightsMissing(
            f"{opened.path} needs its encoder {name.encoder_file}, which is not beside it; give it with --encoder"
        )
    try:
        store.locate(entry.name)
    except WeightsMissing as error:
        raise WeightsMissing(f"{opened.path} needs its encoder: {error}") from error
    return entry.name
