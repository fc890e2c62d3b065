"""Gaussian splats of a folder of undistorted photos, by a trainer that is installed: Brush, or gsplat's example.

dune starts the trainer with the number of steps and the seed, all else is the trainer's own default, and takes the PLY
that it writes (B. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023: 30,000 steps).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dune_cli import console
from dune_cli.errors import JobFailed, PackageMissing, UserError
from dune_cli.io.colmap.read import open_model
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.json_files import Fields
from dune_cli.io.outputs import atomic_path, scratch_folder
from dune_cli.io.safe_read import read_json

SCHEMA = "dune.splat/1"
IMAGES = "images"
BRUSH = ("brush", "brush_app", "brush-cli")  # names of its executable, by version
BRUSH_STEPS = ("--total-train-iters", "--total-steps")  # its option for the number of steps: main, and up to 0.3
BRUSH_URL = "https://github.com/ArthurBrussee/brush/releases"
SPLAT_PROPERTIES = ("x", "y", "z", "f_dc_0", "opacity", "scale_0", "rot_0")
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
WAIT_S = 0.5
LAST_LINES = 3  # of the trainer's output, in the error


@dataclass(frozen=True)
class SplatFolder:
    """A folder of undistorted photos with a model: how many `images` and `points` it has."""

    folder: Path
    images: int
    points: int

    @classmethod
    def of(cls, path: str | Path) -> SplatFolder:
        """Of the folder, or of a scene that `dune reconstruct --undistort` wrote (its output or the JSON beside it).

        UserError for another file or folder, images that are missing, and cameras with distortion.
        """
        folder = Path(path).expanduser()
        if not folder.is_dir():
            folder = _folder_of_scene(folder)
        if not (folder / IMAGES).is_dir():
            raise UserError(
                f"{folder} has no folder {IMAGES}; name one that 'dune reconstruct … --undistort DIR' has written"
            )
        model = open_model(folder)
        bent = sorted({image.camera.model_name for image in model.images.values()} - set(PINHOLES))
        if bent:
            raise UserError(
                f"the cameras of {folder} have distortion ({', '.join(bent)}), which splatting tools do not take; "
                "write the folder with 'dune reconstruct … --undistort DIR'"
            )
        missing = sorted(image.name for image in model.images.values() if not (folder / IMAGES / image.name).is_file())
        if missing or not model.images:
            what = f"{len(missing)} images of its model are missing, such as {missing[0]}" if missing else "no image"
            raise UserError(f"{folder / IMAGES}: {what}; write the folder anew with --undistort")
        return cls(folder, len(model.images), len(model.xyz))


def _folder_of_scene(path: Path) -> Path:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise UserError(f"no such folder or scene: {path}; name the folder that --undistort has written")
    fields = Fields(read_json(beside), str(beside))
    if "undistorted" not in fields:
        raise UserError(
            f"{path} is a scene without undistorted photos; reconstruct it with --undistort DIR, and name DIR here"
        )
    return beside.parent / fields.object("undistorted").text("folder")


@dataclass(frozen=True)
class Trainer:
    """`name` brush | gsplat, its `executable` or script, and the command line for (folder, output folder, steps,
    seed)."""

    name: str
    executable: str
    command: Callable[[Path, Path, int, int], list[str]]


def find_trainer(ready: SplatFolder, named: str | None = None) -> Trainer:
    """The trainer `named` by an executable of Brush or the file of gsplat's trainer; None: Brush on PATH.

    PackageMissing where there is none, which says what to install and that the folder is ready. UserError for a file
    that is none.
    """
    if named is not None and named.endswith(".py"):
        script = Path(named).expanduser()
        if not script.is_file():
            raise UserError(f"--trainer {named} is no file; name gsplat's examples/simple_trainer.py")
        if importlib.util.find_spec("gsplat") is None:
            raise PackageMissing(
                f"--trainer {named} needs the package gsplat, which is not installed; run: pip install gsplat"
            )
        return Trainer("gsplat", str(script), lambda *given: _gsplat(str(script.absolute()), *given))
    found = next(filter(None, map(shutil.which, BRUSH if named is None else (named,))), None)
    if found is not None:
        steps_option = _brush_steps_option(found)
        return Trainer("brush", found, lambda *given: _brush(found, steps_option, *given))
    if named is not None:
        raise UserError(f"--trainer {named} is no program; name an executable of Brush or gsplat's simple_trainer.py")
    installed = importlib.util.find_spec("gsplat") is not None
    gsplat = "gsplat is here, but its package has no trainer: name" if installed else "or pip install gsplat and name"
    raise PackageMissing(
        f"no splatting trainer is on PATH; {ready.folder} is ready ({ready.images} images, {ready.points} points): "
        f"install Brush ({BRUSH_URL}) so that the program brush is on PATH, {gsplat} its "
        "examples/simple_trainer.py with --trainer"
    )


def _brush_steps_option(executable: str) -> str:
    try:
        told = subprocess.run([executable, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{executable} does not start ({error}); name another program with --trainer") from error
    text = (told.stdout + told.stderr).decode("utf-8", "replace")
    for name in BRUSH_STEPS:
        if name in text:
            return name
    raise UserError(
        f"{executable} is no Brush that dune knows: its --help names neither of {', '.join(BRUSH_STEPS)}; name "
        "another program with --trainer"
    )


def _brush(executable: str, steps_option: str, folder: Path, output: Path, steps: int, seed: int) -> list[str]:
    exports = ["--export-every", str(steps), "--export-path", str(output), "--export-name", "splat.ply"]
    return [executable, str(folder), steps_option, str(steps), "--seed", str(seed), *exports]


def _gsplat(script: str, folder: Path, output: Path, steps: int, seed: int) -> list[str]:
    """Its seed is fixed. In the scene's own world, not one of gsplat's."""
    places = ["--data-dir", str(folder), "--data-factor", "1", "--result-dir", str(output)]
    length = ["--max-steps", str(steps), "--save-ply", "--ply-steps", str(steps), "--eval-steps", str(steps)]
    plain = ["--no-normalize-world-space", "--disable-viewer", "--disable-video"]
    return [sys.executable, script, "default", *places, *length, *plain]


def train(ready: SplatFolder, trainer: Trainer, output: Path, steps: int, seed: int) -> dict[str, Any]:
    """Runs the trainer and writes its splats to `output`, and what it printed to the log beside it. Returns the JSON
    without provenance.

    JobFailed where the trainer fails or writes no splats; its last lines are in the message.
    """
    log = output.with_suffix(".log")
    with scratch_folder(output.absolute().parent, ".dune-splat-") as results:
        results = results.absolute()
        command = trainer.command(ready.folder.absolute(), results, steps, seed)
        console.note(f"{trainer.executable} trains {steps} steps; its output goes to {log}")
        code = _run(command, log)
        written = sorted(results.rglob("*.ply"), key=lambda path: path.stat().st_mtime_ns)
        if code or not written:
            ended = f"ended with status {code}" if code else "wrote no .ply"
            raise JobFailed(f"{trainer.executable} {ended}; {log} has its output, which ends: {_last_lines(log)}")
        splats = read_ply(written[-1])
        lacking = [name for name in SPLAT_PROPERTIES if name not in splats]
        if lacking:
            raise JobFailed(f"{trainer.executable} wrote a PLY without {', '.join(lacking)}, which holds no splats")
        with atomic_path(output) as temporary:
            shutil.move(written[-1], temporary)
    return {
        "schema": SCHEMA,
        "file": output.name,
        "splats": len(splats["x"]),
        "trainer": {"name": trainer.name, "executable": trainer.executable, "command": command},
        "steps": steps,
        "folder": str(ready.folder),
        "images": ready.images,
        "points": ready.points,
    }


def _run(command: Sequence[str], log: Path) -> int:
    """The exit code of a command whose output goes to `log`; it and what it started end with this process's block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(WAIT_S)
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_bytes()[-4000:].decode("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:]) or "nothing"
