"""A submission to the Map-free benchmark from a data set: single-frame track, resumable, the same bytes every time.

Layout (docs/models/relocalization.md): `<root>/<split>/<scene>/intrinsics.txt`, `seq0/frame_00000.jpg` the reference,
`seq1/frame_NNNNN.jpg` the queries. What is done so far lies in a folder beside the ZIP, a line a frame.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.evaluation.mapfree import DATA_LIMIT_BYTES, EVERY_NTH_FRAME
from dune_cli.geometry.poses import quaternion_from_rotation
from dune_cli.io.cache import add_checksum, append_line, read_lines, verified
from dune_cli.io.json_files import write_json
from dune_cli.io.outputs import atomic_path
from dune_cli.io.photos import read_photo
from dune_cli.io.safe_read import forward_slashes, read_json, read_text
from dune_cli.sfm.relative_pose import CameraImage, PairBackend, SolverConfig, relocalize

REFERENCE = "seq0/frame_00000.jpg"
SETTINGS = "settings.json"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP can hold


@dataclass(frozen=True)
class FrameCamera:
    """A line of intrinsics.txt: `K` (3, 3), and the photo's size in pixels."""

    K: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class SceneFolder:
    """A scene: its folder, the reference's camera, and the query frames of the single-frame track by name, in order."""

    path: Path
    reference: FrameCamera
    queries: dict[str, FrameCamera]

    @property
    def name(self) -> str:
        return self.path.name


def read_scenes(split_folder: Path) -> list[SceneFolder]:
    """The scenes of a split, by name. UserError where there are none, or one is incomplete."""
    folders = sorted(path.parent for path in split_folder.glob("*/intrinsics.txt"))
    if not folders:
        raise UserError(
            f"{split_folder} holds no scene (a folder with intrinsics.txt); give the data set's root and --split"
        )
    return [_read_scene(folder) for folder in folders]


def _read_scene(folder: Path) -> SceneFolder:
    cameras = _read_cameras(folder / "intrinsics.txt")
    if REFERENCE not in cameras or not os.path.isfile(folder / REFERENCE):  # noqa: PTH113
        lacks = f"{folder / 'intrinsics.txt'} has no line" if REFERENCE not in cameras else "there is no file"
        raise UserError(f"the scene {folder} lacks its reference: {lacks} {REFERENCE}")
    # the official scores count every fifth key in file order; seq0's and seq1's first frame share one, the later wins
    by_number = {name[-9:-4]: name for name in cameras}
    wanted = [name for name in list(by_number.values())[::EVERY_NTH_FRAME] if name != REFERENCE]
    queries = {name: cameras[name] for name in wanted if os.path.isfile(folder / name)}  # noqa: PTH113 (any name)
    if not queries:
        raise UserError(f"the scene {folder} has none of its {len(wanted)} query photos ({', '.join(wanted[:2])}, ...)")
    return SceneFolder(folder, cameras[REFERENCE], queries)


def _read_cameras(path: Path) -> dict[str, FrameCamera]:
    lines = read_text(path, "the intrinsics of a scene", DATA_LIMIT_BYTES).splitlines()
    cameras = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            fx, fy, cx, cy, width, height = (float(field) for field in fields[1:])
        except ValueError as error:
            raise UserError(f"{path}, line {number}: expected 'frame fx fy cx cy W H', got {line[:80]!r}") from error
        name = fields[0] if os.path.exists(path.parent / fields[0]) else forward_slashes(fields[0])  # noqa: PTH110
        finite = all(math.isfinite(value) for value in (fx, fy, cx, cy, width, height))
        whole = finite and width == int(width) and height == int(height) and width >= 1 and height >= 1
        if not whole or not (fx > 0 and fy > 0) or name.startswith("/") or ".." in Path(name).parts:
            raise UserError(f"{path}, line {number}: {line[:80]!r} is no camera of a photo in this folder")
        cameras[name] = FrameCamera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), int(width), int(height))
    return cameras


class SubmissionProgress:
    """What is done so far, in a folder beside the ZIP: a file a scene, a line a frame, kept when the run is killed.

    Every line carries a checksum of itself, its scene and the settings. Lines that are damaged or of another run are
    left out with a note, and their frames are computed again.
    """

    def __init__(self, target: Path, settings: dict[str, Any], restart: bool) -> None:
        """UserError where the folder holds a run with other settings, unless `restart`, which discards that run."""
        self.folder = target.with_name(target.name + ".work")
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise UserError(f"{self.folder}, where what is done so far is kept, is no folder; move it away")
        self._made_of = json.dumps(settings, sort_keys=True)
        old = self._settings()
        if old is not None and old != settings:
            if not restart:
                changed = ", ".join(sorted(k for k in old | settings if old.get(k) != settings.get(k)))
                raise UserError(
                    f"{self.folder} holds an unfinished run with other settings ({changed[:200]}); repeat those, add "
                    "--overwrite to start anew, or name another output"
                )
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS, add_checksum(settings))

    def _settings(self) -> dict[str, Any] | None:
        """The settings of the run in the folder; None, with a note where there is a file, if they cannot be told."""
        path = self.folder / SETTINGS
        if not os.path.lexists(path):
            return None
        try:
            settings = verified(read_json(path, "the settings of a run"))
        except UserError:
            settings = None
        if settings is None:
            console.note(f"{path} is damaged; of what is done so far, what fits these settings is kept")
        return settings

    def done(self, scene: SceneFolder) -> dict[str, str | None]:
        """Frame -> its line of the submission (None: no pose), for the scene's queries that are done."""
        path = self._file(scene.name)
        entries, damaged = read_lines(path, "what is done so far", self._made_of_scene(scene.name))
        done = {}
        for entry in entries:
            frame, pose = entry.get("frame"), entry.get("pose")
            if frame in scene.queries and (pose is None or _is_line(pose, frame)):
                done[frame] = pose
            else:
                damaged += 1
        if damaged:
            console.note(f"{path}: {damaged} lines are damaged or of another run; their frames are computed again")
        return done

    def add(self, scene: str, frame: str, line: str | None) -> None:
        append_line(self._file(scene), {"frame": frame, "pose": line}, self._made_of_scene(scene))

    def remove(self) -> None:
        for path in [*self.folder.glob("*.jsonl"), self.folder / SETTINGS]:
            if not path.is_dir():
                path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _file(self, scene: str) -> Path:
        return self.folder / f"{scene}.jsonl"

    def _made_of_scene(self, scene: str) -> str:
        return f"{scene} {self._made_of}"


def _is_line(text: Any, frame: str) -> bool:
    """Whether a text is a line of the submission for `frame`, as `_line` writes it."""
    fields = text.split(" ") if isinstance(text, str) else []
    if len(fields) != 9 or fields[0] != frame:
        return False
    try:
        values, inliers = [float(field) for field in fields[1:8]], int(fields[8])
    except ValueError:
        return False
    finite = all(math.isfinite(value) for value in values)
    return finite and abs(math.hypot(*values[:4]) - 1) < 1e-6 and inliers >= 0


def relocalize_scene(
    scene: SceneFolder, backend: PairBackend, config: SolverConfig, done: dict[str, str | None]
) -> Iterator[tuple[str, str | None]]:
    """The frames that are not `done` yet, in order: (name, line of the submission or None where there is no pose)."""
    todo = [name for name in scene.queries if name not in done]
    if not todo:
        return
    reference = backend.extract(_shot(scene, REFERENCE, scene.reference))
    for name in todo:
        query = backend.extract(_shot(scene, name, scene.queries[name]))
        try:
            result = relocalize(backend.match(reference, query), config)
        except JobFailed:
            yield name, None
            continue
        yield name, None if result.query_from_ref is None else _line(name, result.query_from_ref, result.inliers)


def _shot(scene: SceneFolder, name: str, camera: FrameCamera) -> CameraImage:
    photo = read_photo(scene.path / name)
    if (photo.width, photo.height) != (camera.width, camera.height):
        raise UserError(
            f"{photo.path} has {photo.width} x {photo.height} px, but {scene.path / 'intrinsics.txt'} says "
            f"{camera.width} x {camera.height}: the intrinsics are of other images"
        )
    return CameraImage(photo, camera.K, "given")


def _line(name: str, query_from_ref: np.ndarray, inliers: int) -> str:
    """Name, quaternion w x y z and translation, world to camera (the world is the reference camera), confidence."""
    values = [*quaternion_from_rotation(query_from_ref[:3, :3]), *query_from_ref[:3, 3]]
    return " ".join([name, *(f"{value + 0.0:.9f}" for value in values), str(inliers)])


def write_submission(path: Path, poses: dict[str, dict[str, str | None]]) -> None:
    """The ZIP: `pose_<scene>.txt` for every scene, also without a pose in it. The same poses give the same bytes."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for scene, frames in sorted(poses.items()):
            member = zipfile.ZipInfo(f"pose_{scene}.txt", ZIP_TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system, member.external_attr = 3, 0o644 << 16
            text = "".join(f"{line}\n" for line in frames.values() if line is not None)
            archive.writestr(member, text)
