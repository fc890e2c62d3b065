"""What every loader does with a name or path: find the file, check it, recognise its layout, place the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dune_cli import runtime
from dune_cli.checkpoints import adapters, weight_files, weights_folder
from dune_cli.errors import CheckpointError
from dune_cli.models.dpt import to_channels_last
from dune_cli.models.precision import set_trunk_dtype
from dune_cli.provenance import Source

# an adapter's KIND -> who takes such a file
TAKES = {
    "encoder": "load_encoder (dune encode --model)",
    "two-view": "load_two_view (dune reconstruct --model)",
    "depth": "load_depth (dune depth --model)",
    "classifier": "load_classifier (dune classify --model)",
    "segmenter": "load_segmenter (dune segment --model)",
    "human": "load_human (dune human --model)",
    "matcher": "load_match_head (--matcher dune --model)",
}


@dataclass(frozen=True)
class OpenedWeights:
    """A weight file of a known layout: where it lies, its adapter (a module of `layouts`), its tree, its source."""

    located: weights_folder.LocatedFile
    adapter: Any
    tree: Mapping[str, Any]
    source: Source

    @property
    def path(self) -> Path:
        return self.located.path


def open_weights(name_or_path: str | Path) -> OpenedWeights:
    """The file behind a registry name or path, checked against its pinned hash. WeightsMissing, CheckpointError."""
    located = weights_folder.locate(name_or_path)
    file = weight_files.read_located(located)
    with naming_file(located.path):
        adapter, tree = adapters.published(file.tree, file.metadata)
    name = located.entry.name if located.entry else located.path.name
    licence = located.entry.licence if located.entry else file.metadata.get("dune.licence", "unknown")
    return OpenedWeights(located, adapter, tree, Source(name, file.sha256, licence))


def require_kind(opened: OpenedWeights, *kinds: str) -> None:
    """CheckpointError, saying what the file holds and who takes it, unless it is of one of `kinds`."""
    adapter = opened.adapter
    if adapter.KIND not in kinds:
        found = adapter.describe(opened.tree, {})
        wanted = " or ".join(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in kinds)
        raise CheckpointError(
            f"{opened.path}: it holds {adapter.WHAT} ({found.architecture}), not {wanted} model; "
            f"{TAKES[adapter.KIND]} takes it"
        )


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Puts the file's path before a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def device_and_dtype(device: str, dtype: str) -> tuple[Any, Any]:
    """(torch.device, torch.dtype) of the words that loaders take. UserError for others."""
    where = runtime.pick_device(device)
    return where, runtime.pick_dtype(dtype, where)


def to_inference(model: Any, source: Source, device: Any, dtype: Any) -> Any:
    """The network in evaluation mode, without gradients, in its number types, on its device."""
    model.eval().requires_grad_(False)
    to_channels_last(model)
    set_trunk_dtype(model, dtype)
    model.source = source
    return model.to(device)
