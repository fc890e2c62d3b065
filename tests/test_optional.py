"""Missing and broken packages are named with their cure."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dune_cli import optional
from dune_cli.errors import PackageMissing


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules that come before the installed ones, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("open3d", "libusb_package")]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in ("open3d", "libusb_package"):
        sys.modules.pop(name, None)


def test_a_present_package_is_returned() -> None:
    assert optional.require("json", "this test") is sys.modules["json"]


@pytest.mark.parametrize(
    ("extra", "cure"), [(None, "pip install no-such-thing"), ("heic", r"pip install 'dune-cli\[heic\]'")]
)
def test_a_missing_package_names_the_need_and_the_cure(
    extra: str | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(optional.INSTALL_NAMES, "no_such_thing", "no-such-thing")
    with pytest.raises(PackageMissing, match=f"reading HEIC needs the package no-such-thing, .*run: {cure}") as error:
        optional.require("no_such_thing", "reading HEIC", extra)
    assert error.value.exit_code == 4


def test_a_part_of_a_missing_package_is_told_as_missing() -> None:
    with pytest.raises(PackageMissing, match=r"the package no_such, which is not installed; .*dune-cli\[teachers\]"):
        optional.require("no_such.feature", "the teacher", extra="teachers")


def test_a_package_that_lacks_another_names_that_one(fakes: Path) -> None:
    (fakes / "half_there.py").write_text("import no_such_dependency")
    with pytest.raises(PackageMissing, match=r"lacks no_such_dependency; run: pip install no_such_dependency"):
        optional.require("half_there", "this")


@pytest.mark.parametrize("failure", ["ImportError('libGL.so.1: no such file')", "OSError('libGL.so.1: no such file')"])
def test_a_broken_package_gives_its_reason(fakes: Path, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (fakes / "broken_one.py").write_text(f"raise {failure}")
    with pytest.raises(PackageMissing, match=r"does not start \(libGL\.so\.1: no such file\).*force-reinstall"):
        optional.require("broken_one", "this")
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)


def test_a_torchvision_of_another_build_is_told_what_to_install(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (fakes / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(PackageMissing, match=r"same build as torch.*force-reinstall torch torchvision"):
        optional.import_timm("this")


def test_open3d_without_libusb_is_told_what_to_install(fakes: Path) -> None:
    (fakes / "libusb_package.py").write_text("def get_library_path(): return None")
    (fakes / "open3d.py").write_text("raise OSError('libusb-1.0.so.0: cannot open shared object file')")
    with pytest.raises(
        PackageMissing, match=r"meshing needs open3d.*no libusb-1\.0\.so\.0; run: pip install libusb-package"
    ):
        optional.import_open3d("meshing")


def test_open3d_gets_its_libusb_before_it_is_imported(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fakes / "libusb_package.py").write_text("def get_library_path(): return '/somewhere/libusb.so'")
    (fakes / "open3d.py").write_text("import sys; loaded = list(sys.test_loaded)")
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(sys, "test_loaded", loaded, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: loaded.append((path, mode)))
    assert optional.import_open3d("meshing").loaded == [("/somewhere/libusb.so", ctypes.RTLD_GLOBAL)]


def test_absent_open3d_is_told_as_absent(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(PackageMissing, match="open3d"):
        optional.import_open3d("meshing")
