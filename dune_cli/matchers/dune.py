"""The matcher `dune`: XFeat's keypoints with context from `dune-mini`, and a LightGlue trained on from LighterGlue."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.errors import CheckpointError
from dune_cli.matchers._match_head import HeadMatcher, XFeatExtractor
from dune_cli.matchers._weights import availability_by_weights
from dune_cli.matchers.matcher import Availability, Matcher, resize

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dune_cli.models.match_head import MatchHead

NAME = "dune"
# 0.47 on the `wide` pairs: no better than xfeat-lighterglue (0.46), which is faster, so that "auto" leaves it out
MEASURED_AUC10 = None
MEASURED_SECONDS = None
TAKES_MODEL = True
ENCODER, HEAD = "dune-mini", "dune-matcher"


class EncoderExtractor(XFeatExtractor):
    """A photo at the matcher's size to keypoints and their context, in one pass of the encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        """`encoder`: a dune-mini from `load_encoder`. CheckpointError for one without XFeat's and the Lite stem."""
        from dune_cli.models.dune_mini import MiniEncoder

        mini = getattr(encoder, "vit", encoder)
        if not isinstance(mini, MiniEncoder) or not {"xfeat", "lite"} <= set(mini.config.parts):
            raise CheckpointError("the matcher dune runs on a dune-mini whose stem is xfeat+lite; give it as --encoder")
        super().__init__(mini.stem["xfeat"])
        self.mini = mini

    def mini_hash(self) -> str:
        """sha256 of the encoder's weights, independent of their file."""
        digest = hashlib.sha256()
        for value in self.mini.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _context(self, rgb: np.ndarray, head: MatchHead) -> dict[str, torch.Tensor]:
        context = set(head.config.context) - {"xfeat4"}
        if not context:
            return {}
        size_px = min(head.config.context_px, max(rgb.shape[:2]))
        image = self._tensor(resize(rgb, size_px, self.mini.patch).rgb)
        if "tokens" in context:
            pyramid = self.mini.pyramid(image)
            maps = {f"lite{stride}": values for stride, values in pyramid.maps["lite"].items()}
            maps["tokens"] = pyramid.tokens.map().permute(0, 3, 1, 2)
        else:
            maps = {f"lite{stride}": values for stride, values in self.mini.stem["lite"](image).items()}
        return {name: maps[name] for name in context}


class Dune(HeadMatcher):
    """`dune-mini` with its matching head."""

    name = NAME


def availability() -> Availability:
    """Needs the files of the encoder and of the head."""
    return availability_by_weights(ENCODER, HEAD)


def build(device: str, dtype: str, model: str | Path | None, encoder: str | Path | None) -> Matcher:
    """`model`: file or name of the head. `encoder`: file or name of the dune-mini that it was trained on."""
    from dune_cli.checkpoints.loader import load_encoder, load_match_head

    head = load_match_head(model or HEAD, device)
    return Dune(
        EncoderExtractor(load_encoder(encoder or ENCODER, device, "float32" if dtype == "auto" else dtype)), head
    )
