"""What works on this machine, what is missing, and what to do about it: the facts behind `dune doctor`.

Packages may be broken in ways that crash or block the interpreter. So they are imported by other processes:
`python -m dune_cli.doctor ITEM...` prints one JSON object per line, in the order of the items: `package:MODULE` (is
imported), `library:MODULE` (its shared library is loaded, which is what fails, in a tenth of the time),
`installed:MODULE` (is only searched for), `verb:MODULE`, `devices`, `matchers`. Whatever else a package prints goes to
standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dune_cli import __version__, optional, runtime
from dune_cli.errors import DuneError, PackageMissing

TIMEOUT_SECONDS = 180.0
VERBS = "dune_cli.commands"
EVERYWHERE = ("click",)  # what every verb needs
OFTEN_BROKEN = {"open3d": "library", "libusb_package": "package"}  # installed without the system's libraries
PLAIN_PYTHON = ("trimesh", "tqdm", "tomlkit")  # nothing to fail when they start, and trimesh takes half a second
_SHOWN_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Package:
    """A package, what it is for, and what does not work without it. `extra`: the extra of dune-cli that brings it, if a
    plain install does not."""

    module: str
    install: str
    purpose: str
    without: str = ""
    extra: str | None = None

    @property
    def cure(self) -> str:
        return f"pip install 'dune-cli[{self.extra}]'" if self.extra else f"pip install {self.install}"


PACKAGES = (
    Package("click", "click", "the command line", "nothing runs"),
    Package("numpy", "numpy", "arrays", "nothing runs"),
    Package("torch", "torch", "networks and matching", "no network runs; matching by sift does"),
    Package("safetensors", "safetensors", "weight files", "no network runs"),
    Package("cv2", "opencv-python", "features, poses, stereo", "nothing but encode, classify and segment runs"),
    Package("PIL", "pillow", "reading photos", "no photo is read"),
    Package("pycolmap", "pycolmap", "bundle adjustment, COLMAP models", "reconstruct and maps do not run"),
    Package("scipy", "scipy", "identities over time, KD-trees", "reconstruct, reloc and human do not run"),
    Package("trimesh", "trimesh", "reading meshes (OBJ, GLB, PLY)", "render, view and eval people read no meshes"),
    Package("tqdm", "tqdm", "progress bars", "no progress is shown on a terminal, and most commands stop"),
    Package("tomlkit", "tomlkit", "dune config", "dune config set and unset do not run"),
    Package("yaml", "pyyaml", "calibrations of OpenCV and Kalibr (YAML)", "--intrinsics reads no YAML"),
    Package("timm", "timm", "encoders by timm name", "encoders by timm name are not made"),
    Package("open3d", "open3d", "meshing of point clouds", "reconstruct --mesh poisson and tsdf do not run"),
    Package("libusb_package", "libusb-package", "a library that open3d needs", "open3d may not start"),
    Package("smplx", "smplx", "SMPL-X bodies (non-commercial)", "Multi-HMR on SMPL-X does not run"),
    Package("pi_heif", "pi-heif", "HEIC photos", "HEIC photos are not read"),
    Package("pyarrow", "pyarrow", "large folders (--shards)", "--shards does not run", extra="large"),
    Package("ray", "ray", "--engine ray of dune reconstruct and --shards", "one machine only", extra="ray"),
    Package("faiss", "faiss-cpu", "dune search --engine faiss", "search compares with every photo", extra="search"),
    Package("onnx", "onnx", "dune export", "no .onnx file is written", extra="export"),
    Package("onnxscript", "onnxscript", "dune export", "no .onnx file is written", extra="export"),
    Package("onnxruntime", "onnxruntime", "dune export, --runtime onnx", "--runtime takes torch only", extra="export"),
    Package("huggingface_hub", "huggingface-hub", "weights of the hub (hf://)", "no hf:// runs", extra="hub"),
    Package("viser", "viser", "dune view, dune app", "neither runs; dune render does", extra="view"),
    Package("flask", "flask", "dune app", "dune app does not run", extra="app"),
    Package("pyproj", "pyproj", "coordinate systems (dune reconstruct --crs)", "--crs does not run", extra="geo"),
    Package("laspy", "laspy", "LAS and LAZ files", "no LAS or LAZ is written or read", extra="geo"),
)


def examine(
    verbs: Mapping[str, Sequence[str]], timeout_seconds: float = TIMEOUT_SECONDS, import_all: bool = False
) -> dict[str, Any]:
    """All facts, ready for JSON ("dune.doctor/1"). `ok` is false if a verb that needs no weights cannot work.

    `verbs`: each verb that works without weights, and the modules it needs. Packages that no such verb needs are
    searched for but, without `import_all`, not imported: that takes seconds.
    """
    needed_by = {
        package.module: [verb for verb in verbs if package.module in (*EVERYWHERE, *verbs[verb])]
        for package in PACKAGES
    }
    asked = {}
    for module, users in needed_by.items():
        how = "package" if users and module not in PLAIN_PYTHON else OFTEN_BROKEN.get(module, "installed")
        how = "package" if import_all else how
        asked[module] = f"{how}:{module}"
    verb_items = {verb: f"verb:{VERBS}.{verb}" for verb in verbs}
    answers = ask([*asked.values(), *verb_items.values(), "devices", "matchers"], timeout_seconds)
    packages = [
        _package_facts(package, needed_by[package.module], answers[asked[package.module]]) for package in PACKAGES
    ]
    rows = [_verb_facts(verb, answers[item], packages) for verb, item in verb_items.items()]
    matchers = answers["matchers"]
    return {
        "schema": "dune.doctor/1",
        "ok": all(row["ok"] for row in rows),
        "versions": {"dune": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "packages": packages,
        "devices": {"cpu": _cpu(), **{key: value for key, value in answers["devices"].items() if key != "item"}},
        "weights": weights_facts(),
        "matchers": {"error": matchers.get("error"), "list": matchers.get("matchers", [])},
        "verbs": rows,
    }


def ask(items: Sequence[str], timeout_seconds: float) -> dict[str, dict[str, Any]]:
    """The answer of `probe` to each item; an item that hangs or kills its process is reported as such.

    One process answers them all, which shares the slow imports, until an item takes it down; then another goes on.
    """
    answers: dict[str, dict[str, Any]] = {}
    pending = list(items)
    while pending:
        output, fate = _run([sys.executable, "-m", "dune_cli.doctor", *pending], timeout_seconds)
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


def _package_facts(package: Package, needed_by: list[str], answer: dict[str, Any]) -> dict[str, Any]:
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
        "without": package.without or f"no {package.purpose}",
        "error": error,
        "cure": cure,
        "needed_by": needed_by,
    }


def _verb_facts(verb: str, answer: dict[str, Any], packages: list[dict[str, Any]]) -> dict[str, Any]:
    broken = [package["package"] for package in packages if verb in package["needed_by"] and not package["ok"]]
    why = f"needs {', '.join(broken)}" if broken else answer.get("error")
    return {"verb": verb, "ok": not broken and answer["ok"], "why": why}


def weights_facts() -> dict[str, Any]:
    """The weights folder (can it be written to, how much room) and the published weights on this machine."""
    from dune_cli.checkpoints import registry, weights_folder

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


def probe(item: str) -> dict[str, Any]:
    """What became of one item; never raises for a failure of what is probed."""
    kind, _, name = item.partition(":")
    try:
        if kind == "package" or (kind == "library" and not _load_library(name)):
            _import(name)
        elif kind == "installed" and importlib.util.find_spec(name) is None:
            raise PackageMissing(f"the package {name} is not installed")
        elif kind == "verb":
            importlib.import_module(name)
        more = _devices() if kind == "devices" else _matchers() if kind == "matchers" else {}
        return {"ok": True, **more}
    except DuneError as error:
        return {"ok": False, "error": " ".join(str(error).split())}
    except Exception as error:  # the point is to learn what a foreign package raises
        lines = str(error).strip().splitlines()
        return {"ok": False, "error": f"{type(error).__name__}: {lines[0] if lines else ''}"}


def _load_library(module: str) -> bool:
    """Loads the shared library of open3d, which is most of it; False where it has none, as other versions may."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return False
    files = sorted(Path(spec.origin).parent.glob("cpu/pybind*.so"))
    if not files:
        return False
    try:
        optional.load_libusb("meshing")
        ctypes.CDLL(os.fspath(files[0]))
    except OSError as error:
        raise optional.open3d_error("meshing", error) from error
    return True


def _import(module: str) -> None:
    if module == "open3d":
        optional.import_open3d("meshing")
    else:
        optional.require(module, "dune")


def _devices() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        raise PackageMissing(f"torch does not start ({error})") from error
    cards = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        cards.append({"name": card.name, "memory_bytes": card.total_memory, "bfloat16": torch.cuda.is_bf16_supported()})
    device = runtime.pick_device("auto")
    dtype = str(runtime.pick_dtype("auto", device)).removeprefix("torch.")
    return {
        "torch_threads": torch.get_num_threads(),
        "cuda": cards,
        "mps": torch.backends.mps.is_available(),
        "auto": {"device": str(device), "dtype": dtype},
    }


def _matchers() -> dict[str, Any]:
    from dune_cli.matchers import registry

    found = []
    for name in registry.names():
        state = registry.availability(name)
        found.append({"name": name, "ready": state.ready, "why": state.why, "cure": state.cure})
    return {"matchers": found}


def main(items: list[str]) -> None:
    """Probes and prints; standard output carries nothing but the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr), answers:
        for item in items:
            print(json.dumps({"item": item, **probe(item)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
