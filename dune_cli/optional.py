"""Packages that only some commands need: imported where they are used, and named with their cure when they fail."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from types import ModuleType

from dune_cli import signals
from dune_cli.errors import PackageMissing

# module -> the name to install, where the two differ
INSTALL_NAMES = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "pi_heif": "pi-heif",
    "libusb_package": "libusb-package",
    "faiss": "faiss-cpu",
    "huggingface_hub": "huggingface-hub",
}


def require(module: str, why: str, extra: str | None = None) -> ModuleType:
    """Imports `module`, or raises PackageMissing: what it is needed for (`why`) and how to get it.

    `extra`: the extra of dune-cli that brings the package, if a plain install does not.
    """
    top = module.partition(".")[0]
    package = INSTALL_NAMES.get(top, top)
    cure = f"pip install 'dune-cli[{extra}]'" if extra else f"pip install {package}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == top:
            raise PackageMissing(f"{why} needs the package {package}, which is not installed; run: {cure}") from error
        raise PackageMissing(
            f"{why} needs the package {package}, which is installed but lacks {error.name}; "
            f"run: pip install {error.name}"
        ) from error
    except (ImportError, OSError) as error:
        raise PackageMissing(
            f"{why} needs the package {package}, which is installed but does not start ({_first_line(error)}); "
            f"run: pip install --force-reinstall {package}"
        ) from error


def check_installed(module: str, why: str) -> None:
    """PackageMissing, as `require`, for a package that is not there; it is not imported."""
    if importlib.util.find_spec(module) is None:
        require(module, why)


def import_pycolmap(why: str) -> ModuleType:
    """Imports pycolmap. The logging library inside it takes over SIGTERM, prints a stack and ends the process; the
    handler that was there is put back, so that a command unwinds.

    Raises PackageMissing.
    """
    with signals.kept():
        return require("pycolmap", why)


def import_faiss(why: str) -> ModuleType:
    """Imports faiss, which the extra "search" brings. Raises PackageMissing."""
    return require("faiss", why, extra="search")


def import_viser(why: str) -> ModuleType:
    """Imports viser, which the extra "view" brings, without its banners on standard output. Raises PackageMissing."""
    viser = require("viser", why, extra="view")
    require("rich", why, extra="view").reconfigure(quiet=True)
    return viser


def import_torchvision(why: str) -> ModuleType:
    """Imports torchvision. Raises PackageMissing, also where it is of another build than torch: CUDA's beside the CPU's
    loads, and then finds its own operators missing."""
    try:
        return require("torchvision", why)
    except RuntimeError as error:
        raise PackageMissing(
            f"{why} needs a torchvision of the same build as torch, and this one does not fit it "
            f"({_first_line(error)}); run: pip install --force-reinstall torch torchvision, with the --index-url "
            "of the README where CUDA is not wanted"
        ) from error


def import_timm(why: str) -> ModuleType:
    """Imports timm, which imports torchvision. Raises PackageMissing as `import_torchvision`."""
    import_torchvision(why)
    return require("timm", why)


def import_open3d(why: str) -> ModuleType:
    """Imports open3d after giving it the libusb that it expects from the system and that many machines lack.

    Raises PackageMissing naming what is missing and what `why` (the purpose) takes.
    """
    load_libusb(why)
    try:
        return require("open3d", why)
    except PackageMissing as error:
        if "libusb" not in str(error):
            raise
        raise open3d_error(why, error) from error


def load_libusb(why: str) -> None:
    """Loads the libusb of the package libusb-package, where that is installed. Raises PackageMissing."""
    if importlib.util.find_spec("libusb_package") is not None:
        path = require("libusb_package", why).get_library_path()
        if path is not None:
            ctypes.CDLL(os.fspath(path), mode=ctypes.RTLD_GLOBAL)


def open3d_error(why: str, error: BaseException) -> PackageMissing:
    """What to do about an open3d that does not start."""
    if "libusb" in str(error):
        return PackageMissing(
            f"{why} needs open3d, which is installed but finds no libusb-1.0.so.0; run: pip install libusb-package "
            "(or, as root: apt install libusb-1.0-0)"
        )
    return PackageMissing(
        f"{why} needs the package open3d, which is installed but does not start ({_first_line(error)}); run: pip "
        "install --force-reinstall open3d"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
