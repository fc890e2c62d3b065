"""Hostile weight files of many kinds: nothing of them runs, no signal ends the process, each is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import TESTS
from support.hostile_files import KINDS, write_hostile

FILES = 200
MAX_SECONDS, MAX_BYTES = 20.0, 2 << 30  # of processor time, so that a busy machine does not count
READ = """
import json, resource, sys, time
from pathlib import Path
from support import audited
from dune_cli.checkpoints import inventory, weight_files, weights_folder
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import CheckpointError
audited.install()

def read(path):
    weight_files.read_weights(path)
    facts = inventory.describe_file(weights_folder.LocatedFile(path, None))
    if facts["kind"] == "encoder":
        load_encoder(path)

for warm in sorted(Path(sys.argv[2]).iterdir()):
    read(warm)  # imports what it imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).glob("0*")):
    audited.heard.clear()
    start = time.process_time()
    try:
        with audited.listening():
            read(path)
        said = None
    except CheckpointError as error:
        said = str(error)
    except BaseException as error:
        said = f"TRACEBACK {type(error).__name__}: {error}"
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(json.dumps([path.name, said, time.process_time() - start, peak, audited.heard]), flush=True)
"""


def read_all(folder: Path, honest: Path) -> tuple[int, list[list[Any]]]:
    """The child's exit code (negative: a signal), and for each file what it said, seconds, bytes, what was heard."""
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", READ, folder, honest],
        capture_output=True,
        text=True,
        timeout=540,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode <= 0, done.stderr[-2000:]
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def check(tmp_path: Path, count: int, seed: int) -> list[list[Any]]:
    import torch

    from support.hostile_files import honest

    (tmp_path / "honest").mkdir()
    for number, content in enumerate(honest()):
        (tmp_path / "honest" / f"{number}.pth").write_bytes(content)
    folder = tmp_path / "hostile"
    folder.mkdir()
    refused = dict(write_hostile(folder, count, seed))
    code, results = read_all(folder, tmp_path / "honest")
    assert code == 0, f"signal {-code} after {results[-1][0] if results else 'nothing'}; see {folder}"
    assert len(results) == len(refused) == count
    assert not (folder / "flag").exists() and torch is not None
    for name, said, seconds, peak, heard in results:
        assert not heard, f"{name} did {heard}"
        assert said is None or not said.startswith("TRACEBACK"), f"{name}: {said}"
        assert said is None or (said.count("\n") == 0 and len(said) < 4000), f"{name}: {said}"
        assert seconds < MAX_SECONDS and peak < MAX_BYTES, f"{name}: {seconds:.1f} s, {peak / 2**20:.0f} MiB"
        assert said is not None or not refused[folder / name], f"{name} was taken"
    return results


@pytest.mark.slow
def test_two_hundred_hostile_files(tmp_path: Path) -> None:
    results = check(tmp_path, FILES, seed=11)
    told = [name for name, said, *_ in results if said is not None]
    assert len(told) > 0.85 * FILES
    for kind in KINDS:
        assert any(kind in name for name in told), kind


if __name__ == "__main__":  # python tests/checkpoints/test_hostile_files.py FILES SEED
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        found = check(Path(scratch), int(sys.argv[1]), int(sys.argv[2]))
        print(len(found), "files,", sum(said is None for _, said, *_ in found), "taken", max(r[2] for r in found), "s")
