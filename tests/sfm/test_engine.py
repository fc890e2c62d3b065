"""Engines: the same results in the same order, whoever computes them and whatever is killed meanwhile."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
import threading
from pathlib import Path

import pytest

from dune_cli.errors import JobFailed, PackageMissing, UserError
from dune_cli.sfm import engine as engines
from dune_cli.sfm.engine import InProcess, ProcessPool, RayEngine, open_engine
from support.engine_jobs import Squares

NUMBERS = range(20)
EXPECTED = [value for number in NUMBERS for value in (number * number, number)]
HAS_RAY = importlib.util.find_spec("ray") is not None


def test_one_process_gives_each_result_at_once(tmp_path: Path) -> None:
    results = InProcess().map(Squares(tmp_path, bad=2), NUMBERS)
    assert [next(results) for _ in range(4)] == EXPECTED[:4]
    with pytest.raises(UserError, match="2 is bad"):
        next(results)


def test_a_killed_worker_costs_nothing_but_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(ProcessPool(2).map(Squares(tmp_path, kill=7), NUMBERS)) == EXPECTED
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "squared" in line] == [f"squared {number}" for number in NUMBERS]
    assert sum("a worker process ended" in line for line in said) == 1
    assert len(list(tmp_path.glob("pid*"))) >= 2 and not multiprocessing.active_children()


def test_what_a_job_raises_comes_in_its_turn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 is bad"):
        list(ProcessPool(2).map(Squares(tmp_path, bad=5), NUMBERS))
    assert not multiprocessing.active_children()


def test_a_job_that_always_kills_its_worker_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "RETRIES", 1)
    with pytest.raises(JobFailed, match="ended 2 times in a row without a result"):
        list(ProcessPool(1).map(Squares(tmp_path, kill=0, times=9), [0]))


def test_addresses_and_options() -> None:
    for address in ("nowhere", "http://a:1", "host:99999", ""):
        with pytest.raises(UserError, match="HOST:PORT"):
            RayEngine(address)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(JobFailed, match=f"no Ray cluster answers at 127.0.0.1:{port} within 5 s"):
        RayEngine(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"220 mail at your service\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(JobFailed, match=f"no Ray cluster answers at 127.0.0.1:{port} .*what answers is no Ray"):
            RayEngine(f"127.0.0.1:{port}")
        thread.join()
    with pytest.raises(UserError, match="belongs to --engine ray"), open_engine("processes", 2, "local"):
        pass
    if not HAS_RAY:
        with pytest.raises(PackageMissing, match=r"dune-cli\[ray\]"):
            RayEngine()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install 'dune-cli[ray]'")
def test_ray_gives_the_same_and_does_again_what_a_killed_worker_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's workers import the jobs by themselves, without pytest's search path
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]))
    with open_engine("ray", 2, None) as engine:
        assert list(engine.map(Squares(tmp_path, kill=7), NUMBERS)) == EXPECTED
        with pytest.raises(UserError, match="5 is bad"):
            list(engine.map(Squares(tmp_path, bad=5), NUMBERS))
