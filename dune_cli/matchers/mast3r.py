"""Descriptors of a two-view model (MASt3R, DUNE + MASt3R) matched by fast reciprocal nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry.cameras import quarter_turn
from dune_cli.io.cache import Layout
from dune_cli.matchers.matcher import Availability, CacheableMatcher, Matcher, Matches

if TYPE_CHECKING:
    import torch

    from dune_cli.io.preprocess import Prepared
    from dune_cli.models.mast3r import TwoViewOutput, ViewFeatures

NAME = "mast3r"
MEASURED_AUC10 = None  # depends on the model, so "auto" leaves it out
MEASURED_SECONDS = None
TAKES_MODEL = True


@dataclass(frozen=True)
class Mast3rFeatures:
    """A photo's encoder `features`, in a batch of one, and `network_from_image` (3, 3)."""

    features: ViewFeatures
    network_from_image: np.ndarray


class Mast3r(CacheableMatcher):
    """Any two-view model with descriptors. Photos are prepared as published, at the model's size."""

    name = NAME

    def __init__(
        self,
        model: str,
        encoder: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        size_px: int | None = None,
        subsample: int = 8,
    ) -> None:
        from dune_cli.checkpoints.loader import load_two_view

        self.model = load_two_view(model, encoder, device, dtype)
        self.working_size_px = size_px or self.model.size
        self.subsample = subsample
        self.source = self.model.source

    def match(self, rgb1: np.ndarray, rgb2: np.ndarray) -> Matches:
        import torch

        from dune_cli.io.preprocess import prepare

        prepared = [
            prepare(rgb, self.working_size_px, self.model.patch, self.model.crop_square_to_4_3) for rgb in (rgb1, rgb2)
        ]
        output = self.model(*(torch.from_numpy(p.image)[None].to(self._device) for p in prepared), points=False)
        return matches_of(output, *prepared, self.subsample)[0]

    def extract(self, rgb: np.ndarray) -> Mast3rFeatures:
        import torch

        from dune_cli.io.preprocess import prepare

        prepared = prepare(rgb, self.working_size_px, self.model.patch, self.model.crop_square_to_4_3)
        with torch.inference_mode():
            encoded = self.model.encode(torch.from_numpy(prepared.image)[None].to(self._device))
        return Mast3rFeatures(encoded, prepared.network_from_image)

    def _rotated(self, features: Mast3rFeatures, quarter_turns: int, width: int, height: int) -> Mast3rFeatures:
        rotation = quarter_turn(width, height, quarter_turns)
        return replace(features, network_from_image=features.network_from_image @ rotation)

    def match_features(self, features1: Mast3rFeatures, features2: Mast3rFeatures) -> Matches:
        import torch

        with torch.inference_mode():
            output = self.model.decode(features1.features, features2.features, points=False)
        return matches_of(output, features1, features2, self.subsample)[0]

    packed_layout: ClassVar[Layout | None] = {
        "tokens": ("f", ("N", "D")),
        "grid": ("i", (2,)),
        "network_from_image": ("f", (3, 3)),
    }

    def pack(self, features: Mast3rFeatures) -> dict[str, np.ndarray]:
        return {
            "tokens": features.features.tokens[0].float().cpu().numpy().astype(np.float16),
            "grid": np.array(features.features.grid, np.int64),
            "network_from_image": features.network_from_image,
        }

    def unpack(self, packed: Mapping[str, np.ndarray]) -> Mast3rFeatures:
        import torch

        from dune_cli.models.mast3r import ViewFeatures

        rows, columns = packed["grid"].tolist()
        tokens = torch.from_numpy(packed["tokens"].astype(np.float32))[None].to(self._device)
        return Mast3rFeatures(ViewFeatures(tokens, (rows, columns)), packed["network_from_image"])

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def matches_of(
    output: TwoViewOutput, prepared1: Prepared | Mast3rFeatures, prepared2: Prepared | Mast3rFeatures, subsample: int
) -> tuple[Matches, np.ndarray]:
    """The reciprocal matches of a pair's descriptors in the photos' pixels, and their pixels (x, y), (M, 2) int64, in
    the network's first image. Scores: c / (1 + c) with c the geometric mean of both descriptor confidences."""
    from dune_cli.matchers.nearest_neighbours import reciprocal_matches

    desc1, desc2 = output.descriptors1[0], output.descriptors2[0]
    xy1, xy2 = reciprocal_matches(desc1, desc2, subsample)
    confidence1 = output.descriptor_confidence1[0][xy1[:, 1], xy1[:, 0]]
    confidence2 = output.descriptor_confidence2[0][xy2[:, 1], xy2[:, 0]]
    confidence = (confidence1.double() * confidence2.double()).sqrt()
    transforms = prepared1.network_from_image, prepared2.network_from_image
    pixels1, pixels2 = xy1.cpu().numpy(), xy2.cpu().numpy()
    matches = Matches(
        _to_image(transforms[0], pixels1),
        _to_image(transforms[1], pixels2),
        (confidence / (1 + confidence)).cpu().numpy().astype(np.float32),
        desc1.shape[0] * desc1.shape[1],
        desc2.shape[0] * desc2.shape[1],
        *(float(np.linalg.det(t[:2, :2]) ** -0.5) for t in transforms),
    )
    return matches, pixels1


def _to_image(network_from_image: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """`network_from_image` scales and shifts, after quarter turns or none: each of its rows reads one image axis."""
    axis = np.abs(network_from_image[:2, :2]).argmax(1)
    image = np.empty(xy.shape)
    image[:, axis] = (xy - network_from_image[:2, 2]) / network_from_image[[0, 1], axis]
    return image


def availability() -> Availability:
    """Never without a model, which the user names."""
    return Availability(False, "it needs the weights of a two-view model", "give --model FILE (and --encoder FILE)")


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    if model is None:
        raise UserError("matcher mast3r needs a two-view model; give --model FILE or a registry name")
    return Mast3r(model, encoder, device, dtype)
