"""Kills commands at random moments, starts them again until they end, and compares what they wrote with a run that
nobody killed.

    python tests/support/killed_commands.py FOLDER --kills 30 --signals KILL,TERM,INT --jobs reconstruct,distill

A start is a fork of this process, which has imported everything and computed nothing, so it costs milliseconds; the
child runs `dune`'s command line with its signal handling. A killed command is started again and may be killed again,
up to four times in a row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of tests: this file is a script, too

SIZE = 128, 96
IN_A_ROW = 4
SECONDS_TO_END = 5.0  # after a signal
LONGEST = 500.0  # of a run that is not killed
NOT_COMPARED = ("seconds", "hours", "images_per_second", "provenance", "work", "log", "last_log", "cache", "created")


@dataclass(frozen=True)
class Job:
    """A command. words: what follows `dune`, for an output folder. files: patterns of what it writes there. before:
    in the child, before the command."""

    name: str
    words: Callable[[Path], list[object]]
    files: tuple[str, ...]
    before: Callable[[], None] = lambda: None


@dataclass
class Count:
    """What came of a job: kills that hit, runs that were compared, the longest that a signal took to end one."""

    kills: int = 0
    compared: int = 0
    slowest: float = 0.0
    seconds_whole: float = 0.0


def make_jobs(folder: Path) -> dict[str, Job]:
    """The five commands that go on where they stopped, on small inputs that are made in `folder` (in a child)."""
    if not (folder / "ready").exists():
        pid = os.fork()
        if pid == 0:
            _end(lambda: _make_inputs(folder))
        assert os.waitpid(pid, 0)[1] == 0, "the inputs could not be made"
    from support.many_photos import K

    width, height = SIZE
    focal = f"{K[0, 0] * width / 320},{K[1, 1] * width / 320},{(width - 1) / 2},{(height - 1) / 2}"
    sift = ("--matcher", "sift")
    often = ("--log-every", 1, "--checkpoint-minutes", 0, "--dtype", "float32")
    small = ("--student", "vit:64x1", "--size", 56, "--batch-size", 2, "--steps", 8, *often)
    tiny = ("--size", 160, "--max-keypoints", 96, "--keypoints", 64, "--pairs", 1, "--steps", 4, *often)
    scenes = ("--data", folder / "scenes", "--photos", folder / "photos", "--validation-pairs", 1, "--held-out", 0)
    seen = ("reconstruct", folder / "scenes" / "arc", *sift, "--intrinsics", focal, "--quality", "low")
    relocalized = ("mapfree", folder / "root", *sift, "--unit-translation")
    taught = ("distill", "--teachers", f"dinov2={folder / 'dinov2.pth'}", "--data", folder / "photos", *small)
    matched = ("train", "matcher", "--encoder", folder / "mini.safetensors", *scenes, *tiny)
    indexed = ("index", folder / "photos", "--size", 112, "--dtype", "float32")
    index = ("index/index.json", "index/vectors-*.npy", "index/photos-*.jsonl")
    students = ("student.safetensors", "student_fp16.safetensors", "report.json")
    heads = ("matcher.safetensors", "matcher_fp16.safetensors", "report.json")
    jobs = (
        Job("reconstruct", lambda out: [*seen, "-o", out / "scene.ply"], ("scene.ply", "scene.json"), _small_sift),
        Job("mapfree", lambda out: [*relocalized, "-o", out / "s.zip"], ("s.zip",), _small_sift),
        Job("distill", lambda out: [*taught, "--cache", out / "cache", "-o", out], students),
        Job("matcher", lambda out: [*matched, "-o", out], heads, _sift_teaches),
        Job("index", lambda out: [*indexed, "-o", out / "index"], index, _save_often),
    )
    return {job.name: job for job in jobs}


def _make_inputs(folder: Path) -> None:
    import torch
    from PIL import Image

    from support import EXAMPLE_PHOTOS, match_files
    from support.many_photos import write
    from support.mapfree_sets import write_root
    from support.published_files import dinov2_manifest, make_state_dict
    from support.teacher_files import write_photos

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for path in write(folder / "scenes" / "arc", range(4)):
        with Image.open(path) as picture:
            picture.resize(SIZE, Image.Resampling.LANCZOS).save(path)
    write_root(folder / "root")
    torch.save(make_state_dict(dinov2_manifest(64, 1, 4, registers=4), 3), folder / "dinov2.pth")
    match_files.write_encoder(folder / "mini.safetensors", match_files.small_encoder())
    write_photos(folder / "photos", EXAMPLE_PHOTOS, crops=2, side_px=200)
    (folder / "ready").write_text("")


def _small_sift() -> None:
    """SIFT at the size of the small photos."""
    from dune_cli.matchers import sift

    sift.build = lambda *_: sift.Sift(320, 1000)


def _sift_teaches() -> None:
    """The teacher of `train matcher` is SIFT: its own is slow."""
    from dune_cli.matchers import aliked_lightglue
    from dune_cli.matchers.sift import Sift

    aliked_lightglue.AlikedLightGlue = lambda *_, **__: Sift(320, 500)


def _save_often() -> None:
    """`index` saves what it has computed after every second photo."""
    from dune_cli.tasks import index

    index.SAVE_VECTORS = 2


def start(job: Job, output: Path) -> int:
    """The pid of a child that runs the job; what it says goes to a log beside `output`."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return _end(lambda: _run(job, output))


def _run(job: Job, output: Path) -> None:
    import torch

    from dune_cli.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
    torch.set_num_threads(1)
    job.before()
    sys.argv = ["dune", *map(str, job.words(output))]
    main()


def _end(work: Callable[[], None]) -> Any:
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """The exit status of a child if it ends within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill_and_compare(job: Job, folder: Path, kinds: list[signal.Signals], kills: int, seed: int) -> dict[str, Count]:
    """Kills a job `kills` times with each of `kinds`. AssertionError where anything is not as it was without kills."""
    output = folder / job.name / "run"
    output.parent.mkdir(parents=True, exist_ok=True)
    _fresh(output)
    began = time.monotonic()
    code = ended(start(job, output), LONGEST)
    assert code == 0, f"{job.name} ended with {code}: {_said(output)}"
    seconds = time.monotonic() - began
    whole = _contents(job, output)
    assert all(any(Path(name).match(pattern) for name in whole) for pattern in job.files)
    counts = {}
    for kind in kinds:
        chance = random.Random(f"{job.name} {kind.name} {seed}")
        count = counts[kind.name] = Count(seconds_whole=seconds)
        while count.kills < kills:
            _fresh(output)
            for turn in range(IN_A_ROW + 1):
                last = turn == IN_A_ROW or count.kills >= kills
                moment = LONGEST if last else chance.uniform(0, seconds)
                if not _hit(job, output, kind, moment, count):
                    break
                _check_what_is_there(job, output, whole)
                if len(_contents(job, output)) == len(whole):
                    break  # the signal came after the last file, which a further run would not replace
            found = _contents(job, output)
            assert found == whole, f"{job.name} {kind.name}: {_difference(found, whole)} differs; {_said(output)}"
            count.compared += 1
    return counts


def _hit(job: Job, output: Path, kind: signal.Signals, moment: float, count: Count) -> bool:
    """Whether the signal hit the run; without, it ended by itself."""
    pid = start(job, output)
    code = ended(pid, moment)
    if code is not None:
        assert code == 0, f"{job.name} ended with {code}: {_said(output)}"
        return False
    if moment == LONGEST:
        os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"{job.name} does not end within {LONGEST:.0f} s: {_said(output)}")
    os.kill(pid, kind)
    began = time.monotonic()
    code = ended(pid, 60)
    seconds = time.monotonic() - began
    count.slowest = max(count.slowest, seconds)
    if code is None:
        os.kill(pid, signal.SIGKILL)
    assert seconds < SECONDS_TO_END, f"{job.name} ends {seconds:.1f} s after {kind.name}"
    if code == 0 and kind == signal.SIGKILL:
        return False  # it had ended by itself and was not waited for yet
    allowed = {-kind} if kind == signal.SIGKILL else {-kind, 128 + kind, 0}
    assert code in allowed, f"{job.name} ended with {code} at {kind.name}: {_said(output)}"
    said = _said(output)
    assert "Traceback" not in said and "bug" not in said, said
    count.kills += 1
    return code != 0


def _check_what_is_there(job: Job, output: Path, whole: Mapping[str, object]) -> None:
    """What has its final name is whole, and the temporary files are gone."""
    assert _contents(job, output).items() <= whole.items(), f"{job.name}: a file is half written"
    end = time.monotonic() + 5
    while left := list(output.rglob(".dune-*")):
        assert time.monotonic() < end, f"{job.name} leaves {left}"
        time.sleep(0.01)


def _fresh(output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    Path(f"{output}.log").unlink(missing_ok=True)
    output.mkdir()


def _contents(job: Job, output: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(path for pattern in job.files for path in output.glob(pattern)):
        name, content = path.relative_to(output).as_posix(), path.read_bytes()
        found[name] = json.dumps(_plain(json.loads(content))) if name.endswith(".json") else content
    return found


def _plain(value: Any) -> Any:
    """JSON without what depends on time."""
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if not any(word in name for word in NOT_COMPARED)}
        return {name: _plain(item) for name, item in kept.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _difference(found: Mapping[str, object], whole: Mapping[str, object]) -> str:
    return ", ".join(name for name in whole if found.get(name) != whole[name])


def _said(output: Path) -> str:
    return Path(f"{output}.log").read_text(errors="replace")[-3000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30, help="with each signal, of each job")
    parser.add_argument("--signals", default="KILL,TERM")
    parser.add_argument("--jobs", default="reconstruct,mapfree,distill,matcher,index")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import_everything()
    jobs = make_jobs(options.folder / "inputs")
    kinds = [signal.Signals[f"SIG{name}"] for name in options.signals.split(",")]
    failed = False
    for name in options.jobs.split(","):
        try:
            counts = kill_and_compare(jobs[name], options.folder, kinds, options.kills, options.seed)
        except AssertionError as error:
            failed = True
            print(f"{name}: FAILED: {error}", flush=True)
            continue
        for kind, count in counts.items():
            print(
                f"{name} {kind}: {count.kills} kills, {count.compared} results compared, all equal; a run takes "
                f"{count.seconds_whole:.1f} s, the signal took at most {count.slowest:.2f} s",
                flush=True,
            )
    sys.exit(failed)


def import_everything() -> None:
    """What the jobs import, so that their forks need not."""
    import cv2
    import pycolmap
    import timm  # noqa: F401

    import dune_cli.commands.distill
    import dune_cli.commands.index
    import dune_cli.commands.mapfree
    import dune_cli.commands.reconstruct
    import dune_cli.commands.train
    import dune_cli.evaluation.mapfree_submission
    import dune_cli.matchers.sift
    import dune_cli.tasks.index
    import dune_cli.tasks.reconstruct.matches
    import dune_cli.teachers.dinov2
    import dune_cli.training.distill.finalize
    import dune_cli.training.matcher.finalize  # noqa: F401

    cv2.setNumThreads(1)
    assert pycolmap


if __name__ == "__main__":
    main()
