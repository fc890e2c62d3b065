"""Output files and folders: checked before the work, written to a temporary path beside the target, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dune_cli import signals
from dune_cli.errors import UserError
from dune_cli.io.inputs import is_video

_scratch: set[Path] = set()  # folders of this process in the system's temporary one, which go at the end


def check_output(path: str | Path, suffixes: Sequence[str], overwrite: bool) -> Path:
    """`path`, if a file can be written there; UserError otherwise. Called before any work.

    Refused: an ending that is not one of `suffixes` (such as ".ply"), a folder, a path below a file, a folder that
    cannot be written to, and an existing file without `overwrite`. Missing folders are made when the file is written.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in suffixes:
        got = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise UserError(f"the output {path} has {got}; allowed: {' '.join(suffixes)}")
    with _as_user_error(path):
        if path.is_dir():
            raise UserError(f"the output {path} is a folder; name a file in it")
        if path.exists() or path.is_symlink():
            refuse_existing(path, overwrite)
        _check_writable(path.parent)
    return path


def check_output_folder(path: str | Path, overwrite: bool) -> Path:
    """`check_output` for a folder of output files. A folder that holds anything counts as existing."""
    path = Path(path).expanduser()
    with _as_user_error(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"the output folder {path} is a file; name another folder")
        if path.is_dir() and any(path.iterdir()):
            refuse_existing(path, overwrite)
        _check_writable(path)
    return path


def refuse_existing(path: Path, overwrite: bool) -> None:
    """UserError about an existing `path`, unless `overwrite`."""
    if not overwrite:
        raise UserError(f"{path} exists already; add --overwrite to replace it, or name another output")


@contextmanager
def atomic_path(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` (same ending) to write to; renamed to `path` on success, removed on failure.

    With `flush` the file is flushed to the disk before it is renamed, unless it is in a folder of `scratch_folder()`;
    else it may be damaged after a power failure. An old file stays until then. Makes missing folders.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(target)
    with signals.temporary(temporary):
        try:
            yield temporary
            if flush and not _scratch.intersection(target.parents):
                _flush(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder beside `path` to write files and folders into; on success they are moved to `path`, on failure
    removed.

    If `path` exists, files and whole folders of the same name are replaced, those named in `replaces` removed, and
    others kept.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent, ".dune-") as temporary:
        yield temporary
        files = sorted(temporary.iterdir())
        for file in temporary.rglob("*"):
            _flush(file)
        if not target.exists():
            temporary.rename(target)
            return
        for name in set(replaces) - {file.name for file in files}:
            _remove(target / name)
        for file in files:
            if file.is_dir():
                _remove(target / file.name)
            file.replace(target / file.name)


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(below: str | Path | None = None, prefix: str = "dune-") -> Iterator[Path]:
    """A folder in `below` (None: the system's temporary folder) that is removed after the block, however it ends."""
    path = Path(below or os.path.realpath(tempfile.gettempdir())) / f"{prefix}{secrets.token_hex(6)}"
    with signals.temporary(path):
        path.mkdir(mode=0o700 if below is None else 0o777)
        if below is None:
            _scratch.add(path)
        try:
            yield path
        finally:
            _scratch.discard(path)
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def no_empty_folder(path: str | Path) -> Iterator[None]:
    """Removes a folder that the block made and left empty, as it does at a mistake of the user. URLs pass."""
    folder = Path(path).expanduser()
    there = folder.exists()
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # not empty, or never made
                folder.rmdir()


def _temporary_beside(target: Path) -> Path:
    return target.with_name(f".dune-{secrets.token_hex(6)}{target.suffix}")


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_writable(folder: Path) -> None:
    """UserError unless a file can be made in `folder` or, where that is missing, in the nearest folder above it."""
    folders = (folder.absolute(), *folder.absolute().parents)
    existing = next(parent for parent in folders if parent.exists() or parent.is_symlink())
    if not existing.is_dir():
        what = "a file, not a folder" if existing.exists() else "a link to nothing"
        raise UserError(f"cannot write into {folder}: {existing} is {what}; name another output")
    with tempfile.TemporaryFile(dir=existing, prefix=".dune-"):  # the only test that read-only file systems do not fool
        pass


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """The system's errors about `path` as UserError; a full disk stays an OSError."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; name another output") from error


def targets(
    paths: Sequence[Path],
    output: str | Path,
    kind: str | None,
    formats: Sequence[str],
    overwrite: bool,
    beside: Sequence[str] = (),
) -> list[Path]:
    """One output file for each photo of `paths`, checked to be writable before the work.

    `output` is a file with one of the endings `formats` ("png", ...; the first is the default in a folder) for a single
    photo, or a folder. Files in a folder are named after the photos, with the ending `kind`. `beside`: endings of
    further files that must be writable too (".json", "_color.png"), in place of the file's own. UserError otherwise.
    """
    suffixes = tuple(f".{name}" for name in formats)
    target = Path(output).expanduser()
    if target.suffix.lower() in suffixes and not target.is_dir():
        if len(paths) > 1:
            raise UserError(f"{len(paths)} photos do not fit into one file {target}; name a folder with -o")
        if kind is not None and target.suffix.lower() != f".{kind}":
            raise UserError(f"--format {kind} contradicts the output {target}; leave one of them out")
        files = [target]
    elif target.suffix and not target.is_dir():
        raise UserError(
            f"the output {target} has the ending {target.suffix}; allowed: {' '.join(suffixes)}, or a folder"
        )
    else:
        files = [target / f"{name}.{kind or formats[0]}" for name in unique_stems(paths)]
    for path in files:
        check_output(path, suffixes, overwrite)
        for ending in beside:
            check_output(sibling(path, ending), (Path(ending).suffix or ending,), overwrite)
    if overwrite:
        _keep_inputs([*files, *(sibling(path, ending) for path in files for ending in beside)], paths)
    return files


def _keep_inputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """UserError for an output that would replace a photo that is read."""
    photos = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in photos:
            raise UserError(f"the output {path} would replace a photo that is read; name another output")


def places(
    paths: Sequence[Path],
    output: str | Path,
    kind: str | None,
    formats: Sequence[str],
    overwrite: bool,
    beside: Sequence[str] = (),
) -> list[Path]:
    """As `targets`, but a video of `paths` gets a folder: `output` itself if it is the only input, else a folder in
    `output` named after the video. UserError if such a folder is not empty, without `overwrite`."""
    videos = [path for path in paths if is_video(path)]
    if not videos:
        return targets(paths, output, kind, formats, overwrite, beside)
    target = Path(output).expanduser()
    if target.suffix and not target.is_dir():
        raise UserError(f"the frames of {videos[0].name} do not fit into one file {target}; name a folder with -o")
    folders = [target] if len(paths) == 1 else [target / name for name in unique_stems(videos)]
    for folder in folders:
        check_output_folder(folder, overwrite)
    photos = [path for path in paths if not is_video(path)]
    files = iter(targets(photos, target, kind, formats, overwrite, beside)) if photos else iter(())
    rest = iter(folders)
    return [next(rest if is_video(path) else files) for path in paths]


def sibling(path: Path, ending: str) -> Path:
    """`path` with `ending` instead of its own: depth.png and "_color.png" give depth_color.png."""
    return path.with_name(path.stem + ending)


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """File names without endings; the second `a` becomes `a_2`."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name, count = path.stem, 1
        while name in taken:
            count += 1
            name = f"{path.stem}_{count}"
        taken.add(name)
        names.append(name)
    return names
