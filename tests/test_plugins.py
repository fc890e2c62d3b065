"""Plug-ins are found by folder and file name, without being imported."""

from __future__ import annotations

from pathlib import Path

import pytest

import dune_cli.teachers
from dune_cli import plugins

TEACHERS = "dune_cli.teachers"
ACME = '''"""A teacher."""
import no_such_package

DEFAULT_WEIGHTS: str | None = "acme-weights"  # a comment
SIZES = (
    224,
    # larger ones follow
    448,
)
KIND = "dense"

LIMIT = SIZES[0] + 1


def load(argument, device, dtype):
    """X = 3"""
'''


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A teacher `acme-net` in a folder of its own, on the package's path, with a helper beside it."""
    (tmp_path / "acme_net.py").write_text(ACME)
    (tmp_path / "acme_helper.py").write_text("def assist(load): ...\n")
    (tmp_path / "_acme.py").write_text("def load(): ...\n")
    monkeypatch.setattr(dune_cli.teachers, "__path__", [*dune_cli.teachers.__path__, str(tmp_path)])
    return "acme-net"


def test_a_file_that_defines_the_function_is_a_plug_in(acme: str) -> None:
    found = plugins.names(TEACHERS, "load")
    assert acme in found and "dinov2" in found
    assert not {"acme-helper", "-acme", "teacher"} & set(found)
    assert found == sorted(found)


def test_constants_are_read_without_importing_the_file(acme: str) -> None:
    assert plugins.constant(TEACHERS, acme, "DEFAULT_WEIGHTS") == "acme-weights"
    assert plugins.constant(TEACHERS, acme, "SIZES") == (224, 448)
    assert plugins.constant(TEACHERS, acme, "KIND") == "dense"
    assert plugins.constant(TEACHERS, acme, "X", None) is None
    with pytest.raises(KeyError, match="acme-net has no constant SIZE"):
        plugins.constant(TEACHERS, acme, "SIZE")
    with pytest.raises(ValueError, match="malformed"):
        plugins.constant(TEACHERS, acme, "LIMIT")
    with pytest.raises(KeyError, match="no plug-in nothing"):
        plugins.constant(TEACHERS, "nothing", "SIZES")


def test_a_plug_in_is_imported_by_its_name() -> None:
    assert plugins.load(TEACHERS, "efficientnet-lite2").__name__ == f"{TEACHERS}.efficientnet_lite2"
