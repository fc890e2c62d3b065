"""Where `dune reconstruct` writes to: checked before the work, written at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.provenance import Run
    from dune_cli.sfm.scene import Scene


@dataclass(frozen=True)
class Targets:
    """The scene, the JSON beside it, and the folders and files that were asked for."""

    scene: Path
    json: Path
    colmap: Path | None
    binary: bool
    transforms: Path | None
    depths: Path | None
    surface: bool = False  # of a PLY, which else holds points

    def check_photos(self, photos: Sequence[Path]) -> None:
        """UserError for photos whose names one of the files cannot hold and for mirrored ones; notes where the files
        have names or pictures otherwise."""
        from dune_cli.io import photo_names

        if self.colmap is not None:
            photo_names.check_names_for_colmap(photo_names.relative_names(photos), self.binary)
        if self.transforms is not None:
            photo_names.check_names_for_json(photos, self.transforms)
        if self.colmap is not None or self.transforms is not None or self.depths is not None:
            refuse_mirrored(photos)
        strange = [photo.name for photo in photos if not photo_names.is_utf8(photo)]
        if strange:
            console.note(
                f"{self.json} names {strange[0]!r} with escapes, for its name is not UTF-8; rename the file if the "
                "scene is to be a --map"
            )

    def write(
        self, scene: Scene, files: list[tuple[Path, str]], run: Run, as_json: bool, facts: dict[str, Any]
    ) -> None:
        """Everything, and what was written (or the JSON) to standard output. `files`: each photo and its hash; `facts`
        go into the provenance, too."""
        from dune_cli.io import formats
        from dune_cli.io.json_files import dumps, write_json
        from dune_cli.io.photo_names import common_folder
        from dune_cli.tasks.reconstruct import export

        written = [self.scene, self.json]
        with run.stage("write"):
            points, mesh = export.write_scene(scene, self.scene, self.surface)
            if self.colmap is not None:
                export.write_colmap_model(scene, self.colmap, self.binary)
                written.append(self.colmap)
                if len({path.parent for path, _ in files}) > 1:
                    folder = common_folder([path for path, _ in files])
                    console.note(f"{self.colmap} names its images relative to {folder}")
            if self.transforms is not None:
                cloud = self.scene if points["file"] and self.scene.suffix.lower() == ".ply" else None
                export.write_transforms_json(scene, self.transforms, [path for path, _ in files], cloud)
                written.append(self.transforms)
            if self.depths is not None:
                count = export.write_depths(scene, self.depths)
                written += [self.depths] if count else []
                if not count:
                    console.note(f"no view has dense points, so there are no depths in {self.depths}")
        axes = "; ".join(filter(None, ["OpenCV: x right, y down, z forward", formats.constant(self.scene, "AXES", "")]))
        provenance = run.provenance(list(scene.sources), files, units=_units(scene), axes=axes, **facts)
        result = export.scene_json(scene, points, mesh, provenance)
        write_json(self.json, result)
        if as_json:
            console.document(dumps(result))
        else:
            console.result(*written)


def check_targets(
    output: str,
    overwrite: bool,
    colmap: str | None,
    binary: bool,
    transforms: str | None,
    depths: str | None,
    surface: bool = False,
) -> Targets:
    """UserError for what cannot be written, before any work. `surface`: whether --mesh was given."""
    from dune_cli.io import formats, outputs

    suffixes = [f".{name}" for name in formats.names("write_scene", first="ply")]
    target = outputs.check_output(output, suffixes, overwrite)
    beside = outputs.check_output(target.with_suffix(".json"), (".json",), overwrite)
    other = outputs.check_output(transforms, (".json",), overwrite) if transforms is not None else None
    if other is not None and other.absolute() == beside.absolute():
        raise UserError(f"--transforms {other} is where the scene's own JSON goes; name another file")
    return Targets(
        target,
        beside,
        outputs.check_output_folder(colmap, overwrite) if colmap is not None else None,
        binary,
        other,
        outputs.check_output_folder(depths, overwrite) if depths is not None else None,
        surface,
    )


def refuse_mirrored(photos: Sequence[Path]) -> None:
    """UserError for a photo that is stored mirrored; a note where others are turned."""
    from dune_cli.io.orientation import MIRRORED, UPRIGHT
    from dune_cli.io.photos import read_header

    headers = [(photo, header) for photo in photos if (header := read_header(photo)) is not None]
    turned = [photo.name for photo, header in headers if header.orientation != UPRIGHT]
    for photo, header in headers:
        if header.orientation in MIRRORED:
            raise UserError(
                f"{photo} is stored mirrored (EXIF orientation {header.orientation}), and --colmap, --transforms and "
                "--depths describe photos as they are stored, which no camera sees so; save it upright first, for "
                "example with 'magick mogrify -auto-orient', or leave these options out"
            )
    if turned:
        more = f" and {len(turned) - 1} more" if len(turned) > 1 else ""
        console.note(
            f"EXIF turns {turned[0]}{more}: --colmap, --transforms and --depths describe the photos as stored, "
            "the scene's JSON as they are seen upright"
        )


def _units(scene: Scene) -> str:
    if scene.scale == "metric":
        return "metre"
    return "baseline" if scene.world is None else "those of --poses"
