"""LightGlue (Lindenberger, Sarlin, Pollefeys, ICCV 2023): two sets of keypoints to a partial assignment.

Self- and cross-attention in turns with rotary positions from learnt Fourier features; the assignment is a double
softmax of similarities weighted by how matchable each point is. Names of parameters are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.precision import TrunkLinear


@dataclass(frozen=True)
class LightGlueConfig:
    """Sizes; the defaults are LighterGlue's, which was trained for XFeat.

    prune_below: points less matchable than this after a layer are left out of the later ones (0: none are).
    matchability: whether assignments weigh how matchable each point is (LoMa's do not). Inputs as wide as the network
    enter it as they are.
    """

    inputs: int = 64
    width: int = 96
    layers: int = 6
    heads: int = 1
    prune_below: float = 0.05
    matchability: bool = True


@dataclass(frozen=True)
class Assignment:
    """Log-probabilities of a layer. pairs (M, N): that i and j match; none0 (M,), none1 (N,): that one has no match."""

    pairs: torch.Tensor
    none0: torch.Tensor
    none1: torch.Tensor


def normalised(xy: torch.Tensor, size: tuple[float, float]) -> torch.Tensor:
    """Pixels (N, 2) of an image of `size` (width, height) to about [-1, 1], the longer side deciding."""
    return (xy - torch.tensor(size, device=xy.device, dtype=xy.dtype) / 2) / (max(size) / 2)


class PositionalEncoding(nn.Module):
    """Positions (N, 2) -> cosines and sines (2, 1, N, width of a head), each frequency twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(2, width // 2, bias=False)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        angles = F.linear(positions.float(), self.Wr.weight.float())
        return torch.stack([angles.cos(), angles.sin()])[:, None].repeat_interleave(2, dim=-1)


def rotate(x: torch.Tensor, encoding: torch.Tensor) -> torch.Tensor:
    """Neighbouring channels of x (heads, N, D) turned by the encoding's angles."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return (x * encoding[0] + turned * encoding[1]).to(x.dtype)


class FloatLayerNorm(nn.LayerNorm):
    """Takes what a `TrunkLinear` answers in any number type; always float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


def feed_forward(width: int) -> nn.Sequential:
    """The two-layer network after both kinds of attention."""
    return nn.Sequential(
        TrunkLinear(2 * width, 2 * width), FloatLayerNorm(2 * width), nn.GELU(), TrunkLinear(2 * width, width)
    )


class SelfBlock(nn.Module):
    """Attention among the points of one image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = TrunkLinear(width, 3 * width)
        self.out_proj = TrunkLinear(width, width)
        self.ffn = feed_forward(width)

    def forward(self, x: torch.Tensor, encoding: torch.Tensor) -> torch.Tensor:
        q, k, v = self.Wqkv(x).unflatten(-1, (self.heads, -1, 3)).transpose(0, 1).unbind(-1)
        message = _attend(rotate(q, encoding), rotate(k, encoding), v.contiguous())
        return x + self.ffn(torch.cat([x, self.out_proj(message)], -1))


class CrossBlock(nn.Module):
    """Attention between the images: one similarity, read both ways."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qk = TrunkLinear(width, width)
        self.to_v = TrunkLinear(width, width)
        self.to_out = TrunkLinear(width, width)
        self.ffn = feed_forward(width)

    def forward(self, x0: torch.Tensor, x1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (k0, v0), (k1, v1) = (
            [part(x).unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in (self.to_qk, self.to_v)]
            for x in (x0, x1)
        )
        return self._update(x0, _attend(k0, k1, v1)), self._update(x1, _attend(k1, k0, v0))

    def _update(self, x: torch.Tensor, message: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(torch.cat([x, self.to_out(message)], -1))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(heads, M, D), (heads, N, D) twice -> (M, heads x D)."""
    message = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    return message.transpose(0, 1).flatten(1)


class LightGlueLayer(nn.Module):
    """Attention within the images, then between them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = SelfBlock(width, heads)
        self.cross_attn = CrossBlock(width, heads)

    def forward(
        self, x0: torch.Tensor, x1: torch.Tensor, encoding0: torch.Tensor, encoding1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cross_attn(self.self_attn(x0, encoding0), self.self_attn(x1, encoding1))


class AlwaysMatchable(nn.Module):
    """In place of a matchability: every point (N, width) has a match for certain, logits (N, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_full((len(x), 1), torch.inf)


class AssignmentHead(nn.Module):
    """A layer's assignment. Float32 from the similarities on."""

    def __init__(self, width: int, matchability: bool = True) -> None:
        super().__init__()
        self.matchability = nn.Linear(width, 1) if matchability else AlwaysMatchable()
        self.final_proj = nn.Linear(width, width)

    def forward(self, x0: torch.Tensor, x1: torch.Tensor) -> Assignment:
        similarity = (self.final_proj(x0) @ self.final_proj(x1).T).float() / x0.shape[-1] ** 0.5
        return assignment_of(similarity, *(self.matchability(x).float()[:, 0] for x in (x0, x1)))

    def keeps(self, x: torch.Tensor, prune_below: float) -> torch.Tensor:
        """x (N, width) -> (N,) bool: the points that are more matchable than `prune_below`."""
        return self.matchability(x)[:, 0].sigmoid() > prune_below


def assignment_of(similarity: torch.Tensor, matchable0: torch.Tensor, matchable1: torch.Tensor) -> Assignment:
    """similarity (M, N), and the logits (M,), (N,) that a point has a match."""
    pairs = similarity.log_softmax(1) + similarity.log_softmax(0)
    pairs = pairs.add_(F.logsigmoid(matchable0)[:, None]).add_(F.logsigmoid(matchable1))
    return Assignment(pairs, F.logsigmoid(-matchable0), F.logsigmoid(-matchable1))


class TokenConfidence(nn.Module):
    """Points x (N, width) -> the confidence (N,) that their match is final."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.token(x)[:, 0]


class LightGlue(nn.Module):
    """The network of one pair. Descriptors enter by `input_proj`; `embedded` ones have passed it already.

    `depth_confidence`: share of confident points from which on the remaining layers are skipped; 0: none is ever, and
    the network has no confidence heads.
    """

    def __init__(self, config: LightGlueConfig, depth_confidence: float = 0.0) -> None:
        super().__init__()
        self.config, self.depth_confidence = config, depth_confidence
        self.input_proj = nn.Linear(config.inputs, config.width) if config.inputs != config.width else nn.Identity()
        self.posenc = PositionalEncoding(config.width // config.heads)
        self.transformers = nn.ModuleList(LightGlueLayer(config.width, config.heads) for _ in range(config.layers))
        self.log_assignment = nn.ModuleList(
            AssignmentHead(config.width, config.matchability) for _ in range(config.layers)
        )
        if depth_confidence > 0:
            self.token_confidence = nn.ModuleList(TokenConfidence(config.width) for _ in range(config.layers - 1))

    def forward(
        self, embedded0: torch.Tensor, embedded1: torch.Tensor, positions0: torch.Tensor, positions1: torch.Tensor
    ) -> list[Assignment]:
        """embedded (M, width), (N, width) and `normalised` positions -> each layer's assignment; no point is pruned."""
        encodings = self.posenc(positions0), self.posenc(positions1)
        x0, x1, found = embedded0, embedded1, []
        for layer, head in zip(self.transformers, self.log_assignment):
            x0, x1 = layer(x0, x1, *encodings)
            found.append(head(x0, x1))
        return found

    def match(
        self,
        embedded0: torch.Tensor,
        embedded1: torch.Tensor,
        positions0: torch.Tensor,
        positions1: torch.Tensor,
        threshold: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mutually best pairs more probable than `threshold`: index0, index1 (K,) int64, probability (K,) float32."""
        x0, x1 = embedded0, embedded1
        encoding0, encoding1 = self.posenc(positions0), self.posenc(positions1)
        left0, left1 = (torch.arange(len(x), device=x.device) for x in (x0, x1))
        for index, (layer, head) in enumerate(zip(self.transformers, self.log_assignment)):
            x0, x1 = layer(x0, x1, encoding0, encoding1)
            if index == self.config.layers - 1:
                break
            unsure0 = unsure1 = None
            if self.depth_confidence > 0:
                min_confidence = least_confidence(index, self.config.layers)
                confidence0, confidence1 = (self.token_confidence[index](x) for x in (x0, x1))
                unsure0, unsure1 = confidence0 <= min_confidence, confidence1 <= min_confidence
                points = len(embedded0) + len(embedded1)
                if 1 - int(unsure0.sum() + unsure1.sum()) / points > self.depth_confidence:
                    break
            if self.config.prune_below > 0:
                keep0, keep1 = self._keep(head, x0, unsure0), self._keep(head, x1, unsure1)
                x0, encoding0, left0 = x0[keep0], encoding0[:, :, keep0], left0[keep0]
                x1, encoding1, left1 = x1[keep1], encoding1[:, :, keep1], left1[keep1]
        if len(x0) == 0 or len(x1) == 0:
            return left0[:0], left1[:0], x0.new_zeros(0, dtype=torch.float32)
        return mutual(head(x0, x1).pairs, left0, left1, threshold)

    def _keep(self, head: AssignmentHead, x: torch.Tensor, unsure: torch.Tensor | None) -> torch.Tensor:
        """Indices of the points that go on to the next layer: matchable ones, and those that are still unsure."""
        keep = head.keeps(x, self.config.prune_below)
        return (keep if unsure is None else keep | unsure).nonzero()[:, 0]


def least_confidence(layer: int, layers: int) -> float:
    """Up to which confidence a point's match is not final after `layer`, the first of which is 0."""
    return 0.8 + 0.1 * exp(-4 * layer / layers)


def mutual(
    pairs: torch.Tensor, left0: torch.Tensor, left1: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of log-probabilities (M, N) of the points `left0` (M,), `left1` (N,): as `LightGlue.match`."""
    best, to1 = pairs.max(1)
    to0 = pairs.max(0).indices
    row = torch.arange(len(pairs), device=pairs.device)
    probability = best.exp()
    keep = (to0[to1] == row) & (probability > threshold)
    return left0[keep], left1[to1[keep]], probability[keep]
