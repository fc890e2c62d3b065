"""Plug-ins are found by folder and file name, without being imported. The examples of docs/adding work as written."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dune_cli.teachers
from dune_cli import load_encoder, plugins
from dune_cli.checkpoints import inventory, weights_folder
from dune_cli.cli import main
from dune_cli.matchers.registry import load_matcher
from dune_cli.teachers.registry import load_teacher
from support.published_files import dinov2_manifest, make_state_dict

ADDING = Path(__file__).resolve().parent.parent / "docs" / "adding"
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
    assert plugins.summary(TEACHERS, acme, "load") == "X = 3"
    assert plugins.summary(TEACHERS, acme, "other") == ""
    with pytest.raises(KeyError, match="acme-net has no constant SIZE"):
        plugins.constant(TEACHERS, acme, "SIZE")
    with pytest.raises(ValueError, match="malformed"):
        plugins.constant(TEACHERS, acme, "LIMIT")
    with pytest.raises(KeyError, match="no plug-in nothing"):
        plugins.constant(TEACHERS, "nothing", "SIZES")


def test_a_plug_in_is_imported_by_its_name() -> None:
    assert plugins.load(TEACHERS, "efficientnet-lite2").__name__ == f"{TEACHERS}.efficientnet_lite2"


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """`add(page)` writes the example of docs/adding/PAGE.md into a folder on its package's path; returns its name."""
    modules = set(sys.modules)

    def write(page: str) -> str:
        text = (ADDING / f"{page}.md").read_text()
        code = re.search(r"```python\n(# (dune_cli/\S+)/(\w+)\.py\n.*?)```", text, re.DOTALL)
        assert code is not None
        folder = tmp_path / page
        folder.mkdir()
        (folder / f"{code[3]}.py").write_text(code[1])
        package = importlib.import_module(code[2].replace("/", "."))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{code[3]}", raising=False)
        return code[3]

    yield write
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def dune(*words: Any) -> str:
    """What `dune WORDS` prints."""
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_teacher_is_one_file(add: Callable[[str], str]) -> None:
    assert add("teacher") == "mean_colour"
    images = torch.rand(2, 3, 32, 48)
    tokens = load_teacher("mean-colour", torch.device("cpu"))(images, (2, 3))["patch"]
    torch.testing.assert_close(tokens[:, 0], images[..., :16, :16].mean((2, 3)))


def test_a_matcher_is_one_file(add: Callable[[str], str]) -> None:
    assert add("matcher") == "orb_brute_force"
    matcher = load_matcher("orb-brute-force")
    rgb = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    matches = matcher.match(rgb, np.roll(rgb, 24, 1))
    assert np.median(np.abs(matches.points2 - matches.points1 - (24, 0))) < 0.5
    features = [matcher.unpack(matcher.pack(matcher.extract(image))) for image in (rgb, np.roll(rgb, 24, 1))]
    assert np.allclose(matcher.match_features(*features).points1, matches.points1, atol=1e-3)


def test_a_layout_of_weights_is_one_file(add: Callable[[str], str], tmp_path: Path) -> None:
    assert add("weight-layout") == "acme_vit"
    state = make_state_dict(dinov2_manifest(64, 2, 4), 1)
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"acme": {f"trunk.{key}": value for key, value in state.items()}}, tmp_path / "acme.pth")
    image = torch.rand(1, 3, 28, 42)
    expected = load_encoder(tmp_path / "plain.pth", device="cpu")(image).patches
    assert torch.equal(load_encoder(tmp_path / "acme.pth", device="cpu")(image).patches, expected)
    located = weights_folder.locate(tmp_path / "acme.pth")
    assert inventory.describe_file(located)["layout"] == "acme-vit"
    inventory.convert(located, tmp_path / "acme.safetensors")
    assert torch.equal(load_encoder(tmp_path / "acme.safetensors", device="cpu")(image).patches, expected)


def test_an_output_format_is_one_file(add: Callable[[str], str], example_photos: Path, tmp_path: Path) -> None:
    assert add("output-format") == "xyz"
    left, right, out = (
        example_photos / "motorcycle_left.png",
        example_photos / "motorcycle_right.png",
        tmp_path / "a.xyz",
    )
    dune("reconstruct", left, right, "--matcher", "sift", "-o", out)
    assert np.loadtxt(out).shape[1] == 6


def test_a_verb_is_one_file(add: Callable[[str], str], example_photos: Path) -> None:
    assert add("verb") == "sharpness"
    assert re.search(r"sharpness +Rank photos by sharpness\.", dune("--help"))
    assert "Number of photos to print" in dune("sharpness", "--help")
    (line,) = dune(
        "sharpness", example_photos / "coffee.png", example_photos / "astronaut.png", "--top", 1
    ).splitlines()
    assert line.endswith("coffee.png")


def test_a_benchmark_is_one_file(add: Callable[[str], str], example_photos: Path, tmp_path: Path) -> None:
    assert add("benchmark") == "half_size"
    assert re.search(r"half-size +Evaluate matches of photos", dune("eval", "--help"))
    out = tmp_path / "scores.json"
    table = dune("eval", "half-size", example_photos / "coffee.png", "--matchers", "sift", "-o", out)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["within_2px"] > 0.9 > 0.1 > row["control"] and f"{row['within_2px']:.3f}" in table


def test_every_page_on_adding_has_an_example_that_is_tested() -> None:
    tested = set(re.findall(r"add\(\"([a-z-]+)\"\)", Path(__file__).read_text()))
    assert {page.stem for page in ADDING.glob("*.md")} == tested
