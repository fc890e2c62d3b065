"""open3d's surfaces in a process of their own: its calls hold Python's lock, so progress and Ctrl-C would wait.

python -m dune_cli.tasks.reconstruct.dense.surface_process METHOD IN.npz OUT.npz
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dune_cli.errors import DuneError, JobFailed, PackageMissing
from dune_cli.tasks.reconstruct.dense import surface_open3d

PACKAGES = Path(__file__).resolve().parents[4]  # where dune_cli lies
PR_SET_PDEATHSIG = 1
WAIT_S = 0.2  # between two looks at signals


def surface_arrays(method: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `surface_open3d.METHODS[method]` makes of `arrays`. PackageMissing, JobFailed."""
    with tempfile.TemporaryDirectory(prefix="dune-mesh-") as folder:
        given, made = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, **arrays)
        paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, method, str(given), str(made)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # one sentence, if it fails; open3d writes to stderr
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(WAIT_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said = process.stdout.read().decode("utf-8", "replace").strip() if process.stdout else ""
        if process.returncode == PackageMissing.exit_code:
            raise PackageMissing(said)
        if process.returncode or not made.is_file():
            raise JobFailed(f"meshing ended with status {process.returncode} {f'({said})' if said else ''}".strip())
        with np.load(made, allow_pickle=False) as found:
            return dict(found)


def main(method: str, given: str, made: str) -> int:
    """The exit code; a reason on stdout."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody would read what it makes
    try:
        with np.load(given, allow_pickle=False) as arrays:
            np.savez(made, **surface_open3d.METHODS[method](dict(arrays)))
    except DuneError as error:
        print(error)
        return error.exit_code
    except MemoryError:
        print("out of memory; try a lower --quality")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
