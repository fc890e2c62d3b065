"""What `dune mapfree` has done so far: the folder beside the ZIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.evaluation.mapfree_submission import FrameCamera, SceneFolder, SubmissionProgress
from fuzz.harness import Sample

SETTINGS = {"dune": "1.0", "data": "/data/val", "weights": "sift", "sha256": None, "solver": "essential", "seed": 0}
CAMERA = FrameCamera(np.diag([100.0, 100.0, 1.0]), 64, 48)
FRAMES = [f"seq1/frame_{number:05d}.jpg" for number in range(0, 40, 5)]


def samples(folder: Path) -> Sequence[Sample]:
    scene = SceneFolder(Path("s00000"), CAMERA, dict.fromkeys(FRAMES, CAMERA))
    work = SubmissionProgress(folder / "s.zip", SETTINGS, restart=False)
    written = {}
    for number, frame in enumerate(FRAMES):
        angle = 0.05 * number
        pose = f"{np.cos(angle):.9f} {np.sin(angle):.9f} 0.000000000 0.000000000 0.250000000 -0.125000000 {number}.5"
        written[frame] = None if number == 3 else f"{frame} {pose} {100 + number}"
        work.add(scene.name, frame, written[frame])
    files = {f"s.zip.work/{path.name}": path.read_bytes() for path in (folder / "s.zip.work").iterdir()}

    def read(case: Path) -> dict[str, str | None]:
        # settings of another run are refused without --overwrite, which begins anew
        done = SubmissionProgress(case / "s.zip", SETTINGS, restart=False).done(scene)
        accept(done)
        if len(done) < len(written):
            raise JobFailed(f"{len(written) - len(done)} frames are computed again")
        return done

    def accept(done: dict[str, str | None]) -> None:
        assert all(done[frame] == written[frame] for frame in done)

    return [Sample(files, read, accept), Sample(files, read, accept, ["s.zip.work/s00000.jsonl"])]
