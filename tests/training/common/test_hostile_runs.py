"""Run folders from others: nothing in them runs on resume, no signal ends the process, each is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from click.testing import Result

from support import TESTS
from support.hostile_runs import KINDS, write_hostile

FOLDERS = 200
MAX_SECONDS, MAX_BYTES = 20.0, 2 << 30  # of processor time, so that a busy machine does not count
RESUME = """
import json, resource, sys, time
from pathlib import Path
from support import audited
from dune_cli.errors import UserError
from dune_cli.training.common import checkpoints
from support.hostile_runs import alone, new_run
audited.install()
run, dist = new_run(), alone()
run.restore(checkpoints.latest_checkpoint(Path(sys.argv[1]) / "honest" / "checkpoints"), dist)  # lazy imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sorted(Path(sys.argv[1]).glob("0*")):
    audited.heard.clear()
    start = time.process_time()
    try:
        with audited.listening():
            run.restore(checkpoints.latest_checkpoint(folder / "checkpoints"), dist)
        message = None
    except UserError as error:
        message = str(error)
    except BaseException as error:
        message = f"TRACEBACK {type(error).__name__}: {error}"
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(json.dumps([folder.name, message, time.process_time() - start, peak, audited.heard]), flush=True)
"""


def check(folder: Path, count: int, seed: int) -> list[list[Any]]:
    refused = dict(write_hostile(folder, count, seed))
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", RESUME, folder],
        capture_output=True,
        text=True,
        timeout=540,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"exit code (a signal, if negative) {done.returncode}: {done.stderr[-2000:]}"
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(refused) == count and not (folder / "flag").exists()
    for name, message, seconds, peak, heard in results:
        assert not heard, f"{name} did {heard}"
        assert message is None or not message.startswith("TRACEBACK"), f"{name}: {message}"
        assert message is None or message.count("\n") == 0, f"{name}: {message}"
        assert seconds < MAX_SECONDS and peak < MAX_BYTES, f"{name}: {seconds:.1f} s, {peak / 2**20:.0f} MiB"
        assert message is not None or not refused[name], f"{name} was taken"
    return results


def test_two_hundred_hostile_run_folders(tmp_path: Path) -> None:
    results = check(tmp_path, FOLDERS, seed=11)
    messages = {name: message for name, message, *_ in results if message is not None}
    assert len(messages) > 0.85 * FOLDERS
    for kind in KINDS:
        assert any(kind in name for name in messages), kind
    for name, message in messages.items():
        assert ("earlier version" in message) == ("earlier" in name), message


def test_resuming_a_run_of_others_by_the_command(
    distill: Callable[..., Result], teachers: str, photos: Path, tmp_path: Path
) -> None:
    """The whole command on hostile metadata (an earlier version's), and on files that are pickles."""
    assert distill(teachers, photos, tmp_path / "run").exit_code == 0
    flag = tmp_path / "flag"

    class Touch:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {flag}",)

    for number, names in enumerate(((".metadata", "__0_0.distcp"), ("index.json",), ("rank-00000.safetensors",))):
        run = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "run", run)
        (step,) = (run / "checkpoints").iterdir()
        for path in list(step.iterdir()) if number == 0 else [step / names[0]]:
            path.unlink()
        for name in names:
            torch.save({"x": Touch()}, step / name, _use_new_zipfile_serialization=number != 0)
        result = distill(teachers, photos, run)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("dune:") == 1 and "Traceback" not in result.output
        assert ("was written by an earlier version of dune" in result.stderr) == (number == 0)
        assert not flag.exists()


if __name__ == "__main__":  # python tests/training/common/test_hostile_runs.py FOLDERS SEED
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        rows = check(Path(scratch), int(sys.argv[1]), int(sys.argv[2]))
        print(
            len(rows),
            "folders,",
            sum(message is None for _, message, *_ in rows),
            "taken",
            max(r[2] for r in rows),
            "s",
        )
