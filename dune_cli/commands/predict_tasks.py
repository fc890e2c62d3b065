"""The tasks of `dune predict`: each does what its own verb does by default, to a file of a fixed name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli.provenance import Run, Source

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.models.shared_pass import SharedTrunk, Slot


@dataclass(frozen=True)
class Wishes:
    """What the user said, for all tasks: `models` by task, `encoder` of a depth head and of features, `body_models` the
    folder with SMPL-X, `min_score` of people, `size` the network input's long side in pixels."""

    models: dict[str, str]
    encoder: str | None
    body_models: str | None
    min_score: float
    size: int | None
    fov_deg: float | None
    device: str
    dtype: str


class DepthTask:
    """`dune depth`."""

    name, verb, file = "depth", "depth", "depth.png"

    def __init__(self, wishes: Wishes) -> None:
        from dune_cli.checkpoints.load_heads import load_depth
        from dune_cli.checkpoints.present import choose

        self.wishes = wishes
        model = wishes.models.get(self.name) or choose("depth")
        self.network = load_depth(model, wishes.encoder, wishes.device, wishes.dtype)
        self.sources: list[Source] = self.network.sources  # before encoders are shared, whose files may differ

    def slot(self) -> Slot | None:
        """Where its ViT is; None for a model with another kind of encoder."""
        from dune_cli.models.depth import PairedDepth
        from dune_cli.models.shared_pass import Slot
        from dune_cli.models.two_view import DunePatches

        if not isinstance(self.network, PairedDepth):
            return Slot(self.name, self.network, "encoder", tuple(self.network.blocks))
        encoder = self.network.model.encoder
        return Slot(self.name, encoder, "vit") if isinstance(encoder, DunePatches) else None

    def largest_px(self) -> int:
        """The long side of the network's input for a photo that is not smaller."""
        from dune_cli.models.depth import PairedDepth
        from dune_cli.tasks import depth

        return self.network.model.size if isinstance(self.network, PairedDepth) else depth.default_size_px(self.network)

    def takes_any_sides(self) -> bool:
        """Whether it sees photos whole, padded to patches, rather than cropped to patches."""
        from dune_cli.models.depth import PairedDepth

        return not isinstance(self.network, PairedDepth)

    def predict(self, photo: Photo, camera: str | None, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path`; the JSON's object, its provenance empty."""
        from dune_cli.io.intrinsics import resolve_intrinsics
        from dune_cli.tasks import depth

        known = resolve_intrinsics([photo], camera, self.wishes.fov_deg)[0]
        result = depth.predict(self.network, photo, known, size, run=run)
        return depth.document(result, path, depth.write(result, path), {})


class HumanTask:
    """`dune human`."""

    name, verb, file = "human", "human", "people.obj"

    def __init__(self, wishes: Wishes) -> None:
        from dune_cli.checkpoints.present import choose
        from dune_cli.tasks import human

        self.wishes = wishes
        model = wishes.models.get(self.name) or choose("human")
        self.model = human.load_human(model, wishes.body_models, wishes.device, wishes.dtype)
        self.sources: list[Source] = [self.model.source, self.model.body.source]

    def slot(self) -> Slot | None:
        """Where its ViT is."""
        from dune_cli.models.shared_pass import Slot

        network = self.model.network
        return Slot(self.name, network.encoder if network.body == "anny" else network, "backbone")

    def predict(self, photo: Photo, camera: str | None, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path`; the JSON's object, its provenance empty. `size` is the head's own."""
        from dune_cli.tasks import human

        known = human.cameras([photo], camera, self.wishes.fov_deg)[0]
        with run.stage("network"):
            found = human.predict(self.model, photo, *known, self.wishes.min_score)
        human.write_meshes(path, human.meshes(self.model, found.people), found)
        return human.document(self.model, found, path, {})


class FeaturesTask:
    """`dune encode`."""

    name, verb, file = "features", "encode", "features.npz"

    def __init__(self, wishes: Wishes, model: str) -> None:
        from dune_cli.checkpoints.load import load_encoder

        self.encoder = load_encoder(model, wishes.device, wishes.dtype)
        self.sources: list[Source] = [self.encoder.source]

    def slot(self) -> Slot | None:
        """Where its ViT is; None for another kind of encoder."""
        from dune_cli.models.encoder import DistilledEncoder
        from dune_cli.models.shared_pass import Slot
        from dune_cli.models.vit import VisionTransformer

        if isinstance(self.encoder, DistilledEncoder):
            return Slot(self.name, self.encoder, "vit")
        return Slot(self.name, self, "encoder") if isinstance(self.encoder, VisionTransformer) else None

    def predict(self, photo: Photo, camera: str | None, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path`; the JSON's object, its provenance empty. No `camera` is needed."""
        from dune_cli.tasks import encode

        (features,) = encode.encode(self.encoder, [photo], size, run=run)
        encode.write(features, path)
        return encode.document(features, path, {})


Task = DepthTask | HumanTask | FeaturesTask


def shared_size(tasks: dict[str, Task], trunks: dict[str, SharedTrunk], photo: Photo) -> int | None:
    """The --size at which depth and features, where they have one encoder, see the same picture of this photo: depth's
    own, or the next smaller one at which the whole photo is whole patches. None where there is none of at least 3/4."""
    depth = tasks.get("depth")
    if not isinstance(depth, DepthTask) or trunks.get("depth") is None or trunks["depth"] is not trunks.get("features"):
        return None
    largest = depth.largest_px()
    if not depth.takes_any_sides():
        return largest
    patch = trunks["depth"].patch
    long, short = max(photo.width, photo.height), min(photo.width, photo.height)
    largest = min(largest, long)
    sizes = range(largest // patch * patch, int(0.75 * largest), -patch)
    return next((size for size in sizes if round(short * (size / long)) % patch == 0), None)
