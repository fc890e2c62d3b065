"""Speed as ratios, measured in one run: networks against this machine's matrix products, matching against other ways.

The networks have their real sizes and random weights: what they compute does not depend on the values, how fast they
do it hardly. Everything is measured in turns, several rounds, and the best of each counts, so that a busy machine
disturbs all alike.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dune_cli import runtime
from dune_cli.errors import JobFailed
from dune_cli.matchers.nearest_neighbours import reciprocal_matches
from dune_cli.models.dpt import DptConfig, DptHead, to_channels_last
from dune_cli.models.mast3r import (
    ConfidenceMode,
    CrocoConfig,
    CrocoEncoder,
    DecoderConfig,
    DescriptorHead,
    DunePatches,
    HeadConfig,
    TwoViewDecoder,
    TwoViewModel,
)
from dune_cli.models.precision import set_trunk_dtype
from dune_cli.models.vit import VisionTransformer, VitConfig

SQUARE = 2048
ARCHITECTURES = {"dune-vits": (384, 12, 6, 14), "dune-vitb": (768, 12, 12, 14), "mast3r-vitl": (1024, 24, 16, 16)}
FLOAT32_SHARE_GOAL, FAST_GOAL, MATCHING_GOAL = 0.75, 2.0, 10.0


@dataclass(frozen=True)
class NetworkSpeed:
    """One network in one number type: seconds a pass, its operations, and the share of the float32 peak.

    `share` above 1 is possible in bfloat16. `parts`: seconds inside each part, of one further pass.
    """

    network: str
    dtype: str
    seconds: float
    gflop: float
    gflop_per_second: float
    share: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Speed:
    """All of one run. `peak` in GFLOP/s by number type and shape.

    `fast_dtype`: what this processor is fast at ("float32" if nothing else); `fast_gain`: float32 seconds over its.
    """

    device: str
    threads: int
    clock: str
    architecture: str
    input_hw: tuple[int, int]
    fast_dtype: str
    peak: dict[str, dict[str, float]]
    networks: tuple[NetworkSpeed, ...]
    fast_gain: dict[str, float]


def random_two_view(architecture: str) -> TwoViewModel:
    """A two-view model of real size ("dune-vits", "dune-vitb", "mast3r-vitl") with random weights, for timing."""
    width, depth, heads, patch = ARCHITECTURES[architecture]
    decoder = DecoderConfig(width, 768, 12, 12, 3072, 100.0)
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
        model = TwoViewModel(encoder, TwoViewDecoder(decoder), head)
    model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.uniform_(-0.03, 0.03, generator=generator)
    to_channels_last(model)
    return model


def input_size(long_side_px: int, patch: int) -> tuple[int, int]:
    """(H, W) of a 4:3 landscape image in whole patches."""
    return max(1, round(long_side_px * 3 / 4 / patch)) * patch, max(1, long_side_px // patch) * patch


class Stopwatch:
    """Seconds of a call: of the wall, or (`cpu_time`) of the processor, for one thread on a busy machine."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device, self._now = device, time.process_time if cpu_time else time.perf_counter

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._now()

    def __call__(self, call: Callable[[], Any]) -> float:
        start = self.now()
        call()
        return self.now() - start


def best_seconds(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, watch: Stopwatch, report: Callable[[str], None]
) -> dict[Any, float]:
    """Every call in turn, `rounds` times after one round that warms up: the best time of each."""
    best: dict[Any, float] = {}
    for turn in range(rounds + 1):
        report(f"round {turn} of {rounds}")
        for key, call in calls.items():
            seconds = watch(call)
            if turn:
                best[key] = min(seconds, best.get(key, seconds))
    return best


@torch.inference_mode()
def measure_networks(
    architecture: str = "dune-vitb",
    size_px: int | None = None,
    device: str = "auto",
    rounds: int = 3,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Speed:
    """Encoder and two-view forward of one pair, in float32 and in the fast type, against matrix products.

    The peak of a number type is the best rate over a large square product and the networks' own shapes.
    """
    where = runtime.pick_device(device)
    fast = runtime.pick_dtype("auto", where)
    fast_name = str(fast).removeprefix("torch.")
    watch = Stopwatch(where, cpu_time)
    report(f"building {architecture} with random weights")
    models = {"float32": random_two_view(architecture).to(where)}
    patch = models["float32"].patch
    height, width = input_size(size_px or models["float32"].size, patch)
    if fast != torch.float32:
        models[fast_name] = set_trunk_dtype(copy.deepcopy(models["float32"]), fast)
    images = torch.rand(2, 1, 3, height, width, device=where)
    products = _products(where, {torch.float32, fast}, models["float32"], height * width // patch**2)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for dtype, model in models.items():
        calls["encoder", dtype] = lambda model=model: model.encode(images[0])
        calls["two-view", dtype] = lambda model=model: model(images[0], images[1])
    gflop = {name: count_flop(calls[name, "float32"]) / 1e9 for name in ("encoder", "two-view")}
    timed = {key: product for key, (product, _) in products.items()}
    best = best_seconds({**timed, **calls}, rounds, watch, report)
    peak: dict[str, dict[str, float]] = {}
    for (dtype, shape), (_, flop) in products.items():
        peak.setdefault(dtype, {})[shape] = flop / best[dtype, shape] / 1e9
    top = max(peak["float32"].values())
    networks = tuple(
        NetworkSpeed(
            name,
            dtype,
            best[name, dtype],
            gflop[name],
            rate := gflop[name] / best[name, dtype],
            rate / top,
            seconds_by_part(models[dtype], call, watch),
        )
        for (name, dtype), call in calls.items()
    )
    gain = {name: best[name, "float32"] / best[name, fast_name] for name in gflop if fast != torch.float32}
    threads, clock = torch.get_num_threads(), "processor" if cpu_time else "wall"
    return Speed(
        str(where),
        threads,
        clock,
        architecture,
        (height, width),
        fast_name,
        peak,
        networks,
        gain,
    )


def _products(
    device: torch.device, dtypes: set[torch.dtype], model: TwoViewModel, tokens: int
) -> dict[tuple[str, str], tuple[Callable[[], Any], float]]:
    """Linear layers to time: (dtype, shape in words) -> (call, FLOP)."""
    width, hidden = model.decoder.config.width, model.decoder.config.hidden
    shapes = (SQUARE, SQUARE, SQUARE), (tokens, width, hidden), (tokens, hidden, width)
    return {
        (str(dtype).removeprefix("torch."), shape): timed
        for dtype in sorted(dtypes, key=str)
        for shape, timed in linear_products(device, dtype, shapes).items()
    }


def linear_products(
    device: torch.device, dtype: torch.dtype, shapes: Iterable[tuple[int, int, int]]
) -> dict[str, tuple[Callable[[], Any], float]]:
    """Linear layers of (m, k, n) to time, each as long as a square one: shape in words -> (call, FLOP)."""
    found: dict[str, tuple[Callable[[], Any], float]] = {}
    for m, k, n in shapes:
        x, w = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
        repeats = max(1, round(SQUARE**3 / (m * k * n)))
        call = lambda x=x, w=w, repeats=repeats: [F.linear(x, w) for _ in range(repeats)]  # noqa: E731
        found[f"{m}x{k}x{n}"] = call, 2.0 * m * k * n * repeats
    return found


def count_flop(call: Callable[[], Any]) -> float:
    """Multiplications and additions of the matrix products, convolutions and attentions that a call runs."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return float(counter.get_total_flops())


def seconds_by_part(model: TwoViewModel, call: Callable[[], Any], watch: Stopwatch) -> dict[str, float]:
    """Seconds inside the encoder, the decoder, the point heads and the descriptor heads during one call."""
    kinds: tuple[tuple[str, type[nn.Module] | tuple[type[nn.Module], ...]], ...] = (
        ("encoder", (CrocoEncoder, DunePatches)),
        ("decoder", TwoViewDecoder),
        ("point heads", DptHead),
        ("descriptor heads", DescriptorHead),
    )
    spent: dict[str, float] = {}
    handles = []
    for part in model.modules():
        for name, kind in kinds:
            if isinstance(part, kind):
                began: list[float] = []
                handles.append(part.register_forward_pre_hook(lambda *_, began=began: began.append(watch.now())))

                def after(*_: Any, name: str = name, began: list[float] = began) -> None:
                    spent[name] = spent.get(name, 0.0) + watch.now() - began.pop()

                handles.append(part.register_forward_hook(after))
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return spent


def threads(count: int | None) -> AbstractContextManager[None]:
    """`count` threads for torch inside the context; None leaves them as they are."""
    return nullcontext() if count is None else _Threads(count)


class _Threads(AbstractContextManager[None]):
    def __init__(self, count: int) -> None:
        self.count, self.before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


# Speed of reciprocal matching against two plain ways, which must give the same matches.


Pairs = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class MatchingSpeed:
    """Seconds of the three ways for all mutual nearest neighbours of two maps; `identical`: the same matches.

    The gains are other seconds / own seconds.
    """

    grid_hw: tuple[int, int]
    channels: int
    matches: int
    seconds: float
    full_matrix_seconds: float
    kd_tree_seconds: float
    full_matrix_gain: float
    kd_tree_gain: float
    identical: bool


def made_up_descriptors(grid: tuple[int, int], channels: int, seed: int) -> Pairs:
    """Two maps (H, W, C) of unit descriptors: the second is the first, moved by a tenth of its width, and noise."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(*grid, channels, generator=generator)
    noise = torch.randn(*grid, channels, generator=generator)
    second = first.roll(grid[1] // 10, 1) + 0.8 * noise
    return F.normalize(first, dim=-1), F.normalize(second, dim=-1)


def full_matrix(first: torch.Tensor, second: torch.Tensor) -> Pairs:
    """Mutual nearest neighbours by the whole score matrix at once; flat indices."""
    scores = first.flatten(0, 1) @ second.flatten(0, 1).T
    there, back = scores.argmax(1), scores.argmax(0)
    index = torch.arange(len(there))
    mutual = back[there] == index
    return index[mutual], there[mutual]


def kd_tree(first: torch.Tensor, second: torch.Tensor) -> Pairs:
    """The same by two KD-trees: for unit vectors the nearest one has the largest dot product."""
    from scipy.spatial import cKDTree

    one, two = (x.flatten(0, 1).double().numpy() for x in (first, second))
    workers = torch.get_num_threads()
    there = torch.from_numpy(cKDTree(two).query(one, workers=workers)[1])
    back = torch.from_numpy(cKDTree(one).query(two, workers=workers)[1])
    index = torch.arange(len(there))
    mutual = back[there] == index
    return index[mutual], there[mutual]


@torch.inference_mode()
def measure_matching(
    grid: tuple[int, int] = (96, 128),
    channels: int = 24,
    rounds: int = 3,
    seed: int = 0,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> MatchingSpeed:
    """Our chunked matching, the full matrix and the KD-trees in turns, on the CPU; the KD-trees once (they take long).

    Raises JobFailed if the full matrix does not fit into memory.
    """
    maps = made_up_descriptors(grid, channels, seed)
    now = time.process_time if cpu_time else time.perf_counter

    def timed(way: Callable[..., Any], *extra: Any) -> tuple[float, Pairs]:
        start = now()
        result = way(*maps, *extra)
        return now() - start, result

    timed(reciprocal_matches, 1)
    own: list[float] = []
    full: list[float] = []
    try:
        for turn in range(rounds):
            report(f"matching, round {turn + 1} of {rounds}")
            seconds, (xy1, xy2) = timed(reciprocal_matches, 1)
            own.append(seconds)
            seconds, plain = timed(full_matrix)
            full.append(seconds)
    except RuntimeError as error:
        raise JobFailed(f"the full score matrix of {grid[0] * grid[1]} pixels does not fit: {error}") from error
    report("matching by KD-trees")
    slow, tree = timed(kd_tree)
    flat = xy1[:, 1] * grid[1] + xy1[:, 0], xy2[:, 1] * grid[1] + xy2[:, 0]
    same = all(torch.equal(a, b) for other in (plain, tree) for a, b in zip(flat, other))
    return MatchingSpeed(
        grid, channels, len(xy1), min(own), min(full), slow, min(full) / min(own), slow / min(own), same
    )
