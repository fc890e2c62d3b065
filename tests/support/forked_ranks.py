"""`dune WORDS` on several ranks (gloo), as forks of one process that has imported everything and computed nothing.

A line of JSON on stdin is a job, `[ranks, [word, …]]`; the answer on stdout is `[exit codes, stdout, stderr]`, what all
ranks printed together. torch.distributed.run imports torch anew in the launcher and in every rank.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from types import TracebackType

START = "from support.forked_ranks import serve; serve()"


class Ranks:
    """A process that forks the ranks of one job after the other."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", START], stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, ranks: int, words: list[str]) -> subprocess.CompletedProcess[str]:
        """`dune WORDS` on `ranks` ranks. The exit code is the first that is not 0."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([ranks, words]), file=self._process.stdin, flush=True)
        codes, stdout, stderr = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(words, next((code for code in codes if code), 0), stdout, stderr)


def serve() -> None:
    import torch

    import dune_cli.commands.distill
    import dune_cli.training.distill.finalize  # noqa: F401
    from dune_cli.cli import main

    def child(rank: int, ranks: int, port: int, words: list[str], files: tuple[int, int]) -> None:
        for number, file in zip((1, 2), files):
            os.dup2(file, number)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        torch.set_num_threads(1)
        sys.argv = ["dune", *words]
        main(words, prog_name="dune")

    for line in sys.stdin:
        ranks, words = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pids = []
            for rank in range(ranks):
                pids.append(os.fork())
                if not pids[-1]:
                    code: object = 1
                    try:
                        child(rank, ranks, port, words, (out.fileno(), err.fileno()))
                    except SystemExit as stop:
                        code = stop.code or 0
                    finally:
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(int(code))
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
        print(json.dumps([codes, *said]), flush=True)
