"""`dune mapfree`: a submission to the Map-free benchmark, single-frame track; resumable, with reproducible bytes.

Data set (docs/models/relocalization.md): `<root>/<split>/<scene>/intrinsics.txt`, the reference `seq0/frame_00000.jpg`,
the queries `seq1/frame_NNNNN.jpg`. Finished frames are recorded in a folder beside the ZIP.
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
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time of the ZIP format


@dataclass(frozen=True)
class FrameCamera:
    """A line of intrinsics.txt: `K` (3, 3), and the photo's width and height in pixels."""

    K: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class SceneFolder:
    """A scene: its folder, the reference's camera, and the cameras of the single-frame track's queries, by name."""

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
        missing = f"{folder / 'intrinsics.txt'} has no line" if REFERENCE not in cameras else "there is no file"
        raise UserError(f"the scene {folder} lacks its reference: {missing} {REFERENCE}")
    # the official scores count every fifth key in file order; seq0's and seq1's first frame share one, the later wins
    by_number = {name[-9:-4]: name for name in cameras}
    names = [name for name in list(by_number.values())[::EVERY_NTH_FRAME] if name != REFERENCE]
    queries = {name: cameras[name] for name in names if os.path.isfile(folder / name)}  # noqa: PTH113 (any name)
    if not queries:
        raise UserError(f"the scene {folder} has none of its {len(names)} query photos ({', '.join(names[:2])}, ...)")
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
        is_size = finite and width == int(width) and height == int(height) and width >= 1 and height >= 1
        if not is_size or not (fx > 0 and fy > 0) or name.startswith("/") or ".." in Path(name).parts:
            raise UserError(f"{path}, line {number}: {line[:80]!r} is no camera of a photo in this folder")
        cameras[name] = FrameCamera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), int(width), int(height))
    return cameras


class SubmissionProgress:
    """The finished frames, in a folder beside the ZIP: a file a scene, a line a frame.

    Every line has a checksum of itself, its scene and the settings. Lines that are damaged or of another run are
    skipped with a note, and their frames are computed again.
    """

    def __init__(self, target: Path, settings: dict[str, Any], restart: bool) -> None:
        """`restart` discards a run with other settings; without it, such a run raises UserError."""
        self.folder = target.with_name(target.name + ".work")
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise UserError(f"{self.folder}, the folder of finished frames, is a file; move it away")
        self._settings_text = json.dumps(settings, sort_keys=True)
        recorded = self._recorded_settings()
        if recorded is not None and recorded != settings:
            if not restart:
                changed = ", ".join(sorted(k for k in recorded | settings if recorded.get(k) != settings.get(k)))
                raise UserError(
                    f"{self.folder} holds an unfinished run with other settings ({changed[:200]}); repeat those, add "
                    "--overwrite to start anew, or name another output"
                )
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS, add_checksum(settings))

    def _recorded_settings(self) -> dict[str, Any] | None:
        """The settings of the folder's run; None without a readable file, with a note if it is damaged."""
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
        """Finished queries of a scene: frame -> its line of the submission, None without a pose."""
        path = self._path(scene.name)
        entries, damaged = read_lines(path, "the finished frames", self._made_of(scene.name))
        done = {}
        for entry in entries:
            frame, pose = entry.get("frame"), entry.get("pose")
            if frame in scene.queries and (pose is None or _is_valid_line(pose, frame)):
                done[frame] = pose
            else:
                damaged += 1
        if damaged:
            console.note(f"{path}: {damaged} lines are damaged or of another run; their frames are computed again")
        return done

    def add(self, scene: str, frame: str, line: str | None) -> None:
        """Records a finished frame."""
        append_line(self._path(scene), {"frame": frame, "pose": line}, self._made_of(scene))

    def remove(self) -> None:
        """Removes the records, and the folder if nothing else is in it."""
        for path in [*self.folder.glob("*.jsonl"), self.folder / SETTINGS]:
            if not path.is_dir():
                path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, scene: str) -> Path:
        return self.folder / f"{scene}.jsonl"

    def _made_of(self, scene: str) -> str:
        return f"{scene} {self._settings_text}"


def _is_valid_line(text: Any, frame: str) -> bool:
    """Whether a text is a line of the submission for `frame`, as `_submission_line` writes it."""
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
    """Localizes the queries that are not `done`, in order: (frame, line of the submission, or None without a pose)."""
    remaining = [name for name in scene.queries if name not in done]
    if not remaining:
        return
    reference = backend.extract(_load_image(scene, REFERENCE, scene.reference))
    for name in remaining:
        query = backend.extract(_load_image(scene, name, scene.queries[name]))
        try:
            result = relocalize(backend.match(reference, query), config)
        except JobFailed:
            yield name, None
            continue
        pose = result.query_from_ref
        yield name, None if pose is None else _submission_line(name, pose, result.inliers)


def _load_image(scene: SceneFolder, name: str, camera: FrameCamera) -> CameraImage:
    photo = read_photo(scene.path / name)
    if (photo.width, photo.height) != (camera.width, camera.height):
        raise UserError(
            f"{photo.path} has {photo.width} x {photo.height} px, but {scene.path / 'intrinsics.txt'} says "
            f"{camera.width} x {camera.height}: the intrinsics are of other images"
        )
    return CameraImage(photo, camera.K, "given")


def _submission_line(name: str, query_from_ref: np.ndarray, inliers: int) -> str:
    """Frame, quaternion w x y z and translation from world (the reference camera) to camera, confidence."""
    values = [*quaternion_from_rotation(query_from_ref[:3, :3]), *query_from_ref[:3, 3]]
    return " ".join([name, *(f"{value + 0.0:.9f}" for value in values), str(inliers)])


def write_submission(path: Path, poses: dict[str, dict[str, str | None]]) -> None:
    """Writes the ZIP: `pose_<scene>.txt` for every scene, even without any pose. Equal poses give equal bytes."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for scene, frames in sorted(poses.items()):
            member = zipfile.ZipInfo(f"pose_{scene}.txt", ZIP_TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system, member.external_attr = 3, 0o644 << 16
            text = "".join(f"{line}\n" for line in frames.values() if line is not None)
            archive.writestr(member, text)
