"""Speed measurements of `dune bench`: networks against this machine's matrix products.

Networks have their real sizes and random weights, which hardly change their speed. All calls of a run are timed in
turn, for several rounds, and the fastest round of each counts, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dune_cli import runtime
from dune_cli.models import cpu_products
from dune_cli.models.dinov2_heads import Dinov2DptHead
from dune_cli.models.dpt import DptHead
from dune_cli.models.precision import set_trunk_dtype

SQUARE = 2048  # side of the largest matrix product
Call = Callable[[], Any]
M = TypeVar("M", bound=nn.Module)
Shape = tuple[int, int, int]  # (m, k, n) of a product of (m, k) and (k, n)


@dataclass(frozen=True)
class NetworkSpeed:
    """A network in one number type: seconds a pass, its operations, and the share of the float32 peak.

    share: may exceed 1 in bfloat16. parts: seconds inside each part, of one further pass.
    """

    network: str
    dtype: str
    seconds: float
    gflop: float
    gflop_per_second: float
    share: float
    parts: dict[str, float]


@dataclass(frozen=True)
class SpeedResult:
    """One run. peak: GFLOP/s by number type and shape of the product. fast_dtype: the number type that this processor
    is fast at ("float32" if no other). fast_gain: by network, float32 seconds / those of the fast type."""

    device: str
    threads: int
    clock: str
    input_hw: tuple[int, int]
    fast_dtype: str
    peak: dict[str, dict[str, float]]
    networks: tuple[NetworkSpeed, ...]
    fast_gain: dict[str, float]


class Stopwatch:
    """Seconds of calls: wall time, or with `cpu_time` processor time (for one thread on a busy machine)."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device, self._clock = device, time.process_time if cpu_time else time.perf_counter
        self.clock = "processor" if cpu_time else "wall"

    def now(self) -> float:
        """The time, after all work of a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._clock()

    def __call__(self, call: Call) -> float:
        start = self.now()
        call()
        return self.now() - start


class SpeedBench:
    """The settings of a run. report: called with messages about its progress.

    `dtypes`: the number types to compare by name, float32 first.
    """

    def __init__(self, device: str, rounds: int, cpu_time: bool, report: Callable[[str], None]) -> None:
        self.device, self.rounds, self.report = runtime.pick_device(device), rounds, report
        self.fast = runtime.pick_dtype("auto", self.device)
        self.dtypes = {_name(dtype): dtype for dtype in (torch.float32, self.fast)}
        self.watch = Stopwatch(self.device, cpu_time)

    @property
    def fast_dtype(self) -> str:
        """The name of the fast number type."""
        return _name(self.fast)

    def models(self, model: M) -> dict[str, M]:
        """The model in each number type."""
        copies = {name: set_trunk_dtype(copy.deepcopy(model), dtype) for name, dtype in list(self.dtypes.items())[1:]}
        return {"float32": model, **copies}

    def best_seconds(self, calls: Mapping[Any, Call]) -> dict[Any, float]:
        """The fastest round of each call, after one round as a warm-up."""
        best: dict[Any, float] = {}
        for number in range(self.rounds + 1):
            self.report(f"round {number} of {self.rounds}")
            for key, call in calls.items():
                seconds = self.watch(call)
                if number:
                    best[key] = min(seconds, best.get(key, seconds))
        return best

    def measure(
        self, calls: Mapping[tuple[str, str], Call], shapes: Sequence[Shape]
    ) -> tuple[dict[Any, float], dict[str, dict[str, float]]]:
        """(best seconds of the calls, peak): the calls are timed beside matrix products of `shapes` in each number
        type."""
        products = {
            (name, shape): product
            for name, dtype in sorted(self.dtypes.items())
            for shape, product in matrix_products(self.device, dtype, shapes).items()
        }
        best = self.best_seconds({**{key: call for key, (call, _) in products.items()}, **calls})
        peak: dict[str, dict[str, float]] = {}
        for (name, shape), (_, flop) in products.items():
            peak.setdefault(name, {})[shape] = flop / best[name, shape] / 1e9
        return best, peak

    def measure_networks(
        self,
        calls: Mapping[tuple[str, str], Call],
        shapes: Sequence[Shape],
        input_hw: tuple[int, int],
        parts: Callable[[str, Call], dict[str, float]] = lambda dtype, call: {},
    ) -> SpeedResult:
        """Times networks: calls by (network, number type). parts: seconds inside the parts of one call."""
        gflop = {network: count_flop(call) / 1e9 for (network, dtype), call in calls.items() if dtype == "float32"}
        best, peak = self.measure(calls, shapes)
        top = max(peak["float32"].values())
        networks = []
        for (network, dtype), call in calls.items():
            seconds = best[network, dtype]
            rate = gflop[network] / seconds
            row = NetworkSpeed(network, dtype, seconds, gflop[network], rate, rate / top, parts(dtype, call))
            networks.append(row)
        gain = {}
        if self.fast != torch.float32:
            gain = {name: best[name, "float32"] / best[name, self.fast_dtype] for name in gflop}
        return SpeedResult(
            device=str(self.device),
            threads=torch.get_num_threads(),
            clock=self.watch.clock,
            input_hw=input_hw,
            fast_dtype=self.fast_dtype,
            peak=peak,
            networks=tuple(networks),
            fast_gain=gain,
        )


def matrix_products(device: torch.device, dtype: torch.dtype, shapes: Sequence[Shape]) -> dict[str, tuple[Call, float]]:
    """Linear layers of (m, k, n), repeated to as many operations as a square one: shape as text -> (call, FLOP)."""
    products: dict[str, tuple[Call, float]] = {}
    for m, k, n in shapes:
        x, w = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
        repeats = max(1, round(SQUARE**3 / (m * k * n)))
        call = lambda x=x, w=w, repeats=repeats: [F.linear(x, w) for _ in range(repeats)]  # noqa: E731
        products[f"{m}x{k}x{n}"] = call, 2.0 * m * k * n * repeats
    return products


def mlp_shapes(tokens: int, width: int, hidden: int) -> tuple[Shape, ...]:
    """A large square product and those of a transformer's MLP."""
    return (SQUARE, SQUARE, SQUARE), (tokens, width, hidden), (tokens, hidden, width)


def _linear_flops(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Of a product of x (..., K) and weight (N, K)."""
    return 2 * math.prod(x) * weight[0]


def count_flop(call: Call) -> float:
    """Multiplications and additions of a call's matrix products, convolutions and attentions."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)}
    if cpu_products.prefers_onednn():
        mapping[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return float(counter.get_total_flops())


def fill_random(model: M) -> M:
    """A model on the meta device with small random weights on the CPU, for inference."""
    model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.uniform_(-0.03, 0.03, generator=generator)
    for part in model.modules():
        if isinstance(part, (DptHead, Dinov2DptHead)):
            part.to(memory_format=torch.channels_last)
    return model


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
