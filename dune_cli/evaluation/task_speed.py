"""Speed of `dune depth` and `dune human`: their networks against this machine's matrix products, as in speed.py.

Networks of the published sizes with random weights. What a photo costs besides (reading, resizing, writing) is left
out; the bodies of `dune human` are a row of their own, because they are no matrix products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli import runtime
from dune_cli.bodies.registry import load_anny
from dune_cli.evaluation.speed import (
    SQUARE,
    NetworkSpeed,
    Stopwatch,
    best_seconds,
    count_flop,
    input_size,
    linear_products,
    random_two_view,
)
from dune_cli.models.dinov2_heads import Dinov2DptConfig, Dinov2DptHead, HeadDepth
from dune_cli.models.mast3r import TwoViewDepth
from dune_cli.models.multihmr_anny import AnnyHeadConfig, MultiHmrAnny
from dune_cli.models.multihmr_common import PersonTransformerConfig
from dune_cli.models.multihmr_smplx import MultiHmrSmplx, SmplxHeadConfig
from dune_cli.models.precision import set_trunk_dtype
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.tasks.human import HumanModel

VITS = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}  # width, blocks, heads
DEPTH_MODELS = ("dinov2-vits14-nyu-dpt", "dinov2-vitb14-nyu-dpt", "dinov2-vitl14-nyu-dpt", "mast3r-vitl")
HUMAN_MODELS = ("multihmr-672-s", "multihmr-672-b", "multihmr-672-l", "multihmr-896-l", "multihmr-672-l-anny")
DEPTH_LONG_SIDE_PX = 640
PEOPLE = 4

Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class TaskSpeed:
    """All of one run. `peak` in GFLOP/s by number type and shape; `networks` as in speed.Speed, "encoder" among them;
    `people` in the image of a human model. `fast_dtype`: what this processor is fast at, which `--dtype auto` means for
    trunks of single images; `fast_gain`: float32 seconds over its, by network."""

    model: str
    device: str
    threads: int
    clock: str
    input_hw: tuple[int, int]
    people: int | None
    fast_dtype: str
    peak: dict[str, dict[str, float]]
    networks: tuple[NetworkSpeed, ...]
    fast_gain: dict[str, float]


def random_depth(name: str) -> HeadDepth | TwoViewDepth:
    """A depth model of `DEPTH_MODELS` with random weights."""
    if name == "mast3r-vitl":
        return TwoViewDepth(random_two_view(name)).eval()
    width, depth, heads = VITS[name.removeprefix("dinov2-vit")[0]]
    config = Dinov2DptConfig(width, (width // 8, width // 4, width // 2, width), 256, 128, 32)
    blocks = tuple(depth * step // 4 - 1 for step in (1, 2, 3, 4))
    with torch.device("meta"):
        head = Dinov2DptHead(config, 0.001)
        model = HeadDepth(VisionTransformer(_vit(width, depth, heads)), head, blocks, 0.001, 10.0)
    return _filled(model)


def random_human(name: str) -> MultiHmrSmplx | MultiHmrAnny:
    """A network of `HUMAN_MODELS` with random weights and two person layers (docs/models/multihmr.md)."""
    _, size, letter, *anny = name.split("-")
    width, depth, heads = VITS[letter]
    cells = int(size) // 14
    with torch.device("meta"):
        vit = VisionTransformer(_vit(width, depth, heads))
        if anny:
            hidden = {"mlp_det": width, "mlp_fov_unique": width}
            hidden |= dict.fromkeys(("mlp_offset", "mlp_pose", "mlp_shape", "mlp_dist"), 512)
            transformer = PersonTransformerConfig(512, 512, 512, 16, 2048, 2)
            network: MultiHmrSmplx | MultiHmrAnny = MultiHmrAnny(
                vit, AnnyHeadConfig(cells, width, 163, 11, hidden, transformer)
            )
        else:
            transformer = PersonTransformerConfig(1024, width + 99, 256, 8, 1024, 2)
            hidden = {"mlp_classif": width, "mlp_offset": width}
            network = MultiHmrSmplx(vit, SmplxHeadConfig(cells, width, 16, 32.0, 10, 10, hidden, transformer))
    return _filled(network)


@torch.inference_mode()
def measure_task(
    name: str,
    size_px: int | None = None,
    device: str = "auto",
    rounds: int = 3,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> TaskSpeed:
    """One model of `DEPTH_MODELS` or `HUMAN_MODELS` on one image: the encoder, the whole network, and (Anny) the
    network with its bodies, in float32 and in the fast type, against matrix products of the same rounds.

    `size_px`: long side of the 4:3 image of a depth model; a human model takes its own square only (ValueError).
    """
    human = name in HUMAN_MODELS
    if human and size_px is not None:
        raise ValueError(f"{name} takes squares of its own size only")
    where = runtime.pick_device(device)
    fast = runtime.pick_dtype("auto", where)
    fast_name = str(fast).removeprefix("torch.")
    watch = Stopwatch(where, cpu_time)
    report(f"building {name} with random weights")
    model: nn.Module = (random_human if human else random_depth)(name).to(where)
    models = {"float32": model}
    if fast != torch.float32:
        models[fast_name] = set_trunk_dtype(copy.deepcopy(model), fast)
    height, width = _input_hw(model, size_px)
    image = torch.rand(1, 3, height, width, device=where)
    by_type = {dtype: (_human_calls if human else _depth_calls)(network, image) for dtype, network in models.items()}
    calls = {(part, dtype): call for dtype, (parts, _) in by_type.items() for part, call in parts.items()}
    gflop = {part: count_flop(call) / 1e9 for part, call in by_type["float32"][0].items()}
    shapes = _trunk_shapes(model, height * width)
    products = {
        (str(dtype).removeprefix("torch."), shape): timed
        for dtype in sorted({torch.float32, fast}, key=str)
        for shape, timed in linear_products(where, dtype, shapes).items()
    }
    timed = {key: product for key, (product, _) in products.items()}
    best = best_seconds({**timed, **calls}, rounds, watch, report)
    peak: dict[str, dict[str, float]] = {}
    for (dtype, shape), (_, flop) in products.items():
        peak.setdefault(dtype, {})[shape] = flop / best[dtype, shape] / 1e9
    top = max(peak["float32"].values())
    networks = []
    for part, dtype in calls:
        rate = gflop[part] / best[part, dtype]
        networks.append(NetworkSpeed(part, dtype, best[part, dtype], gflop[part], rate, rate / top, {}))
    gain = {part: best[part, "float32"] / best[part, fast_name] for part in gflop if fast != torch.float32}
    return TaskSpeed(
        name,
        str(where),
        torch.get_num_threads(),
        "processor" if cpu_time else "wall",
        (height, width),
        by_type["float32"][1],
        fast_name,
        peak,
        tuple(networks),
        gain,
    )


def _vit(width: int, depth: int, heads: int) -> VitConfig:
    return VitConfig(width, depth, heads, 4 * width, 14, 0, 37, "offset")


def _filled(model: nn.Module) -> Any:
    """`model` (on the meta device) with small random weights, for inference."""
    model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.uniform_(-0.03, 0.03, generator=generator)
    for part in model.modules():
        if isinstance(part, Dinov2DptHead):
            part.to(memory_format=torch.channels_last)
    return model


def _input_hw(model: nn.Module, size_px: int | None) -> tuple[int, int]:
    if isinstance(model, (MultiHmrSmplx, MultiHmrAnny)):
        return model.size_px, model.size_px
    if isinstance(model, TwoViewDepth):
        return input_size(size_px or model.model.size, model.model.patch)
    long_side = size_px or DEPTH_LONG_SIDE_PX
    return max(1, round(long_side * 3 / 4)), long_side  # a head pads to whole patches itself


def _depth_calls(model: HeadDepth | TwoViewDepth, image: torch.Tensor) -> tuple[Calls, None]:
    if isinstance(model, TwoViewDepth):
        return {"encoder": lambda: model.model.encode(image), "network": lambda: model.points(image)}, None
    padded = F.interpolate(image, [-(-side // 14) * 14 for side in image.shape[-2:]])
    encoder = lambda: model.encoder.intermediate(padded, model.blocks, norm=False)  # noqa: E731
    return {"encoder": encoder, "network": lambda: model(image)}, None


def _human_calls(network: MultiHmrSmplx | MultiHmrAnny, image: torch.Tensor) -> tuple[Calls, int]:
    """The calls, and how many people they find: `PEOPLE`, by the threshold that leaves so many."""
    scores = network(image, None, 0.0)[0].scores.sort(descending=True).values
    threshold = float(scores[min(PEOPLE, len(scores)) - 1])
    calls: Calls = {"encoder": lambda: network.backbone(image), "network": lambda: network(image, None, threshold)}
    if isinstance(network, MultiHmrAnny):
        whole = HumanModel(network, load_anny("full").to(image.device)).eval()
        calls["network and bodies"] = lambda: whole(image, None, threshold)
    return calls, int((scores >= threshold).sum())


def _trunk_shapes(model: nn.Module, pixels: int) -> tuple[tuple[int, int, int], ...]:
    """(m, k, n) of the matrix products to compare with: a large square one and those of the encoder's MLP."""
    if isinstance(model, TwoViewDepth):
        patch, width = model.model.patch, 1024
    else:
        vit = model.encoder if isinstance(model, HeadDepth) else model.backbone
        patch, width = vit.config.patch, vit.config.width
    tokens = max(1, pixels // patch**2)
    return (SQUARE, SQUARE, SQUARE), (tokens, width, 4 * width), (tokens, 4 * width, width)
