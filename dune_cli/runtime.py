"""Device and number type: what `--device` and `--dtype` mean on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dune_cli.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux lists them; empty where /proc/cpuinfo is absent."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def cpu_has_fast_bfloat16() -> bool:
    """True with AVX512-BF16 or AMX, where bfloat16 matrix products were measured 3-3.5 times as fast as float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def check_device(name: str) -> None:
    """UserError for what is no device's name anywhere. Imports nothing."""
    kind, separator, number = name.partition(":")
    if kind not in DEVICES or (separator and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"unknown device {name!r}; allowed: {', '.join(DEVICES)}, cuda:N")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes cuda, then mps, then cpu. Raises UserError for a device that this machine does not have."""
    check_device(name)
    import torch

    kind = name.partition(":")[0]
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next(k for k in ("cuda", "mps", "cpu") if have[k]))
    if not have[kind]:
        raise UserError(
            f"device {name!r} is not available here; use --device auto or cpu ('dune doctor' lists devices)"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of the trunk's matrix products. `auto`: bfloat16 where `device` is fast at it, else float32."""
    import torch

    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; allowed: {', '.join(DTYPES)}")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and cpu_has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32
