"""Where results go: one file for one photo, a folder with one file a photo, a folder for a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.io.atomic import check_output, check_output_folder
from dune_cli.io.inputs import is_video


def targets(
    paths: Sequence[Path],
    output: str | Path,
    kind: str | None,
    formats: Sequence[str],
    overwrite: bool,
    beside: Sequence[str] = (),
) -> list[Path]:
    """One output file a photo of `paths`, checked to be writable before the work.

    `output` names a file with one of the endings `formats` ("png", ...; the first is a folder's default) for a single
    photo, or a folder, whose files are called as the photos and have the ending `kind`. `beside`: what replaces the
    ending in the names of further files that must be writable too (".json", "_color.png"). UserError otherwise.
    """
    suffixes = tuple(f".{name}" for name in formats)
    target = Path(output).expanduser()
    if target.suffix.lower() in suffixes and not target.is_dir():
        if len(paths) > 1:
            raise UserError(f"{len(paths)} photos do not fit into one file {target}; name a folder with -o")
        if kind is not None and target.suffix.lower() != f".{kind}":
            raise UserError(f"--format {kind} contradicts the output {target}; leave one of them out")
        found = [target]
    elif target.suffix and not target.is_dir():
        raise UserError(
            f"the output {target} has the ending {target.suffix}; allowed: {' '.join(suffixes)}, or a folder"
        )
    else:
        found = [target / f"{name}.{kind or formats[0]}" for name in unique_stems(paths)]
    for path in found:
        check_output(path, suffixes, overwrite)
        for ending in beside:
            check_output(sibling(path, ending), (Path(ending).suffix or ending,), overwrite)
    return found


def places(
    paths: Sequence[Path],
    output: str | Path,
    kind: str | None,
    formats: Sequence[str],
    overwrite: bool,
    beside: Sequence[str] = (),
) -> list[Path]:
    """As `targets`, but a video of `paths` gets a folder: `output` itself where it is the only input, else one in
    `output` that is called as the video. UserError where such a folder holds something already, without `overwrite`."""
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
