"""Any timm model as a student; what is trained stays timm's own network, so timm loads the result."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import nn

from dune_cli.errors import UserError
from dune_cli.models.pixels import normalise
from dune_cli.models.tokens import Tokens
from dune_cli.teachers.base import as_tokens, resample_map

CNN_CELL_PX = 16


class TimmStudent(nn.Module):
    """The whole timm model, its classifier untouched. The last features are the tokens.

    A ViT keeps its own patch grid, and its CLS where it has one; a convolutional map, whatever its stride, is put on a
    stride-16 grid (bilinear to enlarge, averaged to shrink) and its mean is the CLS. Fresh weights are timm's own, from
    `seed`.
    """

    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _create(name)
        self.name, self.width = name, int(self.model.num_features)
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        size = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        self.is_vit = hasattr(self.model, "num_prefix_tokens") and size is not None and size[0] == size[1]
        self.patch = int(size[0]) if self.is_vit else CNN_CELL_PX
        self.heads = self.width // 64 if self.width % 64 == 0 else 1
        settings = self.model.pretrained_cfg
        self._mean, self._std = tuple(settings["mean"]), tuple(settings["std"])

    def intermediate(self, images: torch.Tensor, layers: Sequence[int], norm: bool = False) -> list[Tokens]:
        """images (B, 3, H, W) in [0, 1] -> one level: the last features, on the grid (H/patch, W/patch).

        ValueError when the network gives neither a map nor tokens on that grid.
        """
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        features = self.model.forward_features(normalise(images, self._mean, self._std)).float()
        if self.is_vit and features.ndim == 3 and features.shape[1] == self.prefix + grid[0] * grid[1]:
            patches = features[:, self.prefix :]
            has_cls = self.prefix > 0 and getattr(self.model, "cls_token", None) is not None
            cls = features[:, 0] if has_cls else patches.mean(1)
            return [Tokens(cls, patches[:, :0], patches, grid)]
        if features.ndim == 4 and features.shape[1] != self.width and features.shape[-1] == self.width:
            features = features.permute(0, 3, 1, 2)  # timm's channels-last families
        if features.ndim != 4 or features.shape[1] != self.width:
            raise ValueError(f"its features are {tuple(features.shape)}, neither a map nor tokens on a grid of {grid}")
        patches = as_tokens(resample_map(features, grid))
        return [Tokens(patches.mean(1), patches[:, :0], patches, grid)]

    def check(self, size_px: int) -> None:
        """UserError unless square images of `size_px` go through."""
        was_training = self.training
        try:
            with torch.no_grad():
                self.eval().intermediate(torch.zeros(1, 3, size_px, size_px), (-1,))
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--student timm:{self.name} cannot be trained at --size {size_px} ({reason}); try its own size, "
                f"{self.model.pretrained_cfg['input_size'][-1]}, or another network"
            ) from error
        finally:
            self.train(was_training)


def _create(name: str) -> nn.Module:
    import timm

    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), 3)
        raise UserError(f"timm has no network {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    try:
        return timm.create_model(name, pretrained=False, dynamic_img_size=True)  # positions stay those of its own size
    except TypeError:  # a family without that setting
        return timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"timm cannot make {name!r}: {' '.join(str(error).split())[:200]}") from error
