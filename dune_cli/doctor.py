"""What works on this machine, what is missing, and what to do about it: the facts behind `dune doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dune_cli import __version__, runtime
from dune_cli.checkpoints import registry, weights_folder
from dune_cli.errors import DuneError

TIMEOUT_SECONDS = 180.0
OFTEN_BROKEN = ("open3d", "libusb_package")  # installed without the system's libraries
_SHOWN_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Package:
    """A package, what it is for, and the verbs that cannot work without it. `extra`: not part of a plain install."""

    module: str
    install: str
    purpose: str
    verbs: tuple[str, ...] = ()
    extra: str | None = None

    @property
    def cure(self) -> str:
        return f"pip install 'dune-cli[{self.extra}]'" if self.extra else f"pip install {self.install}"

    def trial(self, import_all: bool) -> str:
        """What `dune_cli.probe` is asked: to import it ("package"), or to look whether it is there ("installed")."""
        return "package" if import_all or self.verbs or self.module in OFTEN_BROKEN else "installed"


# Verbs that work without any weights -> what they import.
WEIGHT_FREE_VERBS = {
    "reconstruct": "dune_cli.commands.reconstruct",
    "reloc": "dune_cli.commands.reloc",
    "eval": "dune_cli.commands.evaluate",
    "bench": "dune_cli.commands.bench",
    "encode": "dune_cli.commands.encode",
    "weights": "dune_cli.commands.weights",
}
ALL = tuple(WEIGHT_FREE_VERBS)
PACKAGES = (
    Package("click", "click", "the command line", ALL),
    Package("numpy", "numpy", "arrays", ALL),
    Package("torch", "torch", "networks and matching", ALL),
    Package("safetensors", "safetensors", "weight files", ("weights",)),
    Package("cv2", "opencv-python", "features, poses, stereo", ("reconstruct", "reloc", "eval")),
    Package("PIL", "pillow", "reading photos", ("reconstruct", "reloc", "eval")),
    Package("pycolmap", "pycolmap", "bundle adjustment, COLMAP models", ("reconstruct",)),
    Package("scipy", "scipy", "identities over time, KD-trees to compare with", ("bench",)),
    Package("trimesh", "trimesh", "reading meshes (OBJ, GLB, PLY)"),
    Package("tqdm", "tqdm", "progress bars", ("reconstruct", "eval", "bench", "weights")),
    Package("timm", "timm", "encoders by timm name"),
    Package("open3d", "open3d", "meshing of point clouds"),
    Package("libusb_package", "libusb-package", "a library that open3d needs"),
    Package("smplx", "smplx", "SMPL-X bodies (non-commercial)"),
    Package("kornia", "kornia", "the matcher aliked-lightglue; the teacher aliked", extra="matchers"),
    Package("pi_heif", "pi-heif", "HEIC photos", extra="heic"),
)


def examine(timeout_seconds: float = TIMEOUT_SECONDS, import_all: bool = False) -> dict[str, Any]:
    """All facts, ready for JSON ("dune.doctor/1"). `ok` is false if a verb that needs no weights cannot work.

    Packages that no such verb needs are looked for but, without `import_all`, not imported: that takes seconds.
    """
    asked = {package.module: f"{package.trial(import_all)}:{package.module}" for package in PACKAGES}
    items = list(asked.values())
    items += [*(f"verb:{module}" for module in WEIGHT_FREE_VERBS.values()), "devices", "matchers"]
    answers = ask(items, timeout_seconds)
    packages = [_package_facts(package, answers[asked[package.module]]) for package in PACKAGES]
    verbs = [_verb_facts(verb, answers[f"verb:{module}"], packages) for verb, module in WEIGHT_FREE_VERBS.items()]
    matchers = answers["matchers"]
    return {
        "schema": "dune.doctor/1",
        "ok": all(verb["ok"] for verb in verbs),
        "versions": {"dune": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "packages": packages,
        "devices": {"cpu": _cpu(), **{key: value for key, value in answers["devices"].items() if key != "item"}},
        "weights": weights_facts(),
        "matchers": {"error": matchers.get("error"), "list": matchers.get("matchers", [])},
        "verbs": verbs,
    }


def ask(items: Sequence[str], timeout_seconds: float) -> dict[str, dict[str, Any]]:
    """The answer of `dune_cli.probe` to each item; one that hangs or kills its process is told as such.

    One process answers them all, which shares the slow imports, until an item takes it down; then another goes on.
    """
    answers: dict[str, dict[str, Any]] = {}
    pending = list(items)
    while pending:
        output, fate = _run([sys.executable, "-m", "dune_cli.probe", *pending], timeout_seconds)
        for line in output.splitlines():
            answer = json.loads(line)
            answers[answer["item"]] = answer
        pending = [item for item in pending if item not in answers]
        if pending:
            culprit = pending.pop(0)
            answers[culprit] = {"item": culprit, "ok": False, "error": fate}
    return answers


def _run(command: list[str], timeout_seconds: float) -> tuple[str, str]:
    try:
        result = subprocess.run(command, capture_output=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(), f"no answer within {timeout_seconds:g} s"
    if result.returncode < 0:
        return result.stdout.decode(), f"crashes the interpreter ({signal.Signals(-result.returncode).name})"
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return result.stdout.decode(), f"ends the interpreter ({lines[-1] if lines else f'exit code {result.returncode}'})"


def _package_facts(package: Package, answer: dict[str, Any]) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(package.install)
    except importlib.metadata.PackageNotFoundError:
        version = None
    error = answer.get("error")
    cure = None
    if not answer["ok"]:
        cure = package.cure if version is None else str(error).partition("run: ")[2] or package.cure
    return {
        "package": package.install,
        "version": version,
        "ok": answer["ok"],
        "installed": version is not None or answer["ok"],
        "optional": package.extra is not None,
        "purpose": package.purpose,
        "error": error,
        "cure": cure,
        "needed_by": list(package.verbs),
    }


def _verb_facts(verb: str, answer: dict[str, Any], packages: list[dict[str, Any]]) -> dict[str, Any]:
    broken = [package["package"] for package in packages if verb in package["needed_by"] and not package["ok"]]
    why = f"needs {', '.join(broken)}" if broken else answer.get("error")
    return {"verb": verb, "ok": not broken and answer["ok"], "why": why}


def weights_facts() -> dict[str, Any]:
    """The weights folder (can it be written to, how much room) and the published weights on this machine."""
    folder = weights_folder.weights_folder()
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    why = None
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=".dune-"):
            pass
    except OSError as error:
        why = f"{existing}: {error.strerror}; set DUNE_WEIGHTS to a folder you may write to"
    present = [found for entry in registry.all_entries() if (found := weights_folder.find_present(entry)) is not None]
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "writable": why is None,
        "why": why,
        "free_bytes": shutil.disk_usage(existing).free,
        "offline": weights_folder.is_offline(),
        "lock": _lock_error(folder),
        "present": [{"name": f.entry.name, "path": str(f.path), "origin": f.origin} for f in present if f.entry],
    }


def _lock_error(folder: Path) -> str | None:
    from dune_cli.checkpoints import weights_folder

    try:
        weights_folder.read_pins(folder)
    except DuneError as error:
        return str(error)
    return None


def _cpu() -> dict[str, Any]:
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = runtime.cpu_flags()
    return {
        "name": name or platform.machine(),
        "cores": cores,
        "flags": [flag for flag in _SHOWN_FLAGS if flag in flags],
        "fast_bfloat16": runtime.cpu_has_fast_bfloat16(),
    }
