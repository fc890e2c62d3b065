"""Students: DUNE's ViTs, `dune-mini`, or any timm model, each with a projector for every teacher.

A timm student stays timm's own network, so that timm loads the result.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.init import trunc_normal_

from dune_cli.checkpoints import weight_files
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.checkpoints.state_dict import find_state_dict, load_strict
from dune_cli.checkpoints.third_party import fill_stem
from dune_cli.errors import UserError
from dune_cli.models.blocks import LayerScale
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.models.dune_mini import PARTS, MiniConfig, MiniEncoder
from dune_cli.models.patch_embed import Tokens, normalise, resample
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.teachers.teacher import as_tokens, resample_map
from dune_cli.training.distill.config import unknown_student
from dune_cli.training.distill.projectors import PROJECTORS, TransformerProjector
from dune_cli.training.distill.teacher_outputs import TokenWidths

VITS = {"dune-vits14": (384, 12), "dune-vitb14": (768, 12)}  # width, blocks
REGISTERS = 4
DEFAULT_STEM = "conv"
MINI_LAYER_SCALE = 0.1
MAX_STEM_KERNEL = 7  # of a stem's convolutions; larger kernels are patch embeddings
CNN_STRIDE_PX = 16

# --- encoders ---


def new_encoder(name: str, size_px: int, seed: int, open_weights: bool = True) -> nn.Module:
    """A student's encoder with new weights, for square images of `size_px`.

    The stem of a `dune-mini` gets its published open weights, unless `open_weights` is False. Raises UserError for an
    unknown name and for a size that is no multiple of its patch, WeightsMissing for a stem whose file is not present.
    """
    if name.startswith("timm:"):
        encoder: nn.Module = TimmStudent(name.removeprefix("timm:"), seed)
    elif name == "dune-mini" or name.startswith("dune-mini:"):
        encoder = MiniEncoder(MiniConfig(parts=_stem_parts(name)))
    elif size := re.fullmatch(r"vit:(\d+)x(\d+)", name):
        encoder = _vit(int(size[1]), int(size[2]), size_px)
    elif name in VITS:
        encoder = _vit(*VITS[name], size_px)
    else:
        raise unknown_student(name)
    patch = encoder.patch
    if size_px < patch or size_px % patch:
        near = [multiple for multiple in (size_px // patch * patch, (size_px // patch + 1) * patch) if multiple]
        raise UserError(
            f"--size {size_px} is no multiple of the patch of {name}, {patch} px; near: {' or '.join(map(str, near))}"
        )
    if isinstance(encoder, TimmStudent):
        encoder.check(size_px)
    else:
        initialise(encoder, torch.Generator().manual_seed(seed % 2**63))
    if isinstance(encoder, MiniEncoder):
        encoder.open_stem = fill_stem(dict(encoder.stem.items())) if open_weights else {}
    return encoder


def _stem_parts(name: str) -> tuple[str, ...]:
    """The stem of `dune-mini:PART+PART`, in the order of `PARTS`; that of plain `dune-mini` is `DEFAULT_STEM`."""
    parts = (name.partition(":")[2] or DEFAULT_STEM).split("+")
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"--student {name}: unknown stem {', '.join(unknown)}; known, joined by +: {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def _vit(width: int, depth: int, size_px: int) -> VisionTransformer:
    if width % 64 or not width or not depth:
        raise UserError(
            f"--student vit:{width}x{depth}: the width must be a multiple of 64 (one head each), depth >= 1"
        )
    return VisionTransformer(
        VitConfig(width, depth, width // 64, 4 * width, 14, REGISTERS, max(1, size_px // 14), "offset")
    )


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """DUNE's initialisation (docs/models/distillation.md).

    Linear layers: truncated normal 0.02, zero biases. Position embeddings: 0.02. CLS and registers: 1e-6. Convolutions
    of stems, which DUNE does not have, get the deviation of He et al. A `dune-mini` starts with larger LayerScales, CLS
    and registers, because its trainings are short: with DUNE's, its CLS predictions were still 27 times too small after
    1,200 steps.
    """
    mini = isinstance(module, MiniEncoder)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            trunc_normal_(part.weight, std=0.02, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            std = (2.0 / part.weight[0].numel()) ** 0.5 if max(part.kernel_size) <= MAX_STEM_KERNEL else 0.02
            trunc_normal_(part.weight, std=std, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, LayerScale):
            nn.init.constant_(part.gamma, MINI_LAYER_SCALE if mini else 1e-4)
    for name, parameter in module.named_parameters():
        if name.endswith("pos_embed"):
            trunc_normal_(parameter, std=0.02, generator=generator)
        elif name.endswith(("cls_token", "register_tokens")):
            nn.init.normal_(parameter, std=0.02 if mini else 1e-6, generator=generator)


class TimmStudent(nn.Module):
    """A timm model, its classifier untouched. The last features are the tokens.

    A ViT keeps its patch grid, and its CLS if it has one. A convolutional map of any stride is resampled to stride 16
    (bilinear to enlarge, averaged to shrink), and its mean is the CLS. New weights are timm's own, drawn from `seed`.
    """

    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _create_timm(name)
        self.name, self.width = name, int(self.model.num_features)
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        size = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        self.is_vit = hasattr(self.model, "num_prefix_tokens") and size is not None and size[0] == size[1]
        self.patch = int(size[0]) if self.is_vit else CNN_STRIDE_PX
        self.heads = self.width // 64 if self.width % 64 == 0 else 1
        config = self.model.pretrained_cfg
        self._mean, self._std = tuple(config["mean"]), tuple(config["std"])

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
        """UserError unless the network takes square images of `size_px`."""
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


def _create_timm(name: str) -> nn.Module:
    import timm

    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), 3)
        raise UserError(f"timm has no network {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    try:
        return timm.create_model(name, pretrained=False, dynamic_img_size=True)  # positions stay those of its own size
    except TypeError:  # a family without that option
        return timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"timm cannot make {name!r}: {' '.join(str(error).split())[:200]}") from error


# --- the trained module: encoder and projectors ---


class Student(nn.Module):
    """An encoder and a projector for every teacher: the module that the loop trains.

    widths: channels by teacher and token type. projector: "tp", "sp" or "lp". Projectors are drawn from `seed`.
    """

    def __init__(self, encoder: nn.Module, widths: TokenWidths, projector: str, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        blocks = len(encoder.blocks) if hasattr(encoder, "blocks") else 1
        self.levels = ladder_levels(blocks) if projector == "lp" else (-1,)
        heads = encoder.heads if isinstance(encoder, TimmStudent) else encoder.config.heads
        make = PROJECTORS[projector]
        self.projectors = nn.ModuleDict(
            {name: make(encoder.width, heads, len(self.levels), types) for name, types in widths.items()}
        )
        initialise(self.projectors, torch.Generator().manual_seed((seed + 1) % 2**63))
        self.token_types = {name: tuple(types) for name, types in widths.items()}

    def forward(self, images: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """images (B, 3, H, W) in [0, 1] -> predictions by teacher and token type, float32."""
        tokens = self.encoder.intermediate(images, self.levels, norm=False)
        predictions = {}
        for name, projector in self.projectors.items():
            projected = projector(tokens)
            predictions[name] = {kind: projected[kind].float() for kind in self.token_types[name]}
        return predictions


def ladder_levels(blocks: int) -> tuple[int, ...]:
    """Four evenly spaced depths, the last block among them."""
    return tuple(sorted({max(0, round(blocks * part / 4) - 1) for part in (1, 2, 3, 4)}))


def freeze_unused(student: Student, size_px: int) -> None:
    """Freezes the parameters that no prediction depends on (the final norm, a timm classifier).

    They are found by one backward pass; batch norms keep their statistics.
    """
    student.train()
    for part in student.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    device = next(student.parameters()).device
    predictions = student(torch.zeros(1, 3, size_px, size_px, device=device))
    torch.stack([value.sum() for types in predictions.values() for value in types.values()]).sum().backward()
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    student.zero_grad(set_to_none=True)
    student.train()


# --- weights of --init ---


def load_into(student: Student, name_or_path: str) -> tuple[str, ...]:
    """Loads the encoder, and the projectors that the file has for the student's teachers; returns those teachers.

    Position embeddings of another size are resampled. CheckpointError where the encoders differ.
    """
    encoder = student.encoder
    if isinstance(encoder, TimmStudent):
        state_dict = find_state_dict(weight_files.open_weights(name_or_path).checkpoint)
        _load_strict(encoder.model, state_dict, name_or_path)
        return ()
    loaded = load_encoder(name_or_path, device="cpu")
    source = loaded.vit if isinstance(loaded, DistilledEncoder) else loaded
    state_dict = dict(source.state_dict())
    if isinstance(source, VisionTransformer) and isinstance(encoder, VisionTransformer):
        side = encoder.config.positions_side
        state_dict["pos_embed"] = resample(source.pos_embed, (side, side), "antialias")
    _load_strict(encoder, state_dict, name_or_path)
    return _load_projectors(student, loaded)


def _load_strict(module: nn.Module, state_dict: dict[str, torch.Tensor], name: str) -> None:
    with weight_files.naming_file(f"--init {name}"):
        load_strict(module, state_dict, "the student")


def _load_projectors(student: Student, loaded: nn.Module) -> tuple[str, ...]:
    names = []
    available = dict(loaded.projectors.items()) if isinstance(loaded, DistilledEncoder) else {}
    for name, projector in student.projectors.items():
        if name not in available or not isinstance(projector, TransformerProjector):
            continue
        state_dict, expected = available[name].state_dict(), projector.projector.state_dict()
        if {k: v.shape for k, v in state_dict.items()} == {k: v.shape for k, v in expected.items()}:
            projector.projector.load_state_dict(state_dict)
            names.append(name)
    return tuple(names)
