"""Run folders that want to run something on resume, or to break the reader: seeded, by kind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli.training.common.checkpoints import INDEX, RunState
from dune_cli.training.common.dist import Dist
from support.hostile_files import CALLS, Pickle, safe

STEP = 4
FILE = "rank-00000.safetensors"


def new_run() -> RunState:
    """A small network and its optimizer after three steps; always the same."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        student(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return RunState(student, optimizer, {"norms": nn.ModuleDict({"teacher": nn.BatchNorm1d(3, affine=False)})})


def alone() -> Dist:
    return Dist(0, 1, torch.device("cpu"))


def write_honest(folder: Path) -> Path:
    """`folder/checkpoints/step-00000004`."""
    new_run().save(folder / "checkpoints", STEP, alone())
    return folder / "checkpoints" / f"step-{STEP:08d}"


def sealed(content: dict[str, Any]) -> str:
    """An index with the checksum that fits what it says."""
    content.pop("sha256", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(content | {"sha256": hashlib.sha256(text).hexdigest()})


def replace_file(step: Path, content: bytes, name: str = FILE) -> None:
    """Other bytes in the place of a file, and an index that knows their size and sha256."""
    (step / name).write_bytes(content)
    index = json.loads((step / INDEX).read_text())
    index["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / INDEX).write_text(sealed(index))


def payload(rng: random.Random, flag: str) -> bytes:
    if rng.random() < 0.5:

        class Touch:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {flag}",)

        return pickle.dumps({"state": Touch()}, rng.randrange(6))
    return Pickle().call(rng.choice(CALLS), f"touch {flag}").end()


def earlier(rng: random.Random, step: Path, flag: str) -> None:
    """What an earlier version wrote: the metadata is a pickle."""
    (step / INDEX).unlink()
    (step / FILE).unlink()
    (step / ".metadata").write_bytes(payload(rng, flag))
    if rng.random() < 0.7:
        (step / "__0_0.distcp").write_bytes(payload(rng, flag))


def pickled(rng: random.Random, step: Path, flag: str) -> None:
    """A pickle or a file of torch.save in the place of the tensors or the index."""
    content = payload(rng, flag)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        torch.save({"w": torch.ones(2)}, buffer)
        content = buffer.getvalue()
    if rng.random() < 0.7:
        replace_file(step, content)
    else:
        (step / INDEX).write_bytes(content)


def other_value(rng: random.Random, old: Any) -> Any:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    return rng.choice((
        None, -1, 1 << 70, 10**400, 1.5, float("nan"), "", "x" * 1000, [], {}, [[]], True, deep, "../../../etc/passwd",
        "__import__('os').system('true')", [1 << 40, 1 << 40], 0, "OBJECT", str(old), [old],
    ))  # fmt: skip


def index_changed(rng: random.Random, step: Path, flag: str) -> None:
    """Any value of the index is another, or missing, or twice there; its checksum fits."""
    index = json.loads((step / INDEX).read_text())
    for _ in range(rng.choice((1, 1, 3))):
        at: Any = index
        while True:
            key = rng.choice(sorted(at)) if isinstance(at, dict) else rng.randrange(len(at))
            if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            break
        how = rng.randrange(3)
        if how == 0 and isinstance(at, dict):
            del at[key]
        elif how == 1 and isinstance(at, dict):
            at[str(other_value(rng, key))[:300]] = at.pop(key)
        else:
            at[key] = other_value(rng, at[key])
        if not index:
            break
    (step / INDEX).write_text(sealed(index))


def index_bombs(rng: random.Random, step: Path, flag: str) -> None:
    """An index that grows, nests, or is no JSON at all."""
    text = (step / INDEX).read_text()
    (step / INDEX).write_bytes(
        rng.choice((
            b"[" * 200_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"schema":' + b"9" * 100_000 + b"}",
            b"\xff\xfe\x00",
            b"",
            text[: len(text) // 2].encode(),
            text.replace("0", "1", 1).encode(),
            json.dumps(list(range(200_000))).encode(),
            b"NaN",
            b'"' + b"\\ud800" * 1000 + b'"',
        ))
    )  # fmt: skip


def tensors_lie(rng: random.Random, step: Path, flag: str) -> None:
    """A safetensors file that lies, cut or with bytes changed, with a size and sha256 that fit."""
    content = bytearray((step / FILE).read_bytes())
    how = rng.randrange(4)
    if how == 0:
        replace_file(step, safe(rng, flag))
    elif how == 1:
        replace_file(step, bytes(content[: rng.randrange(len(content))]))
    elif how == 2:
        length = int.from_bytes(content[:8], "little")
        for _ in range(rng.choice((1, 5))):
            content[rng.randrange(8 + length)] = rng.randrange(32, 127)
        replace_file(step, bytes(content))
    else:  # the checksum does not fit
        content[rng.randrange(len(content))] ^= 0x55
        (step / FILE).write_bytes(content)


def no_files(rng: random.Random, step: Path, flag: str) -> None:
    """Something else than a file in the place of one: a pipe, a device, a folder, nothing."""
    path = step / rng.choice((FILE, INDEX))
    path.unlink()
    how = rng.randrange(6)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to("/dev/zero")
    elif how == 2:
        path.symlink_to("/dev/tty")
    elif how == 3:
        path.mkdir()
    elif how == 4:
        path.symlink_to(path)


def other_names(rng: random.Random, step: Path, flag: str) -> None:
    """Files outside of the folder, or of another step."""
    index = json.loads((step / INDEX).read_text())
    how = rng.randrange(4)
    if how == 0:
        name = rng.choice(("../rank-00000.safetensors", "/etc/passwd", "rank-00000.safetensors/../x", "rank-1.pt"))
        index["files"][name] = index["files"].pop(FILE)
    elif how == 1:
        index["step"] = rng.choice((0, 5, 10**9))
    elif how == 2:
        for facts in index["tensors"].values():
            facts["parts"] = facts["parts"] * rng.choice((0, 2, 1000))
    else:
        for number in range(2000):
            index["tensors"][f"model.{number}"] = {"dtype": "F32", "shape": [1 << 40, 1 << 40], "parts": []}
    (step / INDEX).write_text(sealed(index))


# kind -> (what it does to an honest checkpoint, whether every one must be refused)
KINDS: dict[str, tuple[Callable[[random.Random, Path, str], None], bool]] = {
    "earlier": (earlier, True),
    "pickled": (pickled, True),
    "index_changed": (index_changed, False),
    "index_bombs": (index_bombs, True),
    "tensors_lie": (tensors_lie, False),
    "no_files": (no_files, True),
    "other_names": (other_names, True),
}


def write_hostile(folder: Path, count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """`count` run folders in `folder`, each kind as often, and whether each must be refused."""
    honest = folder / "honest"
    write_honest(honest)
    names = list(KINDS)
    for number in range(count):
        name = names[number % len(names)]
        damage, refused = KINDS[name]
        run = folder / f"{number:05}-{name}"
        shutil.copytree(honest, run)
        damage(random.Random(f"{seed} {number}"), run / "checkpoints" / f"step-{STEP:08d}", str(folder / "flag"))
        yield run.name, refused
