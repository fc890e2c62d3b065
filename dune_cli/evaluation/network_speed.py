"""Speed of the networks of `dune reconstruct` and `dune reloc` (a pair), `dune depth` and `dune human` (one image).

Reading, resizing and writing photos is not measured. The bodies of `dune human` are a row of their own, because they
are no matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.bodies.registry import load_anny
from dune_cli.evaluation.speed import Call, SpeedBench, SpeedResult, Stopwatch, fill_random, mlp_shapes
from dune_cli.models.dinov2_heads import Dinov2DptConfig, Dinov2DptHead, HeadDepth
from dune_cli.models.dpt import DptConfig, DptHead
from dune_cli.models.mast3r import (
    ConfidenceMode,
    CrocoConfig,
    CrocoEncoder,
    DecoderConfig,
    DescriptorHead,
    DunePatches,
    HeadConfig,
    TwoViewDecoder,
    TwoViewDepth,
    TwoViewModel,
)
from dune_cli.models.multihmr_anny import AnnyHeadConfig, MultiHmrAnny
from dune_cli.models.multihmr_common import PersonTransformerConfig
from dune_cli.models.multihmr_smplx import MultiHmrSmplx, SmplxHeadConfig
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.tasks.human import HumanModel

VITS = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}  # width, blocks, heads
ARCHITECTURES = {"dune-vits": ("s", 14), "dune-vitb": ("b", 14), "mast3r-vitl": ("l", 16)}  # of VITS, patch
DEPTH_MODELS = ("dinov2-vits14-nyu-dpt", "dinov2-vitb14-nyu-dpt", "dinov2-vitl14-nyu-dpt", "mast3r-vitl")
HUMAN_MODELS = ("multihmr-672-s", "multihmr-672-b", "multihmr-672-l", "multihmr-896-l", "multihmr-672-l-anny")
DEPTH_LONG_SIDE_PX = 640
PEOPLE = 4
FLOAT32_SHARE_GOAL, FAST_GOAL, MATCHING_GOAL = 0.75, 2.0, 10.0
Calls = dict[str, Call]  # by network


@dataclass(frozen=True)
class PairSpeed(SpeedResult):
    """The networks "encoder" and "two-view" of an architecture."""

    architecture: str


@dataclass(frozen=True)
class TaskSpeed(SpeedResult):
    """The networks "encoder", "network" and, of Anny models, "network and bodies". people: in a human model's image."""

    model: str
    people: int | None


# --- a pair ---


@torch.inference_mode()
def measure_pair(
    architecture: str = "dune-vitb",
    size_px: int | None = None,
    device: str = "auto",
    rounds: int = 3,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> PairSpeed:
    """Encoder and two-view forward of one 4:3 pair with a long side of `size_px`, in float32 and in the fast type."""
    bench = SpeedBench(device, rounds, cpu_time, report)
    report(f"building {architecture} with random weights")
    models = bench.models(random_two_view(architecture).to(bench.device))
    model = models["float32"]
    height, width = input_size(size_px or model.size, model.patch)
    images = torch.rand(2, 1, 3, height, width, device=bench.device)
    calls: dict[tuple[str, str], Call] = {}
    for dtype, network in models.items():
        calls["encoder", dtype] = lambda network=network: network.encode(images[0])
        calls["two-view", dtype] = lambda network=network: network(images[0], images[1])
    config = model.decoder.config
    shapes = mlp_shapes(height * width // model.patch**2, config.width, config.hidden)

    def parts(dtype: str, call: Call) -> dict[str, float]:
        return seconds_by_part(models[dtype], call, bench.watch)

    result = bench.measure_networks(calls, shapes, (height, width), parts)
    return PairSpeed(**vars(result), architecture=architecture)


def random_two_view(architecture: str) -> TwoViewModel:
    """A two-view model of `ARCHITECTURES` with random weights."""
    letter, patch = ARCHITECTURES[architecture]
    width, depth, heads = VITS[letter]
    head = HeadConfig(
        points=DptConfig((width, 768, 768, 768), (96, 192, 384, 768), 256, 128, 128, 4, patch),
        local_inputs=width + 768,
        local_hidden=4 * (width + 768),
        descriptor_channels=24,
        own_descriptor_confidence=True,
        confidence=ConfidenceMode(1),
        descriptor_confidence=ConfidenceMode(0),
    )
    with torch.device("meta"):
        if patch == 16:
            encoder: CrocoEncoder | DunePatches = CrocoEncoder(CrocoConfig(width, depth, heads, 4 * width, 16, 100.0))
        else:
            encoder = DunePatches(VisionTransformer(VitConfig(width, depth, heads, 4 * width, 14, 4, 32, "offset")))
        model = TwoViewModel(encoder, TwoViewDecoder(DecoderConfig(width, 768, 12, 12, 3072, 100.0)), head)
    return fill_random(model)


def input_size(long_side_px: int, patch: int) -> tuple[int, int]:
    """(H, W) of a 4:3 landscape image in whole patches."""
    return max(1, round(long_side_px * 3 / 4 / patch)) * patch, max(1, long_side_px // patch) * patch


def seconds_by_part(model: TwoViewModel, call: Call, watch: Stopwatch) -> dict[str, float]:
    """Seconds inside the encoder, the decoder, the point heads and the descriptor heads during one call."""
    types: tuple[tuple[str, type[nn.Module] | tuple[type[nn.Module], ...]], ...] = (
        ("encoder", (CrocoEncoder, DunePatches)),
        ("decoder", TwoViewDecoder),
        ("point heads", DptHead),
        ("descriptor heads", DescriptorHead),
    )
    spent: dict[str, float] = {}
    handles = []
    for part in model.modules():
        for name, module_type in types:
            if isinstance(part, module_type):
                starts: list[float] = []
                handles.append(part.register_forward_pre_hook(lambda *_, starts=starts: starts.append(watch.now())))

                def add(*_: Any, name: str = name, starts: list[float] = starts) -> None:
                    spent[name] = spent.get(name, 0.0) + watch.now() - starts.pop()

                handles.append(part.register_forward_hook(add))
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return spent


# --- one image ---


@torch.inference_mode()
def measure_task(
    name: str,
    size_px: int | None = None,
    device: str = "auto",
    rounds: int = 3,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> TaskSpeed:
    """Encoder and whole network of a model of `DEPTH_MODELS` or `HUMAN_MODELS`, in float32 and in the fast type.

    size_px: long side of a depth model's 4:3 image. A human model takes squares of its own size (ValueError).
    """
    is_human = name in HUMAN_MODELS
    if is_human and size_px is not None:
        raise ValueError("a human model takes squares of its own size only")
    bench = SpeedBench(device, rounds, cpu_time, report)
    report(f"building {name} with random weights")
    model: nn.Module = (random_human if is_human else random_depth)(name).to(bench.device)
    height, width = _input_hw(model, size_px)
    image = torch.rand(1, 3, height, width, device=bench.device)
    calls: dict[tuple[str, str], Call] = {}
    people: dict[str, int | None] = {}
    for dtype, network in bench.models(model).items():
        by_network, people[dtype] = (_human_calls if is_human else _depth_calls)(network, image)
        calls |= {(part, dtype): call for part, call in by_network.items()}
    patch, tokens_width = _trunk_size(model)
    shapes = mlp_shapes(max(1, height * width // patch**2), tokens_width, 4 * tokens_width)
    result = bench.measure_networks(calls, shapes, (height, width))
    return TaskSpeed(**vars(result), model=name, people=people["float32"])


def random_depth(name: str) -> HeadDepth | TwoViewDepth:
    """A depth model of `DEPTH_MODELS` with random weights."""
    if name == "mast3r-vitl":
        return TwoViewDepth(random_two_view(name)).eval()
    width, depth, heads = VITS[name.removeprefix("dinov2-vit")[0]]
    config = Dinov2DptConfig(width, (width // 8, width // 4, width // 2, width), 256, 128, 32)
    blocks = tuple(depth * step // 4 - 1 for step in (1, 2, 3, 4))
    with torch.device("meta"):
        head = Dinov2DptHead(config, 0.001)
        model = HeadDepth(_dinov2(width, depth, heads), head, blocks, 0.001, 10.0)
    return fill_random(model)


def random_human(name: str) -> MultiHmrSmplx | MultiHmrAnny:
    """A network of `HUMAN_MODELS` with random weights and two person layers (docs/models/multihmr.md)."""
    _, size, letter, *anny = name.split("-")
    width, depth, heads = VITS[letter]
    cells = int(size) // 14
    with torch.device("meta"):
        vit = _dinov2(width, depth, heads)
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
    return fill_random(network)


def _dinov2(width: int, depth: int, heads: int) -> VisionTransformer:
    return VisionTransformer(VitConfig(width, depth, heads, 4 * width, 14, 0, 37, "offset"))


def _input_hw(model: nn.Module, size_px: int | None) -> tuple[int, int]:
    if isinstance(model, (MultiHmrSmplx, MultiHmrAnny)):
        return model.size_px, model.size_px
    if isinstance(model, TwoViewDepth):
        return input_size(size_px or model.model.size, model.model.patch)
    long_side = size_px or DEPTH_LONG_SIDE_PX
    return max(1, round(long_side * 3 / 4)), long_side  # a head pads to whole patches itself


def _trunk_size(model: nn.Module) -> tuple[int, int]:
    """(patch, width) of the encoder."""
    if isinstance(model, TwoViewDepth):
        return model.model.patch, VITS["l"][0]
    config = (model.encoder if isinstance(model, HeadDepth) else model.backbone).config
    return config.patch, config.width


def _depth_calls(model: HeadDepth | TwoViewDepth, image: torch.Tensor) -> tuple[Calls, None]:
    if isinstance(model, TwoViewDepth):
        return {"encoder": lambda: model.model.encode(image), "network": lambda: model.points(image)}, None
    padded = F.interpolate(image, [-(-side // 14) * 14 for side in image.shape[-2:]])
    encoder = lambda: model.encoder.intermediate(padded, model.blocks, norm=False)  # noqa: E731
    return {"encoder": encoder, "network": lambda: model(image)}, None


def _human_calls(network: MultiHmrSmplx | MultiHmrAnny, image: torch.Tensor) -> tuple[Calls, int]:
    """The calls, and the number of detected people: `PEOPLE`, by the threshold that leaves so many."""
    scores = network(image, None, 0.0)[0].scores.sort(descending=True).values
    threshold = float(scores[min(PEOPLE, len(scores)) - 1])
    calls: Calls = {"encoder": lambda: network.backbone(image), "network": lambda: network(image, None, threshold)}
    if isinstance(network, MultiHmrAnny):
        human = HumanModel(network, load_anny("full").to(image.device)).eval()
        calls["network and bodies"] = lambda: human(image, None, threshold)
    return calls, int((scores >= threshold).sum())
