"""Our own matcher: XFeat's keypoints, what `dune-mini` saw around them, and a LightGlue trained beyond LighterGlue."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dune_cli.errors import CheckpointError, DuneError
from dune_cli.matchers.base import Availability, FeatureMatcher, Features, Matcher, Matches, resize

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dune_cli.models.match_head import MatchHead, Seen

NAME = "dune"
MEASURED_AUC10 = None  # not measured yet, so "auto" leaves it out
TAKES_MODEL = True
ENCODER, HEAD = "dune-mini", "dune-matcher"
SIDE_MULTIPLE = 32


class Eye:
    """The encoder's part: a photo at the matcher's size to keypoints and what surrounds them. One pass a photo."""

    def __init__(self, encoder: nn.Module) -> None:
        """`encoder`: what `load_encoder` gives for a dune-mini. CheckpointError for one without XFeat's and the Lite
        stem."""
        from dune_cli.models.mini import MiniEncoder

        mini = getattr(encoder, "vit", encoder)
        if not isinstance(mini, MiniEncoder) or not {"xfeat", "lite"} <= set(mini.config.parts):
            raise CheckpointError("the matcher dune runs on a dune-mini whose stem is xfeat+lite; give it as --encoder")
        self.mini = mini

    @property
    def device(self) -> torch.device:
        return self.mini.cls_token.device

    def mini_hash(self) -> str:
        """sha256 of the encoder's weights, whatever file they came from."""
        digest = hashlib.sha256()
        for value in self.mini.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def look(self, rgb: np.ndarray, head: MatchHead) -> Seen:
        """rgb (h, w, 3) uint8, sides multiples of 32 -> keypoints before any trained layer."""
        import torch

        with torch.inference_mode():
            image = self._tensor(rgb)
            return head.look(image, self.mini.stem["xfeat"](image), self._around(rgb, head))

    def _around(self, rgb: np.ndarray, head: MatchHead) -> dict[str, torch.Tensor]:
        context = set(head.config.context) - {"xfeat4"}
        if not context:
            return {}
        size_px = min(head.config.context_px, max(rgb.shape[:2]))
        image = self._tensor(resize(rgb, size_px, self.mini.patch).rgb)
        if "tokens" in context:
            seen = self.mini.pyramid(image)
            maps = {f"lite{stride}": values for stride, values in seen.maps["lite"].items()}
            maps["tokens"] = seen.tokens.map().permute(0, 3, 1, 2)
        else:
            maps = {f"lite{stride}": values for stride, values in self.mini.stem["lite"](image).items()}
        return {name: maps[name] for name in context}

    def _tensor(self, rgb: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255


class Dune(FeatureMatcher):
    """`dune-mini` with its matching head. Descriptors are (N, width + fine) float32 tensors on the head's device."""

    name = NAME
    side_multiple = SIDE_MULTIPLE

    def __init__(self, eye: Eye, head: MatchHead) -> None:
        self.eye, self.head = eye, head
        self.working_size_px = head.config.long_side_px
        self.source = head.source

    def match_features(self, features1: Features, features2: Features) -> Matches:
        """As of any matcher, with both points of every match moved by the head's refinement."""
        import torch

        index1, index2, scores = self.match_indices(features1, features2)
        points = features1.points[index1], features2.points[index2]
        if len(index1):
            with torch.inference_mode():
                seen = self._seen(features1), self._seen(features2)
                index = (torch.from_numpy(i).to(seen[0].xy.device) for i in (index1, index2))
                offsets = self.head.offsets(*seen, *index)
            points = tuple(p + o.cpu().numpy().astype(np.float64) for p, o in zip(points, offsets))
        return Matches(
            features1.photo.to_original(points[0]),
            features2.photo.to_original(points[1]),
            scores,
            len(features1.points),
            len(features2.points),
            features1.photo.pixel_size,
            features2.photo.pixel_size,
        )

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, Any]:
        import torch

        with torch.inference_mode():
            seen = self.head.embed(self.eye.look(rgb, self.head))
        return seen.xy.cpu().numpy().astype(np.float64), seen.values

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode():
            index1, index2, scores = self.head.match(self._seen(features1), self._seen(features2))
        return index1.cpu().numpy(), index2.cpu().numpy(), scores.cpu().numpy()

    def pack(self, descriptors: Any) -> np.ndarray:
        return descriptors.cpu().numpy().astype(np.float16)

    def unpack(self, packed: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(packed.astype(np.float32)).to(self.eye.device)

    def _seen(self, features: Features) -> Seen:
        import torch

        from dune_cli.models.match_head import Seen

        height, width = features.photo.rgb.shape[:2]
        xy = torch.from_numpy(features.points).to(self.eye.device, torch.float32)
        return Seen(xy, features.descriptors, (width, height))


def availability() -> Availability:
    """Needs the files of the encoder and of the head."""
    from dune_cli.checkpoints import store

    for name in (ENCODER, HEAD):
        try:
            store.locate(name)
        except DuneError as error:
            return Availability(False, " ".join(str(error).split()), f"dune weights pull {name}")
    return Availability(True)


def build(device: str, dtype: str, model: str | Path | None, encoder: str | Path | None) -> Matcher:
    """`model`: the head's file or name; `encoder`: that of the dune-mini it was trained on."""
    from dune_cli.checkpoints.load import load_encoder
    from dune_cli.checkpoints.load_matcher import load_match_head

    head = load_match_head(model or HEAD, device)
    return Dune(Eye(load_encoder(encoder or ENCODER, device, "float32" if dtype == "auto" else dtype)), head)
