"""Weight files: what published ones hold is read, everything else is refused with its name and never run."""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import os
import pathlib
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dune_cli.checkpoints import weight_files, weights_folder
from dune_cli.checkpoints.weight_files import read_located, read_weights, write_safetensors
from dune_cli.errors import CheckpointError

BOTH_FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(tree: object, path: Path, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def published() -> dict[str, Any]:
    """A checkpoint with everything that published ones are known to hold."""
    arguments = argparse.Namespace(
        image_size=336,
        enc_args={"arch": "vit_small"},
        nested=argparse.Namespace(teachers=["a", "b"]),
        lr_schedule=np.linspace(0, 1, 7),
        half=np.linspace(0, 1, 7, dtype=np.float16),
        momentum=np.float64(0.5),
        step=np.int64(3),
        flag=np.bool_(True),
        name=np.str_("x"),
        names=np.array(["abc", "d"]),
        objects=np.array(["a", None], dtype=object),
        output_dir=pathlib.PurePosixPath("/out"),
        counts=collections.defaultdict(list, {"a": [1]}),
        dtype=torch.float16,
        device=torch.device("cpu"),
        size=torch.Size([2, 3]),
        bits={1, 2},
        raw=b"\x00\xff",
        z=1j,
    )
    model = collections.OrderedDict(weight=torch.arange(6.0).reshape(2, 3), half=torch.ones(2, dtype=torch.bfloat16))
    return {"model": model, "args": arguments, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "iter": 12}


@BOTH_FORMATS
def test_a_published_checkpoint_is_read_whole(tmp_path: Path, zipped: bool) -> None:
    tree = published()
    path = save(tree, tmp_path / "a.pth", zipped)
    file = read_weights(path)
    assert (file.format, file.metadata) == ("torch", {})
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(file.checkpoint) == list(tree)
    assert torch.equal(file.checkpoint["model"]["weight"], tree["model"]["weight"])
    assert file.checkpoint["model"]["half"].dtype == torch.bfloat16
    got, want = vars(file.checkpoint["args"]), vars(tree["args"])
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@BOTH_FORMATS
def test_names_of_the_other_numpy_and_python_are_read(tmp_path: Path, zipped: bool) -> None:
    """numpy 1 wrote numpy.core, numpy 2 writes numpy._core; Python 3.13 writes pathlib._local."""

    def other_numpy(data: bytes) -> bytes:
        old, new = sorted((b"numpy._core", b"numpy.core"), key=lambda name: name not in data)
        assert old in data and new not in data
        return data.replace(old, new)

    tree = {"a": np.arange(3.0), "s": np.float32(2), "p": pathlib.PurePosixPath("/x")}
    path = save(tree, tmp_path / "a.pth", zipped)
    if not zipped:
        path.write_bytes(other_numpy(path.read_bytes()))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if name.endswith("data.pkl"):
                    assert b"cpathlib\nPurePosixPath\n" in content
                    content = other_numpy(content).replace(b"cpathlib\nPure", b"cpathlib._local\n")
                archive.writestr(name, content)
    read = read_weights(path).checkpoint
    np.testing.assert_array_equal(read["a"], tree["a"])
    assert read["s"] == 2 and str(read["p"]) == "/x"


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def hostile(marker: Path) -> dict[str, tuple[object, str]]:
    """Payloads that would create `marker` if they ran, and the name that must be refused."""
    command = f"touch {marker}"
    system = Call(os.system, command)
    return {
        "os.system": (system, f"{os.name}.system"),
        "eval": (Call(eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        "exec": (Call(exec, f"open({str(marker)!r}, 'w')"), "builtins.exec"),
        "open": (Call(open, str(marker), "w"), "io.open"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "builtins.getattr"),
        "torch.save": (Call(torch.save, {}, str(marker)), "torch.serialization.save"),
        "np.save": (Call(np.save, str(marker), 1), "numpy.save"),
        "path.touch": (Call(Path.touch, Path(marker)), "builtins.getattr"),
        "module": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    }


@BOTH_FORMATS
@pytest.mark.parametrize("place", ["top", "in args", "as key"])
@pytest.mark.parametrize("name", sorted(hostile(Path("x"))))
def test_a_hostile_pickle_is_refused_by_name_and_not_run(tmp_path: Path, name: str, place: str, zipped: bool) -> None:
    marker = tmp_path / "marker"
    payload, refused = hostile(marker)[name]
    tree: dict[Any, Any] = {"model": {"weight": torch.ones(2)}}
    if place == "in args":
        tree["args"] = argparse.Namespace(deep=[{"x": argparse.Namespace(payload=payload)}])
    elif place == "as key":
        tree["optimizer"] = {payload: 1}
    else:
        tree["payload"] = payload
    path = save(tree, tmp_path / "a.pth", zipped)
    with pytest.raises(CheckpointError, match="nothing of it was run") as error:
        read_weights(path)
    assert refused.split(".")[-1] in str(error.value)
    assert not marker.exists()


def test_every_refused_name_is_listed(tmp_path: Path) -> None:
    path = save({"a": Call(os.system, "true"), "b": Call(eval, "1"), "c": np.arange(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"asks for builtins.eval, {os.name}.system, which"):
        read_weights(path)


def test_the_payloads_above_do_run_when_nothing_stops_them(tmp_path: Path) -> None:
    """Keeps the test before honest: a payload that could do no harm would pass it."""
    for name in ("os.system", "eval", "open"):
        marker = tmp_path / name
        torch.load(save({"x": hostile(marker)[name][0]}, tmp_path / "a.pth"), weights_only=False)
        assert marker.exists()


@BOTH_FORMATS
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_newer_pickle_protocol_is_refused_with_its_names(tmp_path: Path, zipped: bool, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = save({"a": Call(os.system, f"touch {marker}"), "s": "text"}, tmp_path / "a.pth", zipped, protocol)
    with pytest.raises(CheckpointError, match=f"{os.name}.system"):
        read_weights(path)
    assert not marker.exists()


def test_a_bare_pickle_is_not_even_opened(tmp_path: Path) -> None:
    path, marker = tmp_path / "a.pth", tmp_path / "marker"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol))
        with pytest.raises(CheckpointError, match="bare Python pickle"):
            read_weights(path)
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), 0))
    with pytest.raises(CheckpointError, match="text file"):
        read_weights(path)
    assert not marker.exists()


def test_a_tar_checkpoint_is_refused(tmp_path: Path) -> None:
    """PyTorch's loader for tars unpickled freely before 2.6 (CVE-2025-32434)."""
    path = tmp_path / "a.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"\x80\x02N."))
    with pytest.raises(CheckpointError, match="tar archive"):
        read_weights(path)


@BOTH_FORMATS
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_cut_file_is_told_as_cut(tmp_path: Path, zipped: bool, share: float) -> None:
    path = save({"model": {"w": torch.arange(20_000.0)}}, tmp_path / "a.pth", zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut|damaged"):
        read_weights(path)


@pytest.mark.parametrize("keep", [4, 9, 60, 1000])
def test_a_cut_safetensors_file_is_told_as_cut(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(5000.0)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut|unknown kind"):
        read_weights(path)


def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match="damaged or cut safetensors"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (b"\x93NUMPY\x01\x00" + bytes(50), "NumPy array"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(50), "TensorFlow Lite"),
        (b"just some notes\n", "text file"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "unknown kind .*01 02 03"),
        (b"\x80", "bare Python pickle|unknown kind"),
        (b"PK\x03\x04" + bytes(50), "cut short"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_no_weight_file_is_named(tmp_path: Path, content: bytes, what: str, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_other_zip_archives_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=1)
    with pytest.raises(CheckpointError, match=r"NumPy archive \(\.npz\)"):
        read_weights(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match="a zip archive"):
        read_weights(tmp_path / "a.zip")
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_weights(tmp_path / "a.pt")


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compression"):
        read_weights(tmp_path / "b.pth")


@pytest.mark.parametrize("value", [torch.ones(3), [1, 2], "text", None, 3.5])
def test_a_file_without_a_dictionary_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"holds a {type(value).__name__}"):
        read_weights(save(value, tmp_path / "a.pth"))


def test_folders_absent_and_special_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_weights(tmp_path / "pipe")


def test_an_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"w": torch.ones(1)}, tmp_path / "a.pth")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        original = Path.open

        def denied(self: Path, *arguments: Any, **options: Any) -> Any:
            if self == path and not stat.S_IMODE(self.stat().st_mode):
                raise PermissionError(13, "Permission denied", str(self))
            return original(self, *arguments, **options)

        monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match=r"cannot read .*Permission denied"):
        read_weights(path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_tensors_of_a_zip_are_mapped_and_not_copied(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(4096)}, tmp_path / "a.pth")
    weight = read_weights(path).checkpoint["w"]
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    assert any(start <= weight.data_ptr() < end for start, end in spans)


def test_safetensors_round_trip_is_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    tensors = {"a": shared, "view": shared[1:], "t": shared.T, "i": torch.arange(3)}
    tensors["half"] = torch.ones(2, dtype=torch.bfloat16)
    write_safetensors(tmp_path / "a.safetensors", tensors, {"dune.layout": "dune"})
    file = read_weights(tmp_path / "a.safetensors")
    assert (file.format, file.metadata) == ("safetensors", {"dune.layout": "dune"})
    assert file.checkpoint.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(file.checkpoint[name], tensor) and file.checkpoint[name].dtype == tensor.dtype


def test_equal_contents_make_equal_files_that_others_may_read(tmp_path: Path) -> None:
    header = {f"key{index}": str(index) for index in range(20)}
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    before = os.umask(0o022)
    try:
        for path in paths:
            write_safetensors(path, {"a": torch.arange(3.0), "b": torch.ones(2, 2)}, header)
    finally:
        os.umask(before)
    assert len({path.read_bytes() for path in paths}) == 1
    assert stat.S_IMODE(paths[0].stat().st_mode) == 0o644
    assert read_weights(paths[0]).metadata == header
    with pytest.raises(OSError, match="No such file"):
        write_safetensors(tmp_path / "none" / "a.safetensors", {"a": torch.ones(1)}, {})


def test_the_hash_is_compared_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file is told as changed, not as what it holds: the reader does not see a byte of it."""
    home = weights_folder.weights_folder()
    path = save({"model": torch.ones(2)}, home / "dune_vitbase14_448.pth")
    located = weights_folder.locate("dune-vitb14-448")
    assert read_located(located).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"PK\x03\x04 anything")

    def never(*_: object) -> None:
        pytest.fail("a changed file was read")

    monkeypatch.setattr(weight_files, "read_weights", never)
    with pytest.raises(CheckpointError, match=r"changed or damaged.*first one seen"):
        read_located(located)


def test_a_published_file_without_a_pin_gets_one_at_its_first_use(tmp_path: Path) -> None:
    home = weights_folder.weights_folder()
    path = save({"model": torch.ones(2)}, home / "dune_vitbase14_448.pth")
    read_located(weights_folder.locate("dune-vitb14-448"), remember=False)
    assert weights_folder.read_pins(home) == {}
    read_located(weights_folder.locate("dune-vitb14-448"))
    assert weights_folder.read_pins(home)[path.name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for own in (home / "mine.pth", tmp_path / "dune_vitbase14_448.pth"):  # not published, not in the weights folder
        read_located(weights_folder.locate(save({"model": torch.ones(2)}, own)))
    assert list(weights_folder.read_pins(home)) == [path.name]
