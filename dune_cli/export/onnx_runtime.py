"""Models of `dune encode`, `depth` and `segment` with ONNX Runtime in place of torch: the same calls, the same results
to about 1e-6 (int8: as measured when the file was written).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli import __version__, console
from dune_cli.checkpoints import weights_folder
from dune_cli.errors import UserError
from dune_cli.export import onnx_file
from dune_cli.export.networks import ExportNetwork, network_of
from dune_cli.export.session import OnnxSession
from dune_cli.io.outputs import atomic_path
from dune_cli.models.da3_heads import Da3Maps
from dune_cli.models.depth_anything3 import MonocularDepth, MultiViewDepth, MultiViewNetwork, MultiViewOutput
from dune_cli.models.dinov2_heads import HeadDepth, Segmenter
from dune_cli.models.heads import HeadedEncoder
from dune_cli.models.patch_embed import Tokens, grid_of, pad_to_patches
from dune_cli.provenance import Run

FOLDER = "onnx"  # in the weights folder: files that `--runtime onnx` made


class OnnxEncoder(nn.Module):
    """An encoder without projectors."""

    teachers: tuple[str, ...] = ()

    def __init__(self, model: Any, session: OnnxSession) -> None:
        super().__init__()
        self.patch, self.width, self.native_size_px = model.patch, model.width, model.native_size_px
        self.source, self._session = model.source, session

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        """images (B, 3, H, W) RGB in [0, 1] -> Tokens. ValueError for tokens before the final norm, and for sides that
        are no multiples of the patch."""
        if not norm:
            raise ValueError("an exported encoder gives tokens after the final norm only")
        grid = grid_of(images, self.patch)
        found = self._session.run(images)
        patches = found["patches"].flatten(1, 2)
        return Tokens(found["cls"], found.get("registers", patches[:, :0]), patches, grid)


class _OnSession(nn.Module):
    """Takes over all parts of a model; its network runs in a session."""

    def __init__(self, model: nn.Module, session: OnnxSession) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        self._session = session


class OnnxHead(_OnSession, HeadedEncoder):
    """A head of `dune train` with its encoder."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `HeadedEncoder.forward`."""
        return self.with_scene(images)[0]

    def with_scene(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `HeadedEncoder.with_scene`."""
        found = self._session.run(images)
        return found[self._session.outputs[0]], found.get("scene_logits")


class OnnxHeadDepth(_OnSession, HeadDepth):
    """One of DINOv2's depth heads."""

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """As `HeadDepth.raw`."""
        return self._session.run(pad_to_patches(images, self.encoder.patch))["depth"]


class OnnxSegmenter(_OnSession, Segmenter):
    """One of DINOv2's segmentation heads."""

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """As `Segmenter.raw`."""
        return self._session.run(pad_to_patches(images, self.encoder.patch))["logits"]


class OnnxMonocularDepth(_OnSession, MonocularDepth):
    """DA3METRIC-LARGE and DA3MONO-LARGE."""

    def raw(self, images: torch.Tensor) -> Da3Maps:
        """As `MonocularDepth.raw`."""
        found = self._session.run(images)
        return Da3Maps(found["depth"], sky=found["sky"])


class OnnxSingleViews(_OnSession, MultiViewNetwork):
    """A multi-view network of images that do not see each other."""

    def forward(
        self,
        images: torch.Tensor,
        encodings: torch.Tensor | None = None,
        strategy: str = "saddle_balanced",
        rays: bool = False,
        alone: bool = False,
    ) -> MultiViewOutput:
        """As `MultiViewNetwork.forward`, of one image, or with `alone`; without cameras. ValueError otherwise."""
        if encodings is not None or rays or not (alone or len(images) == 1):
            raise ValueError("an exported multi-view model takes single images, without poses and rays")
        found = self._session.run(images)
        at_origin, none = torch.eye(4).repeat(len(images), 1, 1), torch.full((len(images), 9), torch.nan)
        return MultiViewOutput(found["depth"], found["confidence"], at_origin, found["K"], none, 0)


def _on_single_views(model: MultiViewDepth, session: OnnxSession) -> MultiViewDepth:
    made = MultiViewDepth(OnnxSingleViews(model.network, session))
    made.source = model.source
    return made.eval()


_BY_MODEL: tuple[tuple[type[nn.Module], Callable[[Any, OnnxSession], nn.Module]], ...] = (
    (HeadedEncoder, OnnxHead),
    (HeadDepth, OnnxHeadDepth),
    (Segmenter, OnnxSegmenter),
    (MonocularDepth, OnnxMonocularDepth),
    (MultiViewDepth, _on_single_views),
)


def on_onnx(model: nn.Module, kind: str, runtime: str, run: Run) -> tuple[Any, dict[str, Any]]:
    """A loaded model (float32, on the CPU) on ONNX Runtime, and what the provenance says of it.

    kind: of `dune export`. runtime: "onnx", the float32 file of the model, which is made on first use and kept in the
    weights folder; or a file that `dune export` wrote. UserError for a file of another model or kind, and for a model
    that cannot be exported; PackageMissing without the extra `export`.
    """
    network = network_of(kind, model)
    session = _kept(network, run) if runtime == "onnx" else OnnxSession(Path(runtime).expanduser())
    _check_same(session, network)
    facts = {"name": "onnxruntime", "version": session.version, "file": session.path.name, "sha256": session.sha256}
    return session_model(model, session), {"runtime": {**facts, "precision": session.facts["precision"]}}


def session_model(model: nn.Module, session: OnnxSession) -> Any:
    """The model with its network in a session."""
    make = next((make for kind_of, make in _BY_MODEL if isinstance(model, kind_of)), OnnxEncoder)
    return make(model, session).eval()


def _check_same(session: OnnxSession, network: ExportNetwork) -> None:
    there = [source["sha256"] for source in session.facts["sources"]]
    if session.facts["kind"] != network.kind or there != [source.sha256 for source in network.sources]:
        names = ", ".join(f"{source['name']} ({str(source['sha256'])[:12]})" for source in session.facts["sources"])
        raise UserError(
            f"{session.path} holds the {session.facts['kind']} of {names}, and the command runs the {network.kind} of "
            f"{', '.join(source.name for source in network.sources)}; name its own model with --model"
        )


def kept_path(network: ExportNetwork) -> Path:
    """Where `--runtime onnx` keeps the file of a network."""
    key = [__version__, onnx_file.OPSET, network.kind, [source.sha256 for source in network.sources]]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return weights_folder.weights_folder() / FOLDER / f"{network.kind}-{digest}.onnx"


def _kept(network: ExportNetwork, run: Run) -> OnnxSession:
    """The float32 file of a network, made if it is not there or does not open."""
    path = kept_path(network)
    if path.is_file():
        try:
            return OnnxSession(path)
        except UserError as error:
            console.note(f"it is made again: {error}")
    console.note(f"the ONNX file of {network.sources[0].name} is made once, and kept as {path}")
    with run.stage("export"), atomic_path(path) as temporary:
        onnx_file.save_onnx(onnx_file.export_program(network), network, temporary)
        onnx_file.compare(network, OnnxSession(temporary))
    return OnnxSession(path)
