"""The files of a scene: their options, what is checked before the work, and writing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import option
from dune_cli.commands.preview import PREVIEW, PreviewedOutput
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.sfm.masks import PhotoMasks
    from dune_cli.sfm.scene import Scene
    from dune_cli.tasks.reconstruct.people import PeopleInScene


@options.group("Output")
class SceneOutput(PreviewedOutput):
    preview: bool | None = options.changed(PreviewedOutput, "preview", default_text="no preview")
    output: str = options.output_to(
        "the scene as .ply (points; with --mesh a surface), .las or .laz (points), .glb (surface and cameras), .obj "
        "(surface) or .npz (maps). "
        "A JSON file is written beside it.",
        required=True,
    )
    colmap: str | None = option("--colmap DIR", "Folder for a COLMAP model.")
    colmap_format: str = option("--colmap-format [binary|text]", "Format of the COLMAP model.", default="binary")
    transforms: str | None = option("--transforms FILE", "JSON file for the cameras, as nerfstudio's transforms.json.")
    depths: str | None = option("--depths DIR", "Folder for the depth map of every view, as 16-bit PNG.")
    undistort: str | None = option(
        "--undistort DIR", "Folder for the photos without distortion and their COLMAP model, for splatting tools."
    )
    geojson: str | None = option(
        "--geojson FILE", "GeoJSON file for the cameras of a scene with --crs or --gps, in longitude and latitude."
    )

    def targets(self, surface: bool, people: bool = False) -> Targets:
        """Where all of it goes. UserError for what cannot be written. `surface`: whether --mesh was given; `people`:
        whether --people was."""
        from dune_cli import optional
        from dune_cli.io import formats, outputs

        suffixes = [f".{name}" for name in formats.names("write_scene", first="ply")]
        scene = outputs.check_output(self.output, suffixes, self.overwrite)
        for package in formats.constant(scene, "PACKAGES", ()):
            optional.require(package, f"-o {scene.name}", extra="geo")
        beside = outputs.check_output(scene.with_suffix(".json"), (".json",), self.overwrite)
        transforms = None
        if self.transforms is not None:
            transforms = outputs.check_output(self.transforms, (".json",), self.overwrite)
            if transforms.absolute() == beside.absolute():
                raise UserError(f"--transforms {transforms} is where the scene's own JSON goes; name another file")
        colmap, depths, undistort = (
            None if folder is None else outputs.check_output_folder(folder, self.overwrite)
            for folder in (self.colmap, self.depths, self.undistort)
        )
        geojson = None
        if self.geojson is not None:
            geojson = outputs.check_output(self.geojson, (".geojson", ".json"), self.overwrite)
            if geojson.absolute() in (beside.absolute(), transforms and transforms.absolute()):
                raise UserError(f"--geojson {geojson} is where another JSON goes; name another file")
        bodies = None
        if people:
            from dune_cli.tasks.reconstruct.people_files import people_file

            bodies = people_file(scene)
            if bodies != scene:
                bodies = outputs.check_output(bodies, (bodies.suffix,), self.overwrite)
        preview = None
        if self.preview:
            preview = outputs.check_output(outputs.sibling(scene, PREVIEW), (".png",), self.overwrite)
        binary = self.colmap_format == "binary"
        return Targets(scene, beside, colmap, binary, transforms, depths, surface, undistort, geojson, bodies, preview)


@dataclass(frozen=True)
class SceneOfPhotos:
    """A scene, each photo with its hash, what goes into the provenance besides, the masks, and the people of
    --people."""

    scene: Scene
    files: list[tuple[Path, str]]
    metadata: dict[str, Any]
    masks: PhotoMasks | None = None
    people: PeopleInScene | None = None


@dataclass(frozen=True)
class Targets:
    """The files and folders of a scene: the scene, the JSON beside it, and what was asked for besides."""

    scene: Path
    json: Path
    colmap: Path | None
    binary: bool
    transforms: Path | None
    depths: Path | None
    surface: bool = False  # of a PLY, which else holds points
    undistort: Path | None = None
    geojson: Path | None = None
    people: Path | None = None  # the scene's file, or one beside it
    preview: Path | None = None

    def check_photos(self, photos: Sequence[Path]) -> None:
        """UserError for photos whose names one of the files cannot hold and for mirrored ones; notes where the files
        have other names or pixels."""
        from dune_cli.io import photo_files, photo_names

        if self.colmap is not None:
            photo_names.check_names_for_colmap(photo_names.relative_names(photos), self.binary)
        if self.undistort is not None:
            names = map(photo_files.written_name, photo_names.relative_names(photos))
            photo_names.check_names_for_colmap(list(names), binary=True)
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

    def check_kept(self, inputs: Sequence[Path]) -> None:
        """UserError for photos and masks in a folder that --undistort would replace."""
        if self.undistort is None:
            return
        replaced = [(self.undistort / name).resolve() for name in ("images", "masks", "sparse")]
        for path in inputs:
            if any(path.expanduser().resolve().is_relative_to(folder) for folder in replaced):
                raise UserError(
                    f"--undistort {self.undistort} would replace {path}, which is read; name another folder"
                )

    def write(self, result: SceneOfPhotos, run: Run) -> tuple[dict[str, Any], list[Path]]:
        """Writes everything. Returns the content of the JSON file, and the files and folders that were written."""
        from dune_cli.io import formats
        from dune_cli.io.json_files import write_json
        from dune_cli.io.photo_names import common_folder
        from dune_cli.tasks.reconstruct import export

        if result.people is not None:
            from dune_cli.tasks.reconstruct import people_files

        scene, photos = result.scene, [path for path, _ in result.files]
        written = [self.scene, self.json]
        with run.stage("write"):
            bodies = [] if result.people is None else people_files.people_meshes(result.people, self.people)
            beside = self.people != self.scene
            points, mesh = export.write_scene(scene, self.scene, self.surface, [] if beside else bodies)
            if bodies and beside:
                people_files.write_people(bodies, scene, self.people)
                written.append(self.people)
            if self.colmap is not None:
                export.write_colmap_model(scene, self.colmap, self.binary)
                written.append(self.colmap)
                if len({path.parent for path in photos}) > 1:
                    console.note(f"{self.colmap} names its images relative to {common_folder(photos)}")
            if self.transforms is not None:
                cloud = self.scene if points["file"] and self.scene.suffix.lower() == ".ply" else None
                export.write_transforms_json(scene, self.transforms, photos, cloud)
                written.append(self.transforms)
            if self.geojson is not None:
                export.write_geojson(scene, self.geojson)
                written.append(self.geojson)
            if self.depths is not None and export.write_depths(scene, self.depths):
                written.append(self.depths)
            elif self.depths is not None:
                console.note(f"no view has dense points, so there are no depths in {self.depths}")
            undistorted = self._write_undistorted(scene, photos, result.masks)
            written += [self.undistort] if self.undistort is not None else []
        axes = "; ".join(filter(None, ["OpenCV: x right, y down, z forward", formats.constant(self.scene, "AXES", "")]))
        if scene.georeference is not None:
            axes = f"cameras {axes}; world {scene.georeference.frame.axes}"
        units = "metre" if scene.scale == "metric" else "baseline" if scene.world is None else "those of --poses"
        provenance = run.provenance(list(scene.sources), result.files, units=units, axes=axes, **result.metadata)
        people = None
        if result.people is not None:
            people = people_files.people_json(result.people, scene, self.people if bodies else None)
        document = export.scene_json(scene, points, mesh, provenance, people) | undistorted
        write_json(self.json, document)
        if self.preview is not None:  # drawn with the cameras of the JSON
            from dune_cli import previews

            with run.stage("preview"):
                document["preview"] = previews.save(previews.scene_picture(scene, self.scene), self.preview)
            write_json(self.json, document)
            written.append(self.preview)
        return document, written

    def _write_undistorted(self, scene: Scene, photos: Sequence[Path], masks: PhotoMasks | None) -> dict[str, Any]:
        """Writes the folder of --undistort; the JSON's field about it."""
        if self.undistort is None:
            return {}
        from dune_cli.io.photo_index import relative_path
        from dune_cli.tasks.reconstruct.undistorted import write_undistorted

        document = write_undistorted(scene, photos, self.undistort, masks)
        return {"undistorted": {"folder": relative_path(self.json.parent, self.undistort), **document}}


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
