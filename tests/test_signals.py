"""Ctrl-C and SIGTERM: every command ends within seconds with 130 or 143, and leaves nothing unfinished."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dune_cli.cli import main
from support.killed_commands import Job, make_jobs
from support.published_files import dune_manifest, make_state_dict

SECONDS = 5.0
BOTH = pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background inherits "ignore"
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def end(process: subprocess.Popen[str], kind: signal.Signals) -> tuple[int, str, str]:
    """Sends the signal; exit status and what was said. The process must end in time."""
    process.send_signal(kind)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < SECONDS
    return process.returncode, out, err


DEAF = """
import itertools, sys, time
from dune_cli import signals
from dune_cli.io.outputs import atomic_directory, atomic_path
signals.guard()
with atomic_path(sys.argv[1] + "/a.txt") as file, atomic_directory(sys.argv[1] + "/b") as folder:
    file.write_text("half")
    (folder / "c.txt").write_text("half")
    while True:
        try:
            print("ready", flush=True)
            BODY
        except BaseException:
            pass
"""
HOLDS_THE_LOCK = "sum(itertools.repeat(1, 10**12))"
SWALLOWS = "time.sleep(60)"


@BOTH
@pytest.mark.parametrize("body", [HOLDS_THE_LOCK, SWALLOWS], ids=["holds the lock", "swallows the exception"])
def test_a_process_that_does_not_listen_is_ended_and_its_temporary_files_go(
    body: str, kind: signal.Signals, tmp_path: Path
) -> None:
    process = start("-c", DEAF.replace("BODY", body), tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.glob(".dune-*"))) == 2
    code, _, err = end(process, kind)
    assert (code, err) == (-kind, "")  # a shell says 128 + the signal
    _gone(tmp_path)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    process = start("-c", DEAF.replace("BODY", SWALLOWS), tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == -signal.SIGINT
    _gone(tmp_path)


def test_a_killed_process_leaves_no_temporary_files(tmp_path: Path) -> None:
    process = start("-c", DEAF.replace("BODY", SWALLOWS), tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    _gone(tmp_path)


@BOTH
def test_an_exception_that_a_destructor_loses_is_raised_again(kind: signal.Signals) -> None:
    code = """
import time
from dune_cli import signals
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
signals.guard()
try:
    Slow()
    time.sleep(60)
finally:
    print("unwound", flush=True)
"""
    process = start("-c", code)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    code, out, err = end(process, kind)
    assert out == "unwound\n" and "ignored" not in err and code in (1, 143, -kind)


def _gone(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while list(folder.rglob("*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(folder.rglob("*")) == []


def test_an_ignored_signal_stays_ignored() -> None:
    code = "import os, signal; from dune_cli import signals; signals.guard(); os.kill(os.getpid(), 2); print('on')"
    process = subprocess.run(["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code],
                             capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert (process.returncode, process.stdout) == (0, "on\n")


def test_output_ends_with_the_command_and_no_helper_stays() -> None:
    """Whoever reads the output waits for the command alone; the helper is gone when the command is."""
    code = "from dune_cli import signals; signals.guard(); print(signals._helper, flush=True); signals.finish(0)"
    process = start("-c", code)
    out, _ = process.communicate(timeout=20)
    with pytest.raises(ProcessLookupError):
        os.kill(int(out), 0)


@pytest.mark.parametrize("wrapped", [SystemError("UntypedStorage returned a result with an exception set"), OSError()])
def test_what_became_of_a_keyboard_interrupt_is_one(wrapped: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ code that calls back into Python turns KeyboardInterrupt into an error of its own."""
    import dune_cli.commands.doctor as verb

    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise wrapped from error

    monkeypatch.setattr(verb.command, "callback", interrupted)
    done = CliRunner().invoke(main, ["doctor"])
    assert (done.exit_code, done.stderr) == (130, "dune: interrupted\n")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    folder = tmp_path_factory.mktemp("inputs")
    made = make_jobs(folder)
    torch.save({"model": make_state_dict(dune_manifest(64, 1, 4, {"one": 32}), 4)}, folder / "small.pth")
    many = [folder / "photos"] * 60
    encode = ["encode", *many, "--model", folder / "small.pth", "--size", 224]
    made["encode"] = Job("encode", lambda out: [*encode, "-o", out], ())
    long = {"distill": ("--steps", 10**6), "matcher": ("--steps", 10**6, "--teacher-minutes", 0, "--warped", 1)}
    for name, more in long.items():
        made[name] = Job(name, lambda out, job=made[name], more=more: [*job.words(out), *more], ())
    made["bench"] = Job("bench", lambda out: ["bench"], ())
    return made


@pytest.mark.slow
@pytest.mark.weights("efficientnet-lite2")
@pytest.mark.parametrize("verb", ["reconstruct", "mapfree", "distill", "matcher", "encode", "bench"])
def test_every_long_verb_ends_at_a_signal(verb: str, jobs: dict[str, Job], tmp_path: Path) -> None:
    """At a random moment, the imports' among them."""
    chance = random.Random(f"{verb} 1")
    kind = chance.choice([signal.SIGTERM, signal.SIGINT])
    process = start("-m", "dune_cli.cli", *jobs[verb].words(tmp_path))
    time.sleep(chance.uniform(0.5, 4))
    if process.poll() is not None:
        pytest.fail(f"it ended before: {process.communicate()}")
    code, out, err = end(process, kind)
    assert code in (128 + kind, -kind) and "Traceback" not in err and "unexpected" not in err
    if verb == "encode":  # it names each file as soon as it is written
        assert all(Path(line).is_file() for line in out.splitlines())
    else:
        assert out == ""
    if kind == signal.SIGINT and code > 0:
        assert err.splitlines()[-1] == "dune: interrupted"
    time.sleep(0.2)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".dune-")]
    assert not [name for name in jobs[verb].files if (tmp_path / name).exists()]
