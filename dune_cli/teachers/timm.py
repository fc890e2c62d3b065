"""Any timm model as a teacher: `timm:NAME` (weights from the Hugging Face cache) or `timm:NAME=FILE`."""

from __future__ import annotations

import torch

from dune_cli.checkpoints import timm_models
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import CheckpointError, UserError
from dune_cli.models.patch_embed import normalise
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, VitTeacher, as_tokens, resample_map, resize_to_grid

CELL_PX = 16  # of a convolutional network's input that one token of the student covers


class TimmMapTeacher(Teacher):
    """The last feature map of a convolutional network, resampled to the student's grid; its mean stands for the CLS."""

    note = "no CLS of its own: its pooled last map stands for it"

    def __init__(
        self, name: str, net: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...], source: Source
    ) -> None:
        super().__init__()
        self.name, self.net, self.source = name, net, source
        self._mean, self._std = tuple(mean), tuple(std)
        self.widths = dict.fromkeys((CLS, PATCH), int(net.num_features))

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        width = self.widths[PATCH]
        features = self.net.forward_features(normalise(resize_to_grid(images, grid, CELL_PX), self._mean, self._std))
        if features.ndim == 4 and features.shape[1] != width and features.shape[-1] == width:
            features = features.permute(0, 3, 1, 2)  # timm's channels-last families
        if features.ndim != 4 or features.shape[1] != width:
            raise CheckpointError(
                f"{self.source.name} gives features {tuple(features.shape)}, which are no map; use another network"
            )
        return {CLS: features.mean((2, 3)), PATCH: as_tokens(resample_map(features, grid))}


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """A timm ViT's CLS and patch tokens, or any other timm network's last map, with its own normalisation."""
    if not weights:
        raise UserError("the teacher timm needs a model: timm:NAME or timm:NAME=FILE")
    spec = f"{timm_models.PREFIX}{weights}"
    name = "timm_" + weights.partition("=")[0].replace(".", "_")
    if timm_models.is_vit(spec):
        encoder = load_encoder(spec, str(device), str(dtype).removeprefix("torch."))
        has_cls = getattr(encoder.network, "cls_token", None) is not None
        note = "" if has_cls else "no CLS of its own: the mean of its patches stands for it"
        return VitTeacher(name, encoder, (CLS, PATCH), encoder.source, note)
    net, settings, source = timm_models.load_convolutional(spec)
    return TimmMapTeacher(name, net.to(device), settings["mean"], settings["std"], source)
