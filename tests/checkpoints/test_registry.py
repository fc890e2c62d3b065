"""The registry of published weights holds together, and errors in it are named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dune_cli.checkpoints import registry
from dune_cli.checkpoints.registry import Entry
from dune_cli.errors import DuneError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads((registry.folder() / "registry.json").read_text(encoding="utf-8"))


def test_the_published_files_of_the_specs_are_in_it() -> None:
    """docs/models/weights.md's table and docs/models/dinov2-heads.md's file names."""
    files = {entry.name: entry.file for entry in registry.all_entries()}
    assert files["dune-vitb14-448-paper"] == "dune_vitbase14_448_paper.pth"
    assert files["dune-vits14-336"] == "dune_vitsmall14_336.pth"
    assert files["dunemast3r-vits"] == "dunemast3r_cvpr25_vitsmall.pth"
    assert files["mast3r-vitl"] == "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric.pth"
    assert files["multihmr-896-l"] == "multiHMR_896_L.pt"
    assert files["dinov2-vitl14-reg"] == "dinov2_vitl14_reg4_pretrain.pth"
    assert files["dinov2-vitb14-kitti-dpt"] == "dinov2_vitb14_kitti_dpt_head.pth"
    assert files["dinov2-vits14-reg-linear4"] == "dinov2_vits14_reg4_linear4_head.pth"
    small = [name for name in files if name.startswith("dinov2-vits14-")]
    assert len(small) == 15  # the register backbone, 4 ImageNet heads, 6 depth heads, 4 segmentation heads


def test_addresses_are_https_and_end_with_the_file_name() -> None:
    for entry in registry.all_entries():
        for url in entry.urls:
            hub = f"/{Path(entry.file).stem}/resolve/main/model.safetensors"  # where every file has one name
            assert url.startswith("https://") and url.endswith((f"/{entry.file}", hub)), entry.name
        if entry.package is not None:
            assert entry.package.member.endswith(f"/{entry.file}")
            assert entry.sha256 is not None and entry.size_is_exact, entry.name
        if entry.script is not None:
            assert (ROOT / entry.script.script).is_file(), entry.name


def test_names_files_and_hashes_are_unambiguous() -> None:
    entries = registry.all_entries()
    for names in ([e.name for e in entries], [e.file for e in entries], [e.converted_file for e in entries]):
        assert len(set(names)) == len(names)
    assert all(e.sha256 is None or (len(e.sha256) == 64 and int(e.sha256, 16)) for e in entries)
    assert all(e.size_bytes > 0 and e.licence and e.licence_url.startswith("https://") for e in entries)


def test_every_licence_of_the_registry_is_explained(document: dict[str, Any]) -> None:
    text = (registry.folder() / "LICENSES.md").read_text(encoding="utf-8")
    for licence in document["licences"].values():
        assert licence["url"] in text, licence["short"]


def test_heads_need_their_own_backbone() -> None:
    for entry in registry.all_entries():
        if entry.kind == "head":
            backbone = registry.find(entry.needs[0])
            assert backbone is not None and backbone.kind == "encoder"
            if entry.bundled:
                continue
            stem = backbone.file.removesuffix("_pretrain.pth")
            assert entry.file.startswith(f"{stem}_"), entry.name
            assert ("_reg4_" in entry.file) == backbone.name.endswith("-reg")


def test_found_by_name_by_file_and_by_converted_file() -> None:
    entry = registry.find("mast3r-vitl")
    assert isinstance(entry, Entry) and entry.size == "about 2.75 GB" and not entry.commercial_use
    assert registry.find_file(entry.file) is entry is registry.find_file("mast3r-vitl.safetensors")
    assert registry.find("mast3r") is None and registry.find_file("mast3r") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha512": "0"}, r"dune-\S+ is not well-formed .*sha512"),
        ({"kind": "toy"}, "has kind 'toy'; allowed: encoder"),
        ({"licence": "none"}, "is not well-formed .*none"),
        ({"needs": ["nothing"]}, "needs nothing, which is not in it"),
        ({"name": "xfeat"}, "xfeat appears twice"),
        ({"source": {}}, "either urls or a package or a script"),
        ({"source": {"script": "a.py", "index": "npm"}}, "is not well-formed .*download_bytes"),
        ({"source": {"package": "a", "version": "1"}}, "is not well-formed .*member"),
    ],
)
def test_mistakes_in_it_are_named(document: dict[str, Any], change: dict[str, Any], message: str) -> None:
    wrong = copy.deepcopy(document)
    wrong["weights"][0] |= change
    with pytest.raises(DuneError, match=message):
        registry.parse(wrong)


def test_an_unknown_schema_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(DuneError, match="unknown registry schema"):
        registry.parse(document | {"schema": "dune.weights/9"})


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_738_091, "2.74 MB"), (999_600_000, "1 GB"), (10**15, "1e+03 TB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert registry.format_bytes(count) == text
